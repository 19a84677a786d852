// The one micro-kernel: a block of ROWS x (VECTORS * LANES) sums kept in registers.
//   sum[i][j] += a(i, t) * b[t][j]   for t in [0, steps)
// a is broadcast element by element, so it may lie in memory in any way: a(i, t) is
// a.data[i * a.row + t * a.step]. b is read in whole vectors, b_step floats apart. The loop over t
// is unrolled by the knob UNROLL (a constant of the kernel: the pragma takes no parameter).
#ifndef FAGEN_PRODUCT_CPU_H
#define FAGEN_PRODUCT_CPU_H

#include "device/simd_cpu.h"

template <class T>
struct Operand {
  const T *data;
  int64_t row, step;
};

FAGEN_INLINE Vec multiply_add(float a, Vec b, Vec sum) { return a * b + sum; }

// init(i, j) gives the sum's start; done(i, j, sum) takes the result, vector by vector.
template <int ROWS, int VECTORS, class T, class Init, class Done>
FAGEN_INLINE void block_product(Operand<T> a, const float *b, int64_t b_step, int steps, Init init,
                                Done done) {
  Vec sum[ROWS][VECTORS];
#pragma GCC unroll 64
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 64
    for (int j = 0; j < VECTORS; ++j) sum[i][j] = init(i, j);
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
#pragma GCC unroll 64
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 64
    for (int j = 0; j < VECTORS; ++j) done(i, j, sum[i][j]);
}

#endif
