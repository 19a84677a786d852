// Which keys a CTA owns, and which query tiles see them.
#ifndef FAGEN_WALK_BWD_SM90_H
#define FAGEN_WALK_BWD_SM90_H

#include "device/rings_bwd_sm90.h"
#include "device/sections_bwd_sm90.h"
#include "device/sequence.h"

// The keys BLOCK_N * n .. of one key/value head of a sequence.
struct KeyBlock {
  int n, kv_head, batch;
};

// Where the query tiles are one run: begin..end-1 touch the keys; those in full_begin..full_end-1
// need no mask. They are walked from `start` on, and round to it again.
struct Span {
  int begin, end, full_begin, full_end, start;
  FAGEN_DEVICE bool masked(int m) const { return m < full_begin || m >= full_end; }
};

FAGEN_DEVICE int tiles_of(int rows, int size) { return (rows + size - 1) / size; }
FAGEN_DEVICE int group_size(const fagen_params &p) { return p.heads / p.kv_heads; }

// Entries of the tensors along their batch dimension: packed sequences are one.
FAGEN_DEVICE int entries(const fagen_params &p) { return VARLEN ? 1 : p.batch; }
FAGEN_DEVICE int entry_of(int batch) { return VARLEN ? 0 : batch; }

template <class P>
FAGEN_DEVICE P head_pattern(const fagen_params &p, int batch, int head) {
  if constexpr (VARLEN) return P(Sequence(p, batch).lengths());
  else return pattern_of<P>(p, batch, head);
}

FAGEN_DEVICE int heads_per_section(const fagen_params &p) {
  if (ORDER == Order::by_head) return 1;
  const float rows = static_cast<float>(group_size(p)) * p.seqlen_q;
  return section_of_heads(ORDER, entries(p) * p.kv_heads, rows * (2 * (D + DV) + 4 * D));
}

#include "device/key_block_bwd_sm90.h"

// A packed batch has a few blocks more than its sequences need.
FAGEN_DEVICE bool has_keys(const fagen_params &p, const KeyBlock &block) {
  return block.n * BLOCK_N < Sequence(p, block.batch).seqlen_kv();
}

template <IntervalPattern P>
FAGEN_DEVICE Span query_span(const fagen_params &p, const KeyBlock &block) {
  const P pattern = head_pattern<P>(p, block.batch, 0);
  const int k0 = block.n * BLOCK_N, k1 = min_of(k0 + BLOCK_N, pattern.seqlen_kv);
  const Range some = pattern.queries(k0, k1), all = pattern.full_queries(k0, k1);
  Span span;
  span.begin = some.begin / BLOCK_M;
  span.end = some.begin < some.end ? tiles_of(some.end, BLOCK_M) : span.begin;
  span.full_begin = tiles_of(all.begin, BLOCK_M);
  span.full_end = all.end >= pattern.seqlen_q ? span.end : all.end / BLOCK_M;
  if (k1 < k0 + BLOCK_N) span.full_begin = span.end;  // keys past the end need the mask everywhere
  span.start = span.begin;
  if constexpr (STAGGERED) {
    const int opposite = block.n * tiles_of(pattern.seqlen_q, BLOCK_M) / tiles_of(pattern.seqlen_kv, BLOCK_N);
    span.start = max_of(span.begin, min_of(opposite, span.end - 1));
  }
  return span;
}

// What the pattern says of `rows` queries by `keys` keys, ends clipped; full only if all are there.
FAGEN_DEVICE Tile tile_kind(const Pattern &pattern, int q0, int rows, int k0, int keys) {
  if (q0 >= pattern.seqlen_q || k0 >= pattern.seqlen_kv) return Tile::skip;
  const int q1 = min_of(q0 + rows, pattern.seqlen_q), k1 = min_of(k0 + keys, pattern.seqlen_kv);
  const Tile kind = pattern.tile(q0, q1, k0, k1);
  return kind == Tile::full && k1 < k0 + keys ? Tile::partial : kind;
}

// The first key block from n on that sees query tile m, or one that does not if none does.
FAGEN_DEVICE int next_key_block(const Pattern &pattern, int m, int n) {
  const int q0 = m * BLOCK_M, q1 = min_of(q0 + BLOCK_M, pattern.seqlen_q);
  return pattern.next_key(q0, q1, n * BLOCK_N) / BLOCK_N;
}

// The place of a query tile in scratch memory.
FAGEN_DEVICE int tile_index(const fagen_params &p, int batch, int head, int m) {
  if constexpr (VARLEN) return static_cast<int>(Sequence(p, batch).q_block(BLOCK_M, head, m));
  else return (batch * p.heads + head) * tiles_of(p.seqlen_q, BLOCK_M) + m;
}

#endif
