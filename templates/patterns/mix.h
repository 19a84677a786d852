// Heads that follow different patterns: the first COUNT of every round of heads the first member, the
// next ones the second, and so on. A member is made where it is asked, from the lengths, so that the
// head's number in the round is all there is to hold.
#ifndef FAGEN_PATTERN_MIX_H
#define FAGEN_PATTERN_MIX_H

#include "patterns/contract.h"

template <int HEADS, class P>
struct HeadsOf {
  static constexpr int heads = HEADS;
  using pattern = P;
};

template <class... Groups>
struct Mix {
  static constexpr bool interval = false;
  static constexpr int ROUND = (Groups::heads + ...);
  int seqlen_q, seqlen_kv, head;

  FAGEN_HD Mix(const fagen_params &p, int, int head) : Mix(p.seqlen_q, p.seqlen_kv, head) {}
  FAGEN_HD Mix after(int n) const { return Mix(seqlen_q, seqlen_kv, head + n); }

  FAGEN_HD bool keep(int q, int k) const {
    return ask([&](const auto &p) { return p.keep(q, k); });
  }
  FAGEN_HD int next_key(int q0, int q1, int k) const {
    return ask([&](const auto &p) { return p.next_key(q0, q1, k); });
  }
  FAGEN_HD int next_query(int k0, int k1, int q) const {
    return ask([&](const auto &p) { return p.next_query(k0, k1, q); });
  }
  FAGEN_HD bool full(int q0, int q1, int k0, int k1) const {
    return ask([&](const auto &p) { return p.full(q0, q1, k0, k1); });
  }
  FAGEN_HD Tile tile(int q0, int q1, int k0, int k1) const {
    return ask([&](const auto &p) { return p.tile(q0, q1, k0, k1); });
  }

  // For 16 elements the head is looked at once.
  FAGEN_HD uint32_t key_bits(int q, int k) const {
    return q >= seqlen_q ? 0 : ask([&](const auto &p) {
      return bits(k, seqlen_kv, [&](int i) { return p.keep(q, i); });
    });
  }
  FAGEN_HD uint32_t query_bits(int k, int q) const {
    return k >= seqlen_kv ? 0 : ask([&](const auto &p) {
      return bits(q, seqlen_q, [&](int i) { return p.keep(i, k); });
    });
  }

 private:
  FAGEN_HD Mix(int seqlen_q, int seqlen_kv, int head)
      : seqlen_q(seqlen_q), seqlen_kv(seqlen_kv), head(head % ROUND) {}

  template <class F>
  FAGEN_HD auto ask(F f) const {
    return ask<0, F, Groups...>(f);
  }
  template <int BEFORE, class F, class First, class... Rest>
  FAGEN_HD auto ask(F f) const {
    if constexpr (sizeof...(Rest) > 0)
      if (head >= BEFORE + First::heads) return ask<BEFORE + First::heads, F, Rest...>(f);
    return f(typename First::pattern(Lengths{seqlen_q, seqlen_kv}));
  }

  template <class Keeps>
  FAGEN_HD static uint32_t bits(int first, int limit, Keeps keeps) {
    uint32_t kept = 0;
    for (int i = 0; i < 16 && first + i < limit; ++i) kept |= uint32_t{keeps(first + i)} << i;
    return kept;
  }
};

#endif
