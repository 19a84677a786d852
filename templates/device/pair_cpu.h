// Tiles of bf16 pairs, for dot products that multiply two neighbours at once.
#ifndef FAGEN_PAIR_CPU_H
#define FAGEN_PAIR_CPU_H

#include "device/product_cpu.h"
#include "device/tile_cpu.h"

// Up to LANES pairs of neighbours in a row of bf16; the rest is zero.
FAGEN_INLINE Vec load_pairs(const uint16_t *p, int count) {
  Vec v = {};
  if (count >= LANES) memcpy(&v, p, sizeof v);
  else memcpy(&v, p, sizeof(Pair) * count);
  return v;
}

// Pairs along the columns: a plain copy, rows of padded(COLUMNS / 2) pairs.
template <int COLUMNS>
static void stage_pairs(Pair *to, const uint16_t *from, int64_t stride, int rows, int all_rows) {
  constexpr int PAIRS = COLUMNS / 2;
  for (int r = 0; r < all_rows; ++r, to += padded(PAIRS))
    for (int c = 0; c < PAIRS; c += LANES) {
      const Vec v = r < rows ? load_pairs(from + r * stride + 2 * c, PAIRS - c) : Vec{};
      memcpy(to + c, &v, sizeof v);
    }
}

// Pairs along the rows: row r of the result holds rows 2r and 2r + 1.
template <int COLUMNS>
static void stage_row_pairs(Pair *to, const uint16_t *from, int64_t stride, int rows) {
  for (int r = 0; r < rows; r += 2, to += padded(COLUMNS))
    for (int c = 0; c < COLUMNS; c += LANES) {
      const uint16_t *p = from + r * stride + c;
      const Vec first = load_some<FAGEN_BF16>(p, COLUMNS - c);
      const Vec second = r + 1 < rows ? load_some<FAGEN_BF16>(p + stride, COLUMNS - c) : Vec{};
      const IntVec both = (IntVec)second | ((IntVec)first >> 16 & 0xffff);
      memcpy(to + c, &both, sizeof both);
    }
}

#endif
