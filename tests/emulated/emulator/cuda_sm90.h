// The words of CUDA and the PTX instructions that the sm90 kernels use, as C++ (ptx_sm90.py turns
// asm statements into calls). Meaning and background: machine_sm90.h.
#pragma once
#include <math.h>
#include <string.h>

#include "machine_sm90.h"

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

using machine::blockDim;
using machine::blockIdx;
using machine::gridDim;
using machine::threadIdx;

struct int2 { int x, y; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline float __logf(float x) { return logf(x); }
template <class To, class From>
To same_bits(From x) {
  static_assert(sizeof(To) == sizeof x);
  To y;
  memcpy(&y, &x, sizeof x);
  return y;
}
inline float __uint_as_float(uint32_t x) { return same_bits<float>(x); }
inline float __int_as_float(int x) { return same_bits<float>(x); }
inline int __float_as_int(float x) { return same_bits<int>(x); }
template <class T>
T atomicAdd(T *at, T more) {
  const T before = *at;
  *at += more;
  return before;
}
template <class T>
T __ldcg(const T *from) { return *from; }
template <class T>
T atomicOr(T *at, T bits) {
  const T before = *at;
  *at |= bits;
  return before;
}

inline size_t __cvta_generic_to_shared(const void *p) { return machine::shared_address(p); }
inline void __syncthreads() { machine::bar(0, blockDim.x, true); }
inline void __syncwarp() { machine::meet("__syncwarp", nullptr, 0); }
inline unsigned lane_of(unsigned mask) {
  if (mask != 0xffffffffu) machine::fail("a warp operation for lanes %#x only", mask);
  return threadIdx.x % 32;
}
template <class T>
T from_lane(const char *all, int lane) {
  T value;
  memcpy(&value, all + 32 * lane, sizeof value);
  return value;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  lane_of(mask);
  return from_lane<T>(machine::meet("__shfl_sync", &value, sizeof value), lane % 32);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with) {
  const int lane = lane_of(mask) ^ with;
  return from_lane<T>(machine::meet("__shfl_xor_sync", &value, sizeof value), lane);
}
inline unsigned __ballot_sync(unsigned mask, bool value) {
  lane_of(mask);
  const char *all = machine::meet("__ballot_sync", &value, sizeof value);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; lane++) bits |= unsigned(from_lane<bool>(all, lane)) << lane;
  return bits;
}
inline bool __any_sync(unsigned mask, bool value) {
  lane_of(mask);
  const char *all = machine::meet("__any_sync", &value, sizeof value);
  bool any = false;
  for (int lane = 0; lane < 32; lane++) any |= from_lane<bool>(all, lane);
  return any;
}

