// Dense, causal and sliding-window attention are one shape: a diagonal band. Row q keeps the keys
// diagonal(q) - LEFT .. diagonal(q) + RIGHT, where diagonal(q) = q + shift. UNBOUNDED lifts a side.
#ifndef FAGEN_PATTERN_BAND_H
#define FAGEN_PATTERN_BAND_H

#include "patterns/contract.h"

// top_left: the diagonal starts at (0, 0). bottom_right: it ends at (seqlen_q-1, seqlen_kv-1).
enum class Align { top_left, bottom_right };

constexpr int UNBOUNDED = -1;

template <int LEFT, int RIGHT, Align ALIGN>
struct Band : Runs<Band<LEFT, RIGHT, ALIGN>> {
  static constexpr bool bounded_left = LEFT != UNBOUNDED;
  static constexpr bool bounded_right = RIGHT != UNBOUNDED;
  using Runs<Band>::seqlen_q, Runs<Band>::seqlen_kv;

  int shift;

  FAGEN_HD explicit Band(Lengths n)
      : Runs<Band>(n), shift(ALIGN == Align::bottom_right ? n.seqlen_kv - n.seqlen_q : 0) {}

  FAGEN_HD Range keys(int q0, int q1) const {
    return clip(bounded_left ? q0 + shift - LEFT : 0,
                bounded_right ? q1 + shift + RIGHT : seqlen_kv, seqlen_kv);
  }

  FAGEN_HD Range full_keys(int q0, int q1) const {
    return clip(bounded_left ? q1 - 1 + shift - LEFT : 0,
                bounded_right ? q0 + 1 + shift + RIGHT : seqlen_kv, seqlen_kv);
  }

  FAGEN_HD Range queries(int k0, int k1) const {
    return clip(bounded_right ? k0 - shift - RIGHT : 0,
                bounded_left ? k1 - shift + LEFT : seqlen_q, seqlen_q);
  }

  FAGEN_HD Range full_queries(int k0, int k1) const {
    return clip(bounded_right ? k1 - 1 - shift - RIGHT : 0,
                bounded_left ? k0 + 1 - shift + LEFT : seqlen_q, seqlen_q);
  }
};

using Dense = Band<UNBOUNDED, UNBOUNDED, Align::bottom_right>;
using Causal = Band<UNBOUNDED, 0, Align::bottom_right>;
using CausalTopLeft = Band<UNBOUNDED, 0, Align::top_left>;
template <int LEFT, int RIGHT>
using Window = Band<LEFT, RIGHT, Align::bottom_right>;

#endif
