// Stands in for templates/device/ptx_sm80.h: the same functions on a host CPU, so that a rendered
// kernel runs, fragment layouts, swizzles, masks, pipelines and all, with no GPU. Every CUDA thread
// is a fiber; instructions of a whole warp meet at a rendezvous.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <vector>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __shared__
#define __align__(n)
#define __launch_bounds__(...)

struct Index {
  int x, y, z;
};
constexpr int EMULATED_SHARED = 227 * 1024;
static Index gridDim, blockIdx;
alignas(128) unsigned char memory[EMULATED_SHARED];

// --- fibers -------------------------------------------------------------------------------------

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(256 * 1024);
  int phase = 0;                       // which rendezvous of the warp comes next
  bool done = false;
  struct Copy { uint32_t to; const void *from; int bytes; };
  std::vector<std::vector<Copy>> groups{1};  // cp.async: the last one is still open
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static int running;
static int arrived_warp[32][2], arrived_block[2], block_phase[1024];
static uint64_t slots[32][2][32][8];

inline void yield() { swapcontext(&fibers[running].context, &scheduler); }

// Waits for all 32 lanes after publishing `words`; the other parity keeps the round before.
inline uint64_t (*rendezvous(const void *data, size_t bytes))[8] {
  Fiber &self = fibers[running];
  const int warp = running / 32, parity = self.phase++ & 1;
  memcpy(slots[warp][parity][running % 32], data, bytes);
  if (++arrived_warp[warp][parity] == 32) arrived_warp[warp][parity ^ 1] = 0;
  while (arrived_warp[warp][parity] < 32 && arrived_warp[warp][parity] != 0) yield();
  return slots[warp][parity];
}

inline void __syncthreads() {
  const int parity = block_phase[running]++ & 1, all = static_cast<int>(fibers.size());
  if (++arrived_block[parity] == all) arrived_block[parity ^ 1] = 0;
  while (arrived_block[parity] < all && arrived_block[parity] != 0) yield();
}

inline void __syncwarp() { rendezvous("", 0); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  auto all = rendezvous(&value, sizeof value);
  memcpy(&value, all[running % 32 ^ mask], sizeof value);
  return value;
}

inline bool __any_sync(unsigned, bool value) {
  auto all = rendezvous(&value, sizeof value);
  bool any = false;
  for (int lane = 0; lane < 32; ++lane) {
    bool one;
    memcpy(&one, all[lane], sizeof one);
    any |= one;
  }
  return any;
}

// --- the instructions -----------------------------------------------------------------------------

struct Where {
  int thread = running, lane = running % 32, warp = running / 32;
  int x = blockIdx.x, y = blockIdx.y, z = blockIdx.z;
};

inline uint32_t shared_address(const void *pointer) {
  return static_cast<uint32_t>(static_cast<const unsigned char *>(pointer) - memory);
}
inline unsigned char *shared(uint32_t address, int bytes) {
  if (address % bytes || address + bytes > EMULATED_SHARED) {
    fprintf(stderr, "bad shared address %u\n", address);
    abort();
  }
  return memory + address;
}

inline void matrices(uint32_t (&r)[4], uint32_t address, bool transposed) {
  auto all = rendezvous(&address, sizeof address);
  const int g = running % 32 / 4, t = running % 4;
  for (int i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (int e = 0; e < 2; ++e) {
      const int row = transposed ? 2 * t + e : g, column = transposed ? g : 2 * t + e;
      uint32_t base;
      memcpy(&base, all[8 * i + row], sizeof base);
      memcpy(&pair[e], shared(base, 16) + 2 * column, 2);
    }
    memcpy(&r[i], pair, 4);
  }
}
inline void ldmatrix(uint32_t (&r)[4], uint32_t address) { matrices(r, address, false); }
inline void ldmatrix_transposed(uint32_t (&r)[4], uint32_t address) { matrices(r, address, true); }

