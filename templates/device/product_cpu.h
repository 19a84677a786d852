// The one micro-kernel: a block of ROWS x (VECTORS * LANES) sums kept in registers.
//   sum[i][j] += a(i, t) * b[t][j]   for t in [0, steps)
// a is broadcast element by element, so it may lie in memory in any way: a(i, t) is
// a.data[i * a.row + t * a.step]. b is read in whole vectors, b_step floats apart. The loop over t
// is unrolled by the knob UNROLL (a constant of the kernel: the pragma takes no parameter).
// With T = Pair both operands hold two bf16 per 32 bits: one step is two terms.
#ifndef FAGEN_PRODUCT_CPU_H
#define FAGEN_PRODUCT_CPU_H

#include "device/simd_cpu.h"

// Neighbours in the summed dimension, the first in the low half. Need not be aligned.
struct __attribute__((packed, may_alias)) Pair {
  uint32_t bits;
};

template <class T>
struct Operand {
  const T *data;
  int64_t row, step;
};

// Rows of floats or of pairs, to be read in whole vectors.
FAGEN_INLINE const float *vectors(const void *rows) { return (const float *)rows; }

FAGEN_INLINE Vec first_of(Vec pairs) { return (Vec)((IntVec)pairs << 16); }
FAGEN_INLINE Vec second_of(Vec pairs) { return (Vec)((IntVec)pairs & (int)0xffff0000); }

FAGEN_INLINE Vec multiply_add(float a, Vec b, Vec sum) { return a * b + sum; }

#ifdef __AVX512BF16__
FAGEN_INLINE Vec multiply_add(Pair a, Vec b, Vec sum) {
  return _mm512_dpbf16_ps(sum, (__m512bh)b, (__m512bh)_mm512_set1_epi32((int)a.bits));
}
FAGEN_INLINE Vec make_pairs(Vec first, Vec second) {
  const auto apart = _mm512_cvtne2ps_pbh(second, first);
  __attribute__((vector_size(64))) int16_t order;
  for (int i = 0; i < LANES; ++i) order[2 * i] = i, order[2 * i + 1] = LANES + i;
  return (Vec)_mm512_permutexvar_epi16((__m512i)order, (__m512i)apart);
}
FAGEN_INLINE void store_half(void *to, Vec v) {
  const auto half = _mm512_cvtneps_pbh(v);
  memcpy(to, &half, sizeof half);
}
#else
FAGEN_INLINE Vec multiply_add(Pair a, Vec b, Vec sum) {
  const Vec both = (Vec)(IntVec{} + (int)a.bits);
  return second_of(both) * second_of(b) + (first_of(both) * first_of(b) + sum);
}
FAGEN_INLINE Vec make_pairs(Vec first, Vec second) {
  const IntVec low = __builtin_convertvector(to_bf16(first), IntVec);
  return (Vec)(low | __builtin_convertvector(to_bf16(second), IntVec) << 16);
}
FAGEN_INLINE void store_half(void *to, Vec v) {
  const HalfVec half = to_bf16(v);
  memcpy(to, &half, sizeof half);
}
#endif
FAGEN_INLINE void store_pairs(void *to, Vec first, Vec second) {
  const Vec pairs = make_pairs(first, second);
  memcpy(to, &pairs, sizeof pairs);
}

// sum[i][j] += the products above.
template <int ROWS, int VECTORS, class T>
FAGEN_INLINE void add_products(Vec (&sum)[ROWS][VECTORS], Operand<T> a, const float *b,
                               int64_t b_step, int steps) {
#pragma GCC unroll UNROLL
  for (int t = 0; t < steps; ++t) {
    Vec row[VECTORS];
#pragma GCC unroll 64
    for (int j = 0; j < VECTORS; ++j) row[j] = load(b + t * b_step + j * LANES);
#pragma GCC unroll 64
    for (int i = 0; i < ROWS; ++i) {
      const T x = a.data[i * a.row + t * a.step];
#pragma GCC unroll 64
      for (int j = 0; j < VECTORS; ++j) sum[i][j] = multiply_add(x, row[j], sum[i][j]);
    }
  }
}

// init(i, j) gives the sum's start; done(i, j, sum) takes the result, vector by vector.
template <int ROWS, int VECTORS, class T, class Init, class Done>
FAGEN_INLINE void block_product(Operand<T> a, const float *b, int64_t b_step, int steps, Init init,
                                Done done) {
  Vec sum[ROWS][VECTORS];
#pragma GCC unroll 64
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 64
    for (int j = 0; j < VECTORS; ++j) sum[i][j] = init(i, j);
  add_products(sum, a, b, b_step, steps);
#pragma GCC unroll 64
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 64
    for (int j = 0; j < VECTORS; ++j) done(i, j, sum[i][j]);
}

#endif
