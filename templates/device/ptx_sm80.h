// The PTX of compute capability 8.0, one instruction per function; nothing else holds any asm.
#pragma once

__device__ __forceinline__ uint32_t shared_address(const void *pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Where this thread is, read anew at every call: nothing of it then lives in a register across a
// loop that needs them all for accumulators.
struct Where {
  int thread, lane, warp, x, y, z;

  __device__ __forceinline__ Where() {
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(x));
    asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(y));
    asm volatile("mov.u32 %0, %%ctaid.z;" : "=r"(z));
    lane = thread & 31;
    warp = thread >> 5;
  }
};

// Four 8x8 matrices; lane l names row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

// c += a b for a 16x16 a (row-major) and a 16x8 b.
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  if constexpr (DTYPE == FAGEN_BF16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats to a pair of 16-bit numbers; `low` comes first in memory.
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t pair;
  if constexpr (DTYPE == FAGEN_BF16)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ float unpack_low(uint32_t pair) {
  if constexpr (DTYPE == FAGEN_BF16) return __uint_as_float(pair << 16);
  float value;
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(value) : "r"(pair));
  return value;
}

__device__ __forceinline__ float unpack_high(uint32_t pair) {
  if constexpr (DTYPE == FAGEN_BF16) return __uint_as_float(pair & 0xffff0000u);
  return unpack_low(pair >> 16);
}

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ void cp_async(uint32_t to, const void *from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// At most PENDING groups of this thread are still under way.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ void store_shared(uint32_t to, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}

__device__ __forceinline__ uint4 load_shared_16(uint32_t from) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(from));
  return v;
}

// Makes a value look new, so that what is computed from it cannot be hoisted out of a loop.
__device__ __forceinline__ void keep_out_of_loops(uint32_t &value) {
  asm volatile("" : "+r"(value));
}

__device__ __forceinline__ float2 load_shared_float2(uint32_t from) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(from));
  return v;
}

// fp32 accumulators in global memory, in the order that lets a whole warp add to adjacent words:
// each 16x8 tile is 128 floats, four per lane from compute capability 9.0 on, else lane by lane.
#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void add_tile(float *tile, const float (&c)[4], int lane) {
  asm volatile("red.global.add.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(tile + 4 * lane), "f"(c[0]),
               "f"(c[1]), "f"(c[2]), "f"(c[3])
               : "memory");
}
__device__ __forceinline__ void load_tile(float (&c)[4], const float *tile, int lane) {
  const float4 v = reinterpret_cast<const float4 *>(tile)[lane];
  c[0] = v.x, c[1] = v.y, c[2] = v.z, c[3] = v.w;
}
#else
__device__ __forceinline__ void add_tile(float *tile, const float (&c)[4], int lane) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    asm volatile("red.global.add.f32 [%0], %1;" ::"l"(tile + 32 * i + lane), "f"(c[i]) : "memory");
}
__device__ __forceinline__ void load_tile(float (&c)[4], const float *tile, int lane) {
#pragma unroll
  for (int i = 0; i < 4; ++i) c[i] = tile[32 * i + lane];
}
#endif
