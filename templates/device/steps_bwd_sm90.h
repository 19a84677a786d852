// The steps of a CTA, as each role learns of them. A step is one query tile of one query head.
//
// Where the tiles that see a key block are one run, every role counts along it by itself. For any
// other pattern the loading warp looks for them, 32 tiles at a time, one per lane, and leaves a
// note of each step in shared memory. Consumers read it when the step's Q is there, those who send
// dQ when its dQ is. The last note says that nothing follows.
#ifndef FAGEN_STEPS_BWD_SM90_H
#define FAGEN_STEPS_BWD_SM90_H

#include "device/blocks_bwd_sm90.h"

struct Note {
  int head;  // -1 after the last step
  int tile;  // 2 * query tile, + 1 if it needs a mask
  FAGEN_DEVICE bool end() const { return head < 0; }
  FAGEN_DEVICE int m() const { return tile >> 1; }
  FAGEN_DEVICE bool masked() const { return tile & 1; }
};

FAGEN_DEVICE uint32_t note_at(uint32_t shared, int c) { return shared + AT_NOTES + c % NOTES * 8; }
FAGEN_DEVICE void write_note(uint32_t shared, int c, Note note) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(note_at(shared, c)), "r"(note.head),
               "r"(note.tile)
               : "memory");
}
FAGEN_DEVICE Note read_note(uint32_t shared, int c) {
  Note note;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
               : "=r"(note.head), "=r"(note.tile)
               : "r"(note_at(shared, c))
               : "memory");
  return note;
}

// Calls visit(query head, m, tile, masked) for every step of a key block. All lanes of a warp call
// it, and lane 0 visits.
template <class P, class F>
FAGEN_DEVICE void find_steps(const fagen_params &p, const KeyBlock &block, F visit) {
  const int first = block.kv_head * group_size(p), end = first + group_size(p);
  const int lane = threadIdx.x % 32;
  const int tiles = tiles_of(Sequence(p, block.batch).seqlen_q(), BLOCK_M);
#pragma unroll 1
  for (int head = first; head < end; head++) {
    const P pattern = head_pattern<P>(p, block.batch, head);
#pragma unroll 1
    for (int m0 = 0; m0 < tiles; m0 += 32) {
      const Tile kind =
          tile_kind(pattern, (m0 + lane) * BLOCK_M, BLOCK_M, block.n * BLOCK_N, BLOCK_N);
      uint32_t some = __ballot_sync(FULL_WARP, kind != Tile::skip);
      const uint32_t full = __ballot_sync(FULL_WARP, kind == Tile::full);
      if (lane == 0)
#pragma unroll 1
        for (; some; some &= some - 1) {
          const int i = __ffs(some) - 1, m = m0 + i;
          visit(head, m, tile_index(p, block.batch, head, m), !(full >> i & 1));
        }
      __syncwarp();
    }
  }
}

// Along one run. Nobody needs to be told of `masked`.
template <OneRun P, class F>
FAGEN_DEVICE void find_steps(const fagen_params &p, const KeyBlock &block, F visit) {
  const Span span = query_span<P>(p, block);
  const int first = block.kv_head * group_size(p), end = first + group_size(p);
#pragma unroll 1
  for (int head = first; head < end; head++) {
    if constexpr (STAGGERED) {
      const int first_tile = tile_index(p, block.batch, head, 0);
      int m = span.start;
#pragma unroll 1
      for (int left = span.end - span.begin; left > 0; left--) {
        visit(head, m, first_tile + m, true);
        if (++m == span.end) m = span.begin;
      }
    } else {
      int tile = tile_index(p, block.batch, head, span.begin);
#pragma unroll 1
      for (int m = span.begin; m < span.end; m++) visit(head, m, tile++, true);
    }
  }
}

// The same for those who send dQ: visit(head, m, tile) after ready(), which waits until the
// next step, or the note that there is none, can be seen.
template <class Ready, class F>
FAGEN_DEVICE void for_each_dq(const fagen_params &p, const KeyBlock &block, uint32_t shared,
                              Ready ready, F visit) {
  if constexpr (NOTED) {
#pragma unroll 1
    for (int c = 0;; c++) {
      ready();
      const Note note = read_note(shared, c);
      if (note.end()) return;
      visit(note.head, note.m(), tile_index(p, block.batch, note.head, note.m()));
    }
  } else {
    find_steps<Pattern>(p, block, [&](int head, int m, int tile, bool) {
      ready();
      visit(head, m, tile);
    });
  }
}

// A consumer's position: step c is query tile m of head `head`. Steps are counted on from one key
// block of the CTA to the next. `more` waits for the step.
template <class P>
struct WalkOf {
  uint32_t shared;
  KeyBlock block;
  Lengths lengths;
  int n, c = 0, m = 0, head = 0;
  bool needs_mask = true;
  FAGEN_DEVICE WalkOf(const fagen_params &p, uint32_t shared, int b, int)
      : shared(shared), block(key_block(p, shared, b)), lengths(Sequence(p, block.batch).lengths()),
        n(block.n) {}
  FAGEN_DEVICE bool more() {
    wait_full<STAGES_Q>(shared + Q_FULL, c);
    const Note note = read_note(shared, c);
    head = uniform(note.head), m = uniform(note.m()), needs_mask = uniform(note.masked());
    return head >= 0;
  }
  FAGEN_DEVICE void advance() { c++; }
  FAGEN_DEVICE bool masked() const { return needs_mask; }
  FAGEN_DEVICE bool first() const { return c == 0; }
  FAGEN_DEVICE bool any() const { return c != 0; }  // behind the last step: was there one?
  FAGEN_DEVICE int steps() const { return c; }
  FAGEN_DEVICE P pattern(const fagen_params &p) const {
    if constexpr (VARLEN) return P(lengths);
    else return pattern_of<P>(p, block.batch, head);
  }
};

// One run: the same tiles again for each head of the group.
template <OneRun P>
struct WalkOf<P> {
  KeyBlock block;
  Lengths lengths;
  int n;
  Span span;
  int end, c, m;  // the block's steps are those before end
  bool fresh = true;
  FAGEN_DEVICE WalkOf(const fagen_params &p, uint32_t shared, int b, int begin)
      : block(key_block(p, shared, b)),
        lengths(Sequence(p, block.batch).lengths()),
        n(block.n),
        span(query_span<P>(p, block)),
        end(begin + (span.end - span.begin) * group_size(p)),
        c(begin),
        m(span.start) {}
  FAGEN_DEVICE bool more() const { return c < end; }
  FAGEN_DEVICE void advance() {
    c++;
    fresh = false;
    if (++m == span.end) m = span.begin;
  }
  FAGEN_DEVICE bool masked() const { return span.masked(m); }
  FAGEN_DEVICE bool first() const { return RESIDENT ? fresh : c <= 0; }
  FAGEN_DEVICE bool any() const { return RESIDENT ? !fresh : end != 0; }
  FAGEN_DEVICE int steps() const { return end; }
  FAGEN_DEVICE P pattern(const fagen_params &p) const {
    if constexpr (VARLEN) return P(lengths);
    else return pattern_of<P>(p, block.batch, 0);
  }
};
using Walk = WalkOf<Pattern>;

#endif
