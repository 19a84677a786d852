// Moving tiles between the caller's tensors (any strides, fp32 / fp16 / bf16) and fp32 scratch.
#ifndef FAGEN_TILE_CPU_H
#define FAGEN_TILE_CPU_H

#include "device/params.h"
#include "device/simd_cpu.h"

template <int DTYPE>
struct Element {
  typedef uint16_t type;
  FAGEN_INLINE Vec widen(HalfVec v) {
    return DTYPE == FAGEN_FP16 ? from_fp16(v) : from_bf16(v);
  }
  FAGEN_INLINE Vec load(const type *p) { HalfVec v; memcpy(&v, p, sizeof v); return widen(v); }
  FAGEN_INLINE void store(type *p, Vec x, int count) {
    const HalfVec v = DTYPE == FAGEN_FP16 ? to_fp16(x) : to_bf16(x);
    if (count >= LANES) memcpy(p, &v, sizeof v); else memcpy(p, &v, sizeof(type) * count);
  }
};

template <>
struct Element<FAGEN_FP32> {
  typedef float type;
  FAGEN_INLINE Vec load(const type *p) { return ::load(p); }
  FAGEN_INLINE void store(type *p, Vec x, int count) {
    if (count >= LANES) ::store(p, x); else memcpy(p, &x, sizeof(type) * count);
  }
};

constexpr int padded(int n) { return (n + LANES - 1) / LANES * LANES; }

// Up to LANES elements; the rest of the vector is zero.
template <int DTYPE, class T>
FAGEN_INLINE Vec load_some(const T *p, int count) {
  if (count >= LANES) return Element<DTYPE>::load(p);
  T some[LANES] = {};
  memcpy(some, p, sizeof(T) * count);
  return Element<DTYPE>::load(some);
}

// rows of COLUMNS elements -> fp32 rows of padded(COLUMNS); rows in [rows, all_rows) are zero.
template <int DTYPE, int COLUMNS, class T>
static void stage(float *to, const T *from, int64_t stride, int rows, int all_rows) {
  for (int r = 0; r < all_rows; ++r, to += padded(COLUMNS))
    for (int c = 0; c < COLUMNS; c += LANES)
      store(to + c, r < rows ? load_some<DTYPE>(from + r * stride + c, COLUMNS - c) : Vec{});
}

// Swaps rows and columns of a LANES x LANES block, by halves: 8 (of 16), then 4, 2, 1.
template <int HALF = LANES / 2>
FAGEN_INLINE void transpose(Vec (&block)[LANES]) {
  IntVec low, high;
  for (int i = 0; i < LANES; ++i) {
    low[i] = i & HALF ? LANES + i - HALF : i;
    high[i] = i & HALF ? LANES + i : i + HALF;
  }
#pragma GCC unroll 64
  for (int i = 0; i < LANES; ++i)
    if (!(i & HALF)) {
      const Vec a = block[i], b = block[i + HALF];
      block[i] = __builtin_shuffle(a, b, low);
      block[i + HALF] = __builtin_shuffle(a, b, high);
    }
  if constexpr (HALF > 1) transpose<HALF / 2>(block);
}

// Rows of COLUMNS numbers -> columns of WIDTH. get(row, column) gives LANES numbers of a row; rows
// from `rows` on are zero.
template <int COLUMNS, int WIDTH, class Get>
FAGEN_INLINE void stage_transposed(float *to, int rows, Get get) {
  for (int r = 0; r < WIDTH; r += LANES)
    for (int c = 0; c < COLUMNS; c += LANES) {
      Vec block[LANES];
#pragma GCC unroll 64
      for (int i = 0; i < LANES; ++i) block[i] = r + i < rows ? get(r + i, c) : Vec{};
      transpose(block);
#pragma GCC unroll 64
      for (int i = 0; i < LANES; ++i)
        if (c + i < COLUMNS) store(to + (c + i) * WIDTH + r, block[i]);
    }
}

// The way back: columns of WIDTH fp32, each row times its own factor -> `rows` rows, handed out
// as put(row, column, vector, elements).
template <int COLUMNS, int WIDTH, class Put>
FAGEN_INLINE void unstage_transposed(const float *from, const float *factor, int rows, Put put) {
  for (int r = 0; r < rows; r += LANES)
    for (int c = 0; c < COLUMNS; c += LANES) {
      Vec block[LANES];
#pragma GCC unroll 64
      for (int i = 0; i < LANES; ++i)
        block[i] = c + i < COLUMNS ? load(from + (c + i) * WIDTH + r) * load(factor + r) : Vec{};
      transpose(block);
      for (int i = 0; i < LANES && r + i < rows; ++i) put(r + i, c, block[i], COLUMNS - c);
    }
}

// Is every number of a block finite? x * 0 is NaN for the others.
template <int DTYPE, int COLUMNS, class T>
static bool all_finite(const T *p, int64_t stride, int rows) {
  Vec sum = {};
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < COLUMNS; c += LANES)
      sum += 0.0f * load_some<DTYPE>(p + r * stride + c, COLUMNS - c);
  return !any_nan(sum);
}

#endif