namespace ptx {

// --- arithmetic ----------------------------------------------------------------------------------

inline float flushed(float x) { return fabsf(x) < 1.17549435e-38f ? copysignf(0.f, x) : x; }
inline void ex2_approx_ftz_f32(float &y, float x) { y = flushed(exp2f(flushed(x))); }
inline uint16_t to_bf16(float x) {
  const uint32_t bits = same_bits<uint32_t>(x);
  if (x != x) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint16_t to_f16(float x) { return same_bits<uint16_t>(static_cast<_Float16>(x)); }
inline void cvt_rn_bf16x2_f32(uint32_t &r, float upper, float lower) {
  r = uint32_t(to_bf16(upper)) << 16 | to_bf16(lower);
}
inline void cvt_rn_f16x2_f32(uint32_t &r, float upper, float lower) {
  r = uint32_t(to_f16(upper)) << 16 | to_f16(lower);
}
inline void cvt_f32_f16(float &y, uint16_t x) { y = static_cast<float>(same_bits<_Float16>(x)); }
inline void shr_u32(uint32_t &r, uint32_t x, uint32_t count) { r = count > 31 ? 0 : x >> count; }
inline void shl_b32(uint32_t &r, uint32_t x, uint32_t count) { r = count > 31 ? 0 : x << count; }
inline void mov_b32(uint16_t *const (&halves)[2], uint32_t x) {
  *halves[0] = static_cast<uint16_t>(x);
  *halves[1] = static_cast<uint16_t>(x >> 16);
}
inline void mov_b64(uint64_t &to, const uint32_t *const (&words)[2]) {
  to = uint64_t(*words[1]) << 32 | *words[0];
}
#define special_ctaid_x (::machine::blockIdx.x)
template <class T>
void mov_u32(T &to, uint32_t x) { to = x; }
inline void setp_ne_b32(bool &p, uint32_t a, uint32_t b) { p = a != b; }
inline void selp_u32(uint32_t &to, uint32_t a, uint32_t b, bool p) { to = p ? a : b; }
inline void elect_sync(bool &elected, uint32_t mask) {
  elected = lane_of(mask) == 0;
  machine::meet("elect.sync", nullptr, 0);
}
inline void nanosleep_u32(int) {}

// --- order and barriers --------------------------------------------------------------------------

inline void setmaxnreg_dec_sync_aligned_u32(int count) { machine::set_registers(count, false); }
inline void setmaxnreg_inc_sync_aligned_u32(int count) { machine::set_registers(count, true); }
inline void griddepcontrol_launch_dependents() { machine::launch_dependents(); }
inline void griddepcontrol_wait() { machine::wait_for_launch_before(); }
inline void fence_proxy_async_shared__cta() { machine::fence_async(); }
inline void fence_mbarrier_init_release_cluster() {}
inline void bar_sync(int id, int threads) { machine::bar(id, threads, true); }
inline void bar_arrive(int id, int threads) { machine::bar(id, threads, false); }
inline void mbarrier_init_shared__cta_b64(uint32_t at, int n) { machine::barrier_init(at, n); }
inline void mbarrier_arrive_shared__cta_b64(uint32_t at) { machine::barrier_arrive(at, 0); }
inline void mbarrier_arrive_expect_tx_shared__cta_b64(uint32_t at, int bytes) {
  machine::barrier_arrive(at, bytes);
}
inline void mbarrier_try_wait_parity_shared__cta_b64(bool &ended, uint32_t at, uint32_t parity) {
  machine::barrier_wait(at, parity);
  ended = true;
}

// --- memory --------------------------------------------------------------------------------------

template <class T>
void ld_acquire_gpu_global_s32(T &value, const T *from) {
  value = static_cast<T>(machine::load_acquire(from));
}
inline void red_release_gpu_global_add_s32(int *to, int more) { *to += more; }
inline void atom_acq_rel_gpu_global_add_s32(int &before, int *at, int more) {
  before = atomicAdd(at, more);
}
inline void atom_acquire_gpu_global_cas_b32(int &before, int *at, int expected, int wanted) {
  before = *at;
  if (before == expected) *at = wanted;
  machine::may_switch();  // others find it claimed before it is kept
}
template <class T, int N>
void load_shared(T *const (&to)[N], uint32_t from) {
  const char *bytes = machine::shared_at(from, sizeof(T) * N);
  for (int i = 0; i < N; i++) memcpy(to[i], bytes + i * sizeof(T), sizeof(T));
}
template <class T, int N>
void store_shared(uint32_t to, T *const (&from)[N]) {
  char *bytes = machine::shared_at(to, sizeof(T) * N);
  for (int i = 0; i < N; i++) memcpy(bytes + i * sizeof(T), from[i], sizeof(T));
  machine::wrote_shared(to, sizeof(T) * N);
}
inline void ld_shared_b32(int &to, uint32_t from) {
  memcpy(&to, machine::shared_at(from, 4), 4);
}
inline void st_shared_b32(uint32_t to, int x) {
  memcpy(machine::shared_at(to, 4), &x, 4);
  machine::wrote_shared(to, 4);
}
inline void ld_shared_v2_f32(float *const (&to)[2], uint32_t from) { load_shared(to, from); }
inline void ld_shared_v2_b32(int *const (&to)[2], uint32_t from) { load_shared(to, from); }
template <class T>
void ld_shared_v4_b32(T *const (&to)[4], uint32_t from) { load_shared(to, from); }
inline void ld_shared_v4_f32(float *const (&to)[4], uint32_t from) { load_shared(to, from); }
inline void st_shared_v4_f32(uint32_t to, const float *const (&x)[4]) { store_shared(to, x); }
inline void st_shared_v2_b32(uint32_t to, const int *const (&x)[2]) { store_shared(to, x); }
template <class T>
void st_shared_v4_b32(uint32_t to, T *const (&x)[4]) { store_shared(to, x); }

// Block i is 8 rows of 16 bytes; lane l has elements 2(l%4), 2(l%4)+1 of row l/4 in each of the four.
inline void store_matrices(uint32_t to, const uint32_t *const (&x)[4], bool transposed) {
  const uint32_t mine[5] = {to, *x[0], *x[1], *x[2], *x[3]};
  const char *all = machine::meet("stmatrix", mine, sizeof mine);
  char *row = machine::shared_at(to, 16);  // this lane writes its own row
  const int block = threadIdx.x % 32 / 8, r = threadIdx.x % 8;
  for (int c = 0; c < 8; c++) {
    const int i = transposed ? c : r, j = transposed ? r : c;
    const uint32_t word = from_lane<uint32_t>(all + 4 * (1 + block), 4 * i + j / 2);
    const uint16_t half = static_cast<uint16_t>(word >> 16 * (j % 2));
    memcpy(row + 2 * c, &half, 2);
  }
  machine::wrote_shared(to, 16);
}
inline void stmatrix_sync_aligned_m8n8_x4_shared_b16(uint32_t to, const uint32_t *const (&x)[4]) {
  store_matrices(to, x, false);
}
inline void stmatrix_sync_aligned_m8n8_x4_trans_shared_b16(uint32_t to,
                                                           const uint32_t *const (&x)[4]) {
  store_matrices(to, x, true);
}

// --- TMA and bulk copies -------------------------------------------------------------------------

using Coordinates = const int *const (&)[4];
template <class M>
const machine::Map &map_in(const M *map) { return *reinterpret_cast<const machine::Map *>(map); }
template <class M>
void prefetch_tensormap(const M *) {}
template <class M>
void cp_async_bulk_tensor_4d_shared__cluster_global_mbarrier__complete_tx__bytes_L2__cache_hint(
    uint32_t to, const M *map, Coordinates c, uint32_t barrier, uint64_t) {
  machine::load_box(to, map_in(map), {*c[0], *c[1], *c[2], *c[3]}, barrier);
}
template <class M>
void cp_async_bulk_tensor_4d_global_shared__cta_bulk_group(const M *map, Coordinates c,
                                                           uint32_t from) {
  machine::store_box(map_in(map), {*c[0], *c[1], *c[2], *c[3]}, from);
}
template <class M>
void cp_reduce_async_bulk_tensor_4d_global_shared__cta_add_bulk_group(const M *, Coordinates,
                                                                      uint32_t) {
  machine::fail("a reduction of boxes: no kernel used one when this machine was built");
}
inline void cp_async_bulk_shared__cluster_global_mbarrier__complete_tx__bytes(
    uint32_t to, const void *from, int bytes, uint32_t barrier) {
  machine::load_bytes(to, from, bytes, barrier);
}
inline void cp_reduce_async_bulk_global_shared__cta_bulk_group_add_f32(void *to, uint32_t from,
                                                                       int bytes) {
  machine::reduce_floats(to, from, bytes);
}
inline void cp_async_bulk_global_shared__cta_bulk_group(void *to, uint32_t from, int bytes) {
  machine::store_floats(to, from, bytes);
}
inline void cp_async_bulk_commit_group() { machine::bulk_commit(); }
inline void cp_async_bulk_wait_group_read(int pending) { machine::bulk_wait(pending, true); }
inline void cp_async_bulk_wait_group(int pending) { machine::bulk_wait(pending, false); }

// --- wgmma ---------------------------------------------------------------------------------------

enum Type { bf16, f16 };
inline void wgmma_fence_sync_aligned() { machine::wgmma_fence(); }
inline void wgmma_commit_group_sync_aligned() { machine::wgmma_commit(); }
inline void wgmma_wait_group_sync_aligned(int pending) { machine::wgmma_wait(pending); }

// The accumulators lie in one array: registers d[0], d[1], ... in this order.
template <int COUNT>
float *in_one_array(float *const (&d)[COUNT]) {
  for (int i = 0; i < COUNT; i++)
    if (d[i] != d[0] + i) machine::fail("accumulator %d of wgmma is not where it should be", i);
  return d[0];
}
template <int N, Type TYPE, int COUNT>
void wgmma_mma_async(float *const (&d)[COUNT], uint64_t a, uint64_t b, bool accumulate, int scale_a,
                     int scale_b, int a_transposed, int b_transposed) {
  static_assert(COUNT == N / 2 && N % 8 == 0 && N <= 256);
  if (scale_a != 1 || scale_b != 1) machine::fail("wgmma with a negated operand");
  machine::wgmma_issue({N, TYPE == f16, false, a, b, accumulate, a_transposed != 0, b_transposed != 0},
                       in_one_array(d), nullptr);
}
template <int N, Type TYPE, int COUNT>
void wgmma_mma_async(float *const (&d)[COUNT], const uint32_t *const (&a)[4], uint64_t b,
                     bool accumulate, int scale_a, int scale_b, int b_transposed) {
  static_assert(COUNT == N / 2 && N % 8 == 0 && N <= 256);
  if (scale_a != 1 || scale_b != 1) machine::fail("wgmma with a negated operand");
  machine::wgmma_issue({N, TYPE == f16, true, 0, b, accumulate, false, b_transposed != 0},
                       in_one_array(d), a);
}

}  // namespace ptx
