// A Hopper GPU on the host, as far as the sm90 kernels use one. Every CUDA thread is a fiber; a warp
// runs until each of its lanes waits for something. What the hardware does in the background (TMA,
// wgmma, bulk stores) happens at the first or at the last moment that is allowed, by choice, so that
// a missing wait shows in the numbers. Every rule that is broken, and every deadlock, ends the run
// with a text that says who waits for what.
#pragma once
#include <stdint.h>

namespace machine {

// --- what a run is asked for ---------------------------------------------------------------------

struct Map {  // stands in the kernel's TensorMap
  char *data;
  int64_t dims[4], strides[4];  // (dim, row, head, batch); strides in bytes
  int box_dim, box_rows, swizzle;
};

struct Name {  // of `count` barriers from a byte of shared memory on, for reports
  const char *text;
  int at, count;
};

struct Kernel {
  const char *name;
  void (*body)();        // one thread of it
  int launch_registers;  // per thread, before setmaxnreg
  const Name *names;     // the last one has no text
};

struct Launch {
  const Kernel *kernel;
  unsigned grid[3];
  int threads, shared_bytes;
  bool overlap;  // may start before the launch before it ends
};

struct Mode {
  int residents;  // blocks of one launch that run at the same time
  int seed;       // 0: warps take turns; else a random order
  int late;       // background work at the last moment; otherwise at the first
};

// --- the thread that runs ------------------------------------------------------------------------

struct Index {
  unsigned x, y, z;
};
extern Index threadIdx, blockIdx, gridDim, blockDim;

[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

constexpr uint32_t SHARED_BASE = 1024;  // the system's own part of shared memory comes first
char *dynamic_shared();
uint32_t shared_address(const void *p);
char *shared_at(uint32_t address, int bytes);    // aligned to `bytes`, up to 16, and inside
void wrote_shared(uint32_t address, int bytes);  // the async proxy must not read it before a fence
void *static_storage(int id, int bytes);
template <class T, int ID>
T &static_shared() {
  return *static_cast<T *>(static_storage(ID, sizeof(T)));
}

void may_switch();  // lets others run now and then, when the order is random

// All 32 lanes bring `bytes` (32 at most) and get what all brought, 32 bytes each.
const char *meet(const char *what, const void *data, int bytes);

uint32_t load_acquire(const void *p);  // of a loop that polls: waits for a change

void bar(int id, int threads, bool waits);
void set_registers(int count, bool more);
void launch_dependents();
void wait_for_launch_before();
void fence_async();

void barrier_init(uint32_t barrier, int arrivals);
void barrier_arrive(uint32_t barrier, int64_t expected_bytes);
void barrier_wait(uint32_t barrier, uint32_t parity);

void load_box(uint32_t to, const Map &map, const int (&at)[4], uint32_t barrier);
void load_bytes(uint32_t to, const void *from, int bytes, uint32_t barrier);
void store_box(const Map &map, const int (&at)[4], uint32_t from);
void store_floats(void *to, uint32_t from, int bytes);
void reduce_floats(void *to, uint32_t from, int bytes);
void bulk_commit();
void bulk_wait(int pending, bool only_read);

struct Multiply {
  int n;
  bool fp16, a_in_registers;
  uint64_t a, b;
  bool accumulate, a_transposed, b_transposed;
  bool operator==(const Multiply &) const = default;
};
void wgmma_fence();
void wgmma_issue(const Multiply &what, float *d, const uint32_t *const *a);
void wgmma_commit();
void wgmma_wait(int pending);

}  // namespace machine
