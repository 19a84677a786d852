// What a sparsity pattern must offer. The same header compiles under nvcc and g++, so that a
// pattern is proved against its numpy mask with no GPU.
//
// Queries are rows 0..seqlen_q-1, keys are columns 0..seqlen_kv-1. A pattern keeps some (q, k).
// Kernels walk tiles: rows [q0, q1) by keys [k0, k1), the ends already clipped to the lengths.
#ifndef FAGEN_PATTERN_CONTRACT_H
#define FAGEN_PATTERN_CONTRACT_H

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

FAGEN_HD int min_of(int a, int b) { return a < b ? a : b; }
FAGEN_HD int max_of(int a, int b) { return a > b ? a : b; }
FAGEN_HD Range clip(int begin, int end, int limit) {
  return Range{max_of(begin, 0), min_of(end, limit)};
}

// std::convertible_to without <concepts>, which device compilers may lack.
template <class From, class To>
concept convertible = requires(From from, void (*take)(To)) { take(from); };

// An interval pattern keeps one run of keys per row: masks are then two comparisons (row), and the
// tiles of a row block form one run whose inner part needs no mask (full_keys).
//
//   keep(q, k)          does (q, k) stay
//   row(q)              keys kept by row q                         (clipped to [0, seqlen_kv))
//   column(k)           rows that keep key k                       (clipped to [0, seqlen_q))
//   keys(q0, q1)        smallest run that holds every kept key of the rows
//   full_keys(q0, q1)   keys kept by every one of the rows
//   queries(k0, k1), full_queries(k0, k1)   the transpose, for the backward
//   tile(q0, q1, k0, k1) never skip when an element is kept, never full when one is dropped
template <class P>
concept IntervalPattern = requires(const P p, int i) {
  { P::interval } -> convertible<bool>;
  { p.keep(i, i) } -> convertible<bool>;
  { p.row(i) } -> convertible<Range>;
  { p.column(i) } -> convertible<Range>;
  { p.keys(i, i) } -> convertible<Range>;
  { p.full_keys(i, i) } -> convertible<Range>;
  { p.queries(i, i) } -> convertible<Range>;
  { p.full_queries(i, i) } -> convertible<Range>;
  { p.tile(i, i, i, i) } -> convertible<Tile>;
};

#endif
