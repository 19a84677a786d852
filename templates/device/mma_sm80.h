// Fragments: how tensor-core operands and accumulators lie in the lanes of a warp.
//
// In every 16x8 accumulator tile a lane (g = lane / 4, t = lane % 4) holds
//   c[0], c[1]: row g,     columns 2t, 2t + 1          c[2], c[3]: row g + 8, the same columns
// so two neighbouring tiles, packed to 16 bits, are the 16x16 A operand of the next product.
#pragma once

#include "device/ptx_sm80.h"
#include "device/tile_sm80.h"

constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;
constexpr float NEG_INF = -__builtin_huge_valf();

// A row of an accumulator lies in the four lanes of a quad.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// The products of two pairs, summed.
__device__ __forceinline__ float dot_pairs(uint32_t a, uint32_t b) {
  return unpack_low(a) * unpack_low(b) + unpack_high(a) * unpack_high(b);
}

// The A operand of k step `step` out of accumulators: columns 16 step .. 16 step + 15.
template <int TILES>
__device__ __forceinline__ void as_operand(uint32_t (&a)[4], const float (&c)[TILES][4],
                                           int step) {
#pragma unroll
  for (int r = 0; r < 4; ++r)
    a[r] = pack(c[2 * step + r / 2][2 * (r % 2)], c[2 * step + r / 2][2 * (r % 2) + 1]);
}

// The scores as exponents of two. A zero scale would turn a masked -inf into NaN.
__device__ __forceinline__ float exponent_scale(float scale) {
  return scale == 0.f ? 1e-30f : scale * LOG2E;
}

// c += A B over STEPS k steps: put_a(r, step, m) and put_b(r, step, n) fetch 16x16 operands, and
// columns from 16 `limit` on are left alone (warps may share a width unevenly).
template <int STEPS, int M, int TILES, class A, class B>
__device__ __forceinline__ void multiply(float (&c)[M][TILES][4], A put_a, B put_b,
                                         int limit = TILES / 2) {
#pragma unroll
  for (int step = 0; step < STEPS; ++step) {
    uint32_t a[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) put_a(a[m], step, m);
#pragma unroll
    for (int n = 0; n < TILES / 2; ++n) {
      if (n >= limit) break;
      uint32_t b[4];
      put_b(b, step, n);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma(c[m][2 * n], a[m], b[0], b[1]);
        mma(c[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

template <int M, int TILES>
__device__ __forceinline__ void clear(float (&c)[M][TILES][4]) {
#pragma unroll
  for (int i = 0; i < M * TILES * 4; ++i) c[i / 4 / TILES][i / 4 % TILES][i % 4] = 0.f;
}

// c = A B^T: both operands lie in shared memory with the summed dimension along their rows.
template <int DIM, int M, int TILES>
__device__ __forceinline__ void multiply_rows(float (&c)[M][TILES][4], const Cursor<DIM> &a,
                                              const Cursor<DIM> &b) {
  clear(c);
  multiply<Layout<DIM>::steps>(
      c, [&](uint32_t(&r)[4], int step, int m) { ldmatrix(r, a.at(16 * m, 2 * step)); },
      [&](uint32_t(&r)[4], int step, int n) { ldmatrix(r, b.at(16 * n, 2 * step)); });
}