inline float __uint_as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline float widen(uint16_t half) {
  if constexpr (DTYPE == FAGEN_BF16) return __uint_as_float(uint32_t(half) << 16);
  _Float16 value;
  memcpy(&value, &half, 2);
  return static_cast<float>(value);
}
inline uint16_t narrow(float value) {
  if constexpr (DTYPE == FAGEN_BF16) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (value != value) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  const _Float16 half = static_cast<_Float16>(value);
  uint16_t out;
  memcpy(&out, &half, 2);
  return out;
}
inline uint32_t pack(float low, float high) { return narrow(low) | uint32_t(narrow(high)) << 16; }
inline float unpack_low(uint32_t pair) { return widen(static_cast<uint16_t>(pair)); }
inline float unpack_high(uint32_t pair) { return widen(static_cast<uint16_t>(pair >> 16)); }
inline float exp2_approx(float x) { return exp2f(x); }

inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  auto all = rendezvous(mine, sizeof mine);
  const int g = running % 32 / 4, t = running % 4;
  for (int k = 0; k < 16; ++k) {
    const int quad = k % 8 / 2, high = k % 2, far = k / 8;
    const auto value = [&](int lane, int word) {
      uint32_t w[6];
      memcpy(w, all[lane], sizeof w);
      return widen(static_cast<uint16_t>(w[word] >> (16 * high)));
    };
    for (int i = 0; i < 4; ++i)
      c[i] += value(4 * g + quad, i / 2 + 2 * far) * value(4 * (2 * t + i % 2) + quad, 4 + far);
  }
}

inline void cp_async(uint32_t to, const void *from, int bytes) {
  shared(to, 16);
  fibers[running].groups.back().push_back({to, from, bytes});
}
inline void cp_async_commit() { fibers[running].groups.emplace_back(); }
// Copies land as late as the hardware may let them.
template <int PENDING>
void cp_async_wait() {
  auto &groups = fibers[running].groups;
  while (groups.size() > PENDING + 1) {
    for (const auto &copy : groups.front()) {
      memset(memory + copy.to, 0, 16);
      if (copy.bytes) memcpy(memory + copy.to, copy.from, copy.bytes);
    }
    groups.erase(groups.begin());
  }
}
inline void store_shared(uint32_t to, uint32_t value) { memcpy(shared(to, 4), &value, 4); }

struct uint4 {
  uint32_t x, y, z, w;
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
inline uint4 load_shared_16(uint32_t from) {
  uint4 value;
  memcpy(&value, shared(from, 16), 16);
  return value;
}
inline float2 load_shared_float2(uint32_t from) {
  float2 value;
  memcpy(&value, shared(from, 8), 8);
  return value;
}
inline void keep_out_of_loops(uint32_t &) {}
inline void add_tile(float *tile, const float (&c)[4], int lane) {
  for (int i = 0; i < 4; ++i) tile[4 * lane + i] += c[i];
}
inline void load_tile(float (&c)[4], const float *tile, int lane) {
  memcpy(c, tile + 4 * lane, sizeof c);
}

// --- launches -------------------------------------------------------------------------------------

static void (*kernel_body)(const fagen_params);
static const fagen_params *kernel_argument;
inline void fiber_main() {
  kernel_body(*kernel_argument);
  fibers[running].done = true;
}

inline void launch(void (*kernel)(const fagen_params), const fagen_params &p, Index grid, int block,
                   int shared_bytes) {
  kernel_body = kernel, kernel_argument = &p, gridDim = grid;
  for (int b = 0; b < grid.x * grid.y * grid.z; ++b) {
    blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    memset(memory, 0xff, sizeof memory);  // NaN, in every type
    memset(arrived_warp, 0, sizeof arrived_warp), memset(arrived_block, 0, sizeof arrived_block);
    memset(block_phase, 0, sizeof block_phase);
    fibers.resize(block);
    for (auto &f : fibers) {
      f.phase = 0, f.done = false, f.groups.assign(1, {});
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.data();
      f.context.uc_stack.ss_size = f.stack.size();
      f.context.uc_link = &scheduler;
      makecontext(&f.context, fiber_main, 0);
    }
    for (bool alive = true; alive;) {
      alive = false;
      for (running = 0; running < block; ++running)
        if (!fibers[running].done) {
          swapcontext(&scheduler, &fibers[running].context);
          alive |= !fibers[running].done;
        }
    }
    for (int i = shared_bytes; i < EMULATED_SHARED; ++i)
      if (memory[i] != 0xff) {
        fprintf(stderr, "wrote shared byte %d of %d\n", i, shared_bytes);
        abort();
      }
  }
}
