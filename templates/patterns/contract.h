// What a sparsity pattern must offer. The same header compiles under nvcc and g++, so that a
// pattern is proved against its numpy mask with no GPU.
//
// Queries are rows 0..seqlen_q-1, keys are columns 0..seqlen_kv-1. A pattern keeps some (q, k).
// Kernels walk tiles: rows [q0, q1) by keys [k0, k1), the ends already clipped to the lengths.
#ifndef FAGEN_PATTERN_CONTRACT_H
#define FAGEN_PATTERN_CONTRACT_H

#include "device/params.h"

#ifdef __CUDACC__
#define FAGEN_HD __host__ __device__ __forceinline__
#else
#define FAGEN_HD inline
#endif

struct Lengths {
  int seqlen_q, seqlen_kv;
};

// A half-open interval. Empty when end <= begin.
struct Range {
  int begin, end;
};

enum class Tile { skip, partial, full };

FAGEN_HD constexpr int min_of(int a, int b) { return a < b ? a : b; }
FAGEN_HD constexpr int max_of(int a, int b) { return a > b ? a : b; }
FAGEN_HD Range clip(int begin, int end, int limit) {
  return Range{max_of(begin, 0), min_of(end, limit)};
}

// Rounded down, for any sign of a.
FAGEN_HD constexpr int floor_div(int a, int b) { return (a - (a < 0 ? b - 1 : 0)) / b; }
FAGEN_HD constexpr int floor_to(int a, int step) { return floor_div(a, step) * step; }

// std::convertible_to without <concepts>, which device compilers may lack.
template <class From, class To>
concept convertible = requires(From from, void (*take)(To)) { take(from); };

// Any pattern. The walks are exact: a kernel that goes from next_key to next_key touches no tile
// that could have been skipped. (A mask that is data may name an earlier key: lists.h, documents.h.)
//
//   keep(q, k)             does (q, k) stay
//   next_key(q0, q1, k)    the first key from k on that one of the rows keeps, seqlen_kv if none
//   next_query(k0, k1, q)  the transpose, for the backward, seqlen_q if none
//   full(q0, q1, k0, k1)   are all elements kept; may say no where they are
//   tile(q0, q1, k0, k1)   skip exactly when no element is kept, else full or partial
template <class P>
concept TilePattern = requires(const P p, int i) {
  { P::interval } -> convertible<bool>;
  { p.keep(i, i) } -> convertible<bool>;
  { p.next_key(i, i, i) } -> convertible<int>;
  { p.next_query(i, i, i) } -> convertible<int>;
  { p.full(i, i, i, i) } -> convertible<bool>;
  { p.tile(i, i, i, i) } -> convertible<Tile>;
};

// An interval pattern keeps one run of keys per row: masks are then two comparisons (row), and the
// tiles of a row block form one run whose inner part needs no mask (full_keys).
//
//   row(q)              keys kept by row q                         (clipped to [0, seqlen_kv))
//   column(k)           rows that keep key k                       (clipped to [0, seqlen_q))
//   keys(q0, q1)        the run of keys that one of the rows keeps
//   full_keys(q0, q1)   keys kept by every one of the rows
//   queries(k0, k1), full_queries(k0, k1)   the transpose, for the backward
template <class P>
concept IntervalPattern = TilePattern<P> && P::interval && requires(const P p, int i) {
  { p.row(i) } -> convertible<Range>;
  { p.column(i) } -> convertible<Range>;
  { p.keys(i, i) } -> convertible<Range>;
  { p.full_keys(i, i) } -> convertible<Range>;
  { p.queries(i, i) } -> convertible<Range>;
  { p.full_queries(i, i) } -> convertible<Range>;
};

// A pattern that is data of the call, or differs from head to head, is made from the parameters.
template <class P>
concept DataPattern = requires(const fagen_params &p, int i) { P(p, i, i); };

// One that differs from head to head also knows the pattern of the n-th query head after its own.
template <class P>
concept HeadPattern = DataPattern<P> && requires(const P p, int n) { { p.after(n) } -> convertible<P>; };

// One that answers for 16 elements at once, as bits, where they start at a multiple of 16:
//
//   key_bits(q, k)     which keys k .. k + 15 stay with row q; none does past the lengths
//   query_bits(k, q)   which rows q .. q + 15 keep key k
template <class P>
concept BitPattern = TilePattern<P> && requires(const P p, int i) {
  { p.key_bits(i, i) } -> convertible<uint32_t>;
  { p.query_bits(i, i) } -> convertible<uint32_t>;
};

// The pattern of one query head.
template <class P>
FAGEN_HD P pattern_of(const fagen_params &p, int batch, int head) {
  if constexpr (DataPattern<P>) return P(p, batch, head);
  else return P(Lengths{p.seqlen_q, p.seqlen_kv});
}

// The pattern of the n-th query head after the one that `pattern` is for.
template <class P>
FAGEN_HD const P &head_after(const P &pattern, int) { return pattern; }
template <HeadPattern P>
FAGEN_HD P head_after(const P &pattern, int n) { return pattern.after(n); }

// What follows from the runs of an interval pattern P, which inherits from Runs<P>.
template <class P>
struct Runs {
  static constexpr bool interval = true;
  int seqlen_q, seqlen_kv;

  FAGEN_HD explicit Runs(Lengths n) : seqlen_q(n.seqlen_q), seqlen_kv(n.seqlen_kv) {}

  FAGEN_HD Range row(int q) const { return self().keys(q, q + 1); }
  FAGEN_HD Range column(int k) const { return self().queries(k, k + 1); }

  FAGEN_HD bool keep(int q, int k) const {
    const Range r = row(q);
    return r.begin <= k && k < r.end;
  }

  FAGEN_HD int next_key(int q0, int q1, int k) const {
    return first_in(self().keys(q0, q1), k, seqlen_kv);
  }
  FAGEN_HD int next_query(int k0, int k1, int q) const {
    return first_in(self().queries(k0, k1), q, seqlen_q);
  }

  FAGEN_HD bool full(int q0, int q1, int k0, int k1) const {
    const Range all = self().full_keys(q0, q1);
    return all.begin <= k0 && k1 <= all.end;
  }
  FAGEN_HD Tile tile(int q0, int q1, int k0, int k1) const {
    const Range some = self().keys(q0, q1);
    if (max_of(some.begin, k0) >= min_of(some.end, k1)) return Tile::skip;
    return full(q0, q1, k0, k1) ? Tile::full : Tile::partial;
  }

 private:
  FAGEN_HD const P &self() const { return static_cast<const P &>(*this); }
  FAGEN_HD static int first_in(Range r, int from, int none) {
    const int first = max_of(r.begin, from);
    return first < r.end ? first : none;
  }
};

#endif
