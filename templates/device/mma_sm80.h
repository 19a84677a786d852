// Fragments: how tensor-core operands and accumulators lie in the lanes of a warp.
//
// In every 16x8 accumulator tile a lane (g = lane / 4, t = lane % 4) holds
//   c[0], c[1]: row g,     columns 2t, 2t + 1          c[2], c[3]: row g + 8, the same columns
// so two neighbouring tiles, packed to 16 bits, are the 16x16 A operand of the next product.
#pragma once

#include "device/ptx_sm80.h"

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
