// What every sm_90a kernel needs: addresses, warp-uniform values, packing, fast exp2.
#ifndef FAGEN_SM90_H
#define FAGEN_SM90_H

#include <stdint.h>

#include "device/params.h"

#define FAGEN_DEVICE __device__ __forceinline__

constexpr uint32_t FULL_WARP = 0xffffffffu;
constexpr float LN2 = 0.693147180559945f;
constexpr float LOG2E = 1.442695040888963f;

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }

FAGEN_DEVICE uint32_t shared_address(const void *p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// The same value in every lane, and known to the compiler as such: roles, stages and tile
// coordinates stay in uniform registers, so that no move stands before each wgmma.
FAGEN_DEVICE int uniform(int x) { return __shfl_sync(FULL_WARP, x, 0); }

// True in one lane of a converged warp, and ptxas knows that it is one.
FAGEN_DEVICE bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(elected));
  return elected;
}

FAGEN_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two floats to two 16-bit values, `low` in the lower half.
template <int TYPE>
FAGEN_DEVICE uint32_t pack(float low, float high) {
  static_assert(TYPE == FAGEN_BF16 || TYPE == FAGEN_FP16, "a 16-bit type");
  uint32_t r;
  if constexpr (TYPE == FAGEN_BF16)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// Shifts that give 0 for any count above 31.
FAGEN_DEVICE uint32_t shift_right(uint32_t x, int count) {
  uint32_t r;
  asm("shr.u32 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(count));
  return r;
}
FAGEN_DEVICE uint32_t shift_left(uint32_t x, int count) {
  uint32_t r;
  asm("shl.b32 %0, %1, %2;" : "=r"(r) : "r"(x), "r"(count));
  return r;
}

// 16 bytes of zeros.
FAGEN_DEVICE void store_shared_zero(uint32_t to) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(0u), "r"(0u), "r"(0u), "r"(0u)
               : "memory");
}

// A 4x4 transpose within each quad of lanes: lane t gets register t of lanes 0..3.
FAGEN_DEVICE void quad_transpose(uint32_t (&r)[4], int t) {
#pragma unroll
  for (int distance = 1; distance <= 2; distance *= 2)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i & distance) continue;
      uint32_t &low = r[i], &high = r[i + distance];
      const bool odd = t & distance;
      const uint32_t other = __shfl_xor_sync(FULL_WARP, odd ? low : high, distance);
      (odd ? low : high) = other;
    }
}

// Give registers to the warpgroups that need them. All warps of a warpgroup call it.
template <int COUNT>
FAGEN_DEVICE void release_registers_to() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
FAGEN_DEVICE void claim_registers_to() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// Programmatic dependent launch: let the next kernel start; wait for the one before to end.
FAGEN_DEVICE void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
FAGEN_DEVICE void wait_for_previous_kernel() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

#endif
