// The arithmetic of one step: 64 keys of a warpgroup by BLOCK_M queries, everything transposed, so
// that a thread's P and dS are the register operands of dV += P dO and dK += dS Q as they stand.
#ifndef FAGEN_STEP_BWD_SM90_H
#define FAGEN_STEP_BWD_SM90_H

#include "device/mask_bwd_sm90.h"

typedef uint32_t Packed[BLOCK_M / 4];  // scores in 16 bits

// d = A B', reduced over COLUMNS; both row-major in shared memory.
template <int N, int COLUMNS, class A, class B>
FAGEN_DEVICE void multiply_columns(float (&d)[N / 2], uint32_t a, uint32_t b) {
  const uint32_t at_a = A::k_major(a), at_b = B::k_major(b);
  pin(d);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < COLUMNS / 16; k++)
    Wgmma<N>::template shared<A::high, B::high, 0, 0>(d, at_a + A::k_major_step(k),
                                                      at_b + B::k_major_step(k), k > 0);
  wgmma_commit();
  pin(d);
}

// d += A B, reduced over the BLOCK_M rows of B. At most 128 columns at a time: one instruction's
// registers must fit in what a thread has before setmaxnreg.
template <class B, int FIRST, int N>
FAGEN_DEVICE void multiply_rows_from(float (&d)[N / 2], const Packed &a, uint32_t at_b) {
  constexpr int WIDTH = N - FIRST < 128 ? N - FIRST : 128;
  float(&part)[WIDTH / 2] = reinterpret_cast<float(&)[WIDTH / 2]>(d[FIRST / 2]);
  constexpr int SHIFT = FIRST / B::panel_columns * (B::panel_bytes >> 4);
#pragma unroll
  for (int k = 0; k < BLOCK_M / 16; k++)
    Wgmma<WIDTH>::template registers<B::high, 1>(part, a + 4 * k,
                                                 at_b + SHIFT + B::mn_major_step(k), 1);
  if constexpr (FIRST + WIDTH < N) multiply_rows_from<B, FIRST + WIDTH, N>(d, a, at_b);
}
template <int N, class B>
FAGEN_DEVICE void multiply_rows(float (&d)[N / 2], Packed &a, uint32_t b) {
  pin(d);
  pin(a);
  wgmma_fence();
  multiply_rows_from<B, 0, N>(d, a, B::mn_major(b));
  wgmma_commit();
  pin(d);
  pin(a);
}

FAGEN_DEVICE float2 load_pair(uint32_t from) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(from));
  return v;
}

// s = exp2(s * scale - lse); `lse` is the thread's address in the stage, two queries at a time.
FAGEN_DEVICE void probabilities(Scores &s, float scale_log2, uint32_t lse) {
#pragma unroll
  for (int j = 0; j < BLOCK_M / 8; j++) {
    const float2 l = load_pair(lse + 32 * j);
    s[4 * j] = exp2_fast(fmaf(s[4 * j], scale_log2, -l.x));
    s[4 * j + 1] = exp2_fast(fmaf(s[4 * j + 1], scale_log2, -l.y));
    s[4 * j + 2] = exp2_fast(fmaf(s[4 * j + 2], scale_log2, -l.x));
    s[4 * j + 3] = exp2_fast(fmaf(s[4 * j + 3], scale_log2, -l.y));
  }
}

FAGEN_DEVICE void pack_all(Packed &to, const Scores &from) {
#pragma unroll
  for (int i = 0; i < BLOCK_M / 4; i++) to[i] = pack<DTYPE>(from[2 * i], from[2 * i + 1]);
}

FAGEN_DEVICE float2 unpack(uint32_t two) {
  if constexpr (DTYPE == FAGEN_BF16)
    return {__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u)};
  float2 v;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\n"
      "cvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}"
      : "=f"(v.x), "=f"(v.y)
      : "r"(two));
  return v;
}

// dS = P * (dP - delta), from P in fp32; packs both, eight queries at a time, so that registers
// are free again as early as possible.
FAGEN_DEVICE void score_gradients(Packed &ds, Packed &p16, const Scores &p, const Scores &dp,
                                  uint32_t delta) {
#pragma unroll
  for (int j = 0; j < BLOCK_M / 8; j++) {
    const float2 d = load_pair(delta + 32 * j);
    ds[2 * j] = pack<DTYPE>(p[4 * j] * (dp[4 * j] - d.x), p[4 * j + 1] * (dp[4 * j + 1] - d.y));
    ds[2 * j + 1] =
        pack<DTYPE>(p[4 * j + 2] * (dp[4 * j + 2] - d.x), p[4 * j + 3] * (dp[4 * j + 3] - d.y));
    p16[2 * j] = pack<DTYPE>(p[4 * j], p[4 * j + 1]);
    p16[2 * j + 1] = pack<DTYPE>(p[4 * j + 2], p[4 * j + 3]);
    asm volatile("" : "+r"(p16[2 * j]), "+r"(p16[2 * j + 1])::"memory");
    asm volatile("" : "+r"(ds[2 * j]), "+r"(ds[2 * j + 1])::"memory");
  }
}

// The same from packed P, when fp32 P does not fit beside dP.
FAGEN_DEVICE void score_gradients(Packed &ds, const Packed &p16, const Scores &dp, uint32_t delta) {
#pragma unroll
  for (int j = 0; j < BLOCK_M / 8; j++) {
    const float2 d = load_pair(delta + 32 * j);
    const float2 low = unpack(p16[2 * j]), high = unpack(p16[2 * j + 1]);
    ds[2 * j] = pack<DTYPE>(low.x * (dp[4 * j] - d.x), low.y * (dp[4 * j + 1] - d.y));
    ds[2 * j + 1] = pack<DTYPE>(high.x * (dp[4 * j + 2] - d.x), high.y * (dp[4 * j + 3] - d.y));
    asm volatile("" : "+r"(ds[2 * j]), "+r"(ds[2 * j + 1])::"memory");
  }
}

// dS of 64 keys, panel w of the tile, rows are queries: what dQ = dS K reads.
FAGEN_DEVICE void store_gradients(uint32_t tile, int w, const Packed &ds) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int row = lane % 8 + 8 * (lane / 16), chunk = 2 * warp + lane / 8 % 2;
  const uint32_t to = tile + w * DsTile::panel_bytes + DsTile::chunk(row, chunk);
#pragma unroll
  for (int j = 0; j < BLOCK_M / 16; j++)
    store_matrix_transposed(to + 16 * j * DsTile::swizzle, ds[4 * j], ds[4 * j + 1], ds[4 * j + 2],
                            ds[4 * j + 3]);
}

// A result of 64 keys by N dims: to 16 bits, into rows of T, and out through TMA.
template <class T, int N>
FAGEN_DEVICE void stage_output(uint32_t rows, const float (&d)[N / 2], float scale) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll
  for (int j = 0; j < N / 16; j++) {
    uint32_t v[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
      v[i] = pack<DTYPE>(d[8 * j + 2 * i] * scale, d[8 * j + 2 * i + 1] * scale);
    store_matrix(rows + T::chunk(16 * warp + lane % 16, 2 * j + lane / 16), v[0], v[1], v[2], v[3]);
  }
}
template <class T>
FAGEN_DEVICE void send_output(const TensorMap *map, uint32_t rows, int row, const KeyBlock &block) {
  for (int i = 0; i < T::count; i++)
    tma_store(map, rows + i * T::panel_bytes, i * T::panel_columns, row, block.kv_head,
              entry_of(block.batch));
}

#endif
