// More patterns whose rows are one run of keys. Query q stands at position q + shift among the keys:
// the last query at the last key.
#ifndef FAGEN_PATTERN_RUNS_H
#define FAGEN_PATTERN_RUNS_H

#include "patterns/contract.h"

// Causal, but every row sees the first PREFIX keys.
template <int PREFIX>
struct PrefixCausal : Runs<PrefixCausal<PREFIX>> {
  static constexpr bool bounded_left = false;
  using Runs<PrefixCausal>::seqlen_q, Runs<PrefixCausal>::seqlen_kv;

  int shift;

  FAGEN_HD explicit PrefixCausal(Lengths n)
      : Runs<PrefixCausal>(n), shift(n.seqlen_kv - n.seqlen_q) {}

  FAGEN_HD Range keys(int, int q1) const {
    return clip(0, max_of(q1 + shift, PREFIX), seqlen_kv);
  }
  FAGEN_HD Range full_keys(int q0, int) const {
    return clip(0, max_of(q0 + 1 + shift, PREFIX), seqlen_kv);
  }
  FAGEN_HD Range queries(int k0, int) const {
    return clip(k0 < PREFIX ? 0 : k0 - shift, seqlen_q, seqlen_q);
  }
  FAGEN_HD Range full_queries(int, int k1) const {
    return clip(k1 <= PREFIX ? 0 : k1 - 1 - shift, seqlen_q, seqlen_q);
  }
};

// Blocks of SIZE positions that see themselves only.
template <int SIZE, bool CAUSAL>
struct BlockDiagonal : Runs<BlockDiagonal<SIZE, CAUSAL>> {
  using Runs<BlockDiagonal>::seqlen_q, Runs<BlockDiagonal>::seqlen_kv;

  int shift;

  FAGEN_HD explicit BlockDiagonal(Lengths n)
      : Runs<BlockDiagonal>(n), shift(n.seqlen_kv - n.seqlen_q) {}

  FAGEN_HD Range keys(int q0, int q1) const {
    return clip(first(q0 + shift), CAUSAL ? q1 + shift : first(q1 - 1 + shift) + SIZE, seqlen_kv);
  }
  FAGEN_HD Range full_keys(int q0, int q1) const {
    const int begin = first(q1 - 1 + shift);
    const int end = CAUSAL ? q0 + 1 + shift : begin + SIZE;
    return clip(begin, begin == first(q0 + shift) ? end : begin, seqlen_kv);
  }
  FAGEN_HD Range queries(int k0, int k1) const {
    return clip((CAUSAL ? k0 : first(k0)) - shift, first(k1 - 1) + SIZE - shift, seqlen_q);
  }
  FAGEN_HD Range full_queries(int k0, int k1) const {
    const int begin = first(k0), end = begin + SIZE;
    return clip((CAUSAL ? k1 - 1 : begin) - shift, (k1 <= end ? end : begin) - shift, seqlen_q);
  }

 private:
  FAGEN_HD static int first(int position) { return floor_to(position, SIZE); }
};

#endif
