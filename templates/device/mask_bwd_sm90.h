// Which scores of a step the pattern drops. A thread's rows are keys k and k + 8, its columns pairs
// of queries, eight apart.
#ifndef FAGEN_MASK_BWD_SM90_H
#define FAGEN_MASK_BWD_SM90_H

#include "device/steps_bwd_sm90.h"

typedef float Scores[BLOCK_M / 2];  // 64 keys x BLOCK_M queries

// The first of the thread's two keys, in the 64 keys of consumer w.
FAGEN_DEVICE int first_key(int n, int w) {
  return n * BLOCK_N + 64 * w + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
}

// The thread's eight elements of 16 queries from q0 on, a bit for each in the accumulator's order.
template <class P>
FAGEN_DEVICE uint32_t kept_of_16(const P &pattern, int q0, int k) {
  uint32_t kept = 0;
#pragma unroll 1
  for (int i = 0; i < 8; i++) {
    const int query = q0 + 2 * (threadIdx.x % 4) + i / 4 * 8 + i % 2, key = k + i / 2 % 2 * 8;
    if (query < pattern.seqlen_q && key < pattern.seqlen_kv && pattern.keep(query, key))
      kept |= 1 << i;
  }
  return kept;
}
template <BitPattern P>
FAGEN_DEVICE uint32_t kept_of_16(const P &pattern, int q0, int k) {
  const int t = threadIdx.x % 4;
  const uint32_t a = pattern.query_bits(k, q0) >> 2 * t, b = pattern.query_bits(k + 8, q0) >> 2 * t;
  return (a & 3) | (b & 3) << 2 | (a >> 8 & 3) << 4 | (b >> 8 & 3) << 6;
}

// Known before the scores are: a bit per score, in the order of the accumulators. The warp first
// asks about 16 queries by its 16 keys at once, a lane for each, because most are kept or dropped
// whole.
template <class P, bool MASKED>
struct MaskOf {
  static constexpr int WORDS = ceil_div(BLOCK_M, 64);
  uint32_t bits[WORDS];

  FAGEN_DEVICE MaskOf(const fagen_params &p, int w, const WalkOf<P> &walk) {
    const P pattern = walk.pattern(p);
    const int lane = threadIdx.x % 32, k = first_key(walk.n, w), q0 = walk.m * BLOCK_M;
    Tile kind = Tile::skip;
    if (lane < BLOCK_M / 16) kind = tile_kind(pattern, q0 + 16 * lane, 16, k - lane / 4, 16);
    const uint32_t some = __ballot_sync(FULL_WARP, kind != Tile::skip);
    const uint32_t full = __ballot_sync(FULL_WARP, kind == Tile::full);
#pragma unroll
    for (int word = 0; word < WORDS; word++) {
      uint32_t kept = 0;
#pragma unroll 1
      for (int i = min_of(4, BLOCK_M / 16 - 4 * word) - 1; i >= 0; i--) {
        const int group = 4 * word + i;
        kept <<= 8;
        if (full >> group & 1) kept |= 255;
        else if (some >> group & 1) kept |= kept_of_16(pattern, q0 + 16 * group, k);
      }
      bits[word] = kept;
    }
  }
  FAGEN_DEVICE void apply(Scores &s) const {
#pragma unroll
    for (int i = 0; i < BLOCK_M / 2; i++)
      if (!(bits[i / 32] >> i % 32 & 1)) s[i] = 0.f;
  }
};

// One run of queries per key: two comparisons.
template <IntervalPattern P>
struct MaskOf<P, true> {
  const fagen_params &p;
  const int w;
  const WalkOf<P> &walk;
  FAGEN_DEVICE MaskOf(const fagen_params &p, int w, const WalkOf<P> &walk)
      : p(p), w(w), walk(walk) {}
  FAGEN_DEVICE void apply(Scores &s) const {
    const P pattern = walk.pattern(p);
    const int k = first_key(walk.n, w), q = walk.m * BLOCK_M + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const Range kept = k + 8 * r < pattern.seqlen_kv ? pattern.column(k + 8 * r) : Range{0, 0};
      const uint32_t from = q - kept.begin, count = max_of(kept.end - kept.begin, 0);
#pragma unroll
      for (int j = 0; j < BLOCK_M / 8; j++) {
        if (from + 8 * j >= count) s[4 * j + 2 * r] = 0.f;
        if (from + 8 * j + 1 >= count) s[4 * j + 2 * r + 1] = 0.f;
      }
    }
  }
};

// Of a step that needs none.
template <class P>
struct MaskOf<P, false> {
  FAGEN_DEVICE MaskOf(const fagen_params &, int, const WalkOf<P> &) {}
  FAGEN_DEVICE void apply(Scores &) const {}
};
template <bool MASKED>
using Mask = MaskOf<Pattern, MASKED>;

#endif
