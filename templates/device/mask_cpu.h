// Which elements of a tile stay: WIDTH query rows (one per SIMD lane) by at most KEYS keys.
#ifndef FAGEN_MASK_CPU_H
#define FAGEN_MASK_CPU_H

#include "device/simd_cpu.h"
#include "patterns/contract.h"

// Any pattern: every element of the tile is asked for, once.
template <class Pattern, int WIDTH, int KEYS>
struct TileMask {
  int32_t kept[KEYS * WIDTH];
  int q0, rows;

  void set_rows(const Pattern &, int first, int count) { q0 = first, rows = count; }

  // Keys [k0, k0 + count); the others of the tile do not stay.
  void set_keys(const Pattern &pattern, int k0, int count) {
    for (int n = 0; n < KEYS; ++n)
      for (int r = 0; r < WIDTH; ++r)
        kept[n * WIDTH + r] = -((n < count) & (r < rows) & pattern.keep(q0 + r, k0 + n));
  }

  bool keeps(int n, int r) const { return kept[n * WIDTH + r] != 0; }
  IntVec keeps_lanes(int n, int j) const { return load(kept + n * WIDTH + j * LANES); }
};

// A run of keys per row: two comparisons.
template <IntervalPattern Pattern, int WIDTH, int KEYS>
struct TileMask<Pattern, WIDTH, KEYS> {
  int32_t begin[WIDTH], end[WIDTH];
  int k0;

  void set_rows(const Pattern &pattern, int first, int count) {
    for (int r = 0; r < WIDTH; ++r) {
      const Range keys = r < count ? pattern.row(first + r) : Range{0, 0};
      begin[r] = keys.begin;
      end[r] = keys.end;
    }
  }

  // A tile ends early only where the last row's run does, so the count needs no test.
  void set_keys(const Pattern &, int first, int) { k0 = first; }

  bool keeps(int n, int r) const { return begin[r] <= k0 + n && k0 + n < end[r]; }
  IntVec keeps_lanes(int n, int j) const {
    return (load(begin + j * LANES) <= k0 + n) & (load(end + j * LANES) > k0 + n);
  }
};

// Where a walk over the keys of some rows, or the rows of some keys, may stop.
template <class Pattern>
int end_of_keys(const Pattern &pattern, int q0, int q1) {
  if constexpr (IntervalPattern<Pattern>) return pattern.keys(q0, q1).end;
  else return pattern.seqlen_kv;
}

// The part of keys [k0, k1) that some of the rows need, to within STEP keys of either end. Few keys
// of a tile may be wanted: those of a narrow random block, or a few global ones.
template <int STEP, class Pattern>
Range needed_keys(const Pattern &pattern, int q0, int q1, int k0, int k1) {
  if constexpr (IntervalPattern<Pattern>) {
    const Range keys = pattern.keys(q0, q1);
    return Range{k0, keys.begin < k1 ? min_of(k1, keys.end) : k0};
  }
  const int first = pattern.next_key(q0, q1, k0);
  if (first >= k1) return Range{k0, k0};
  const int begin = k0 + (first - k0) / STEP * STEP;
  for (int end = k1;;) {
    const int last = begin + (end - begin - 1) / STEP * STEP;
    if (last == begin || pattern.next_key(q0, q1, last) < end) return Range{begin, end};
    end = last;
  }
}

template <class Pattern>
int end_of_queries(const Pattern &pattern, int k0, int k1) {
  if constexpr (IntervalPattern<Pattern>) return pattern.queries(k0, k1).end;
  else return pattern.seqlen_q;
}

#endif
