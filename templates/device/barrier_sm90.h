// Barriers in shared memory (mbarrier), named barriers, and the fences between the two proxies.
#ifndef FAGEN_BARRIER_SM90_H
#define FAGEN_BARRIER_SM90_H

#include "device/sm90.h"

FAGEN_DEVICE void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// After the inits and before the __syncthreads that publishes them.
FAGEN_DEVICE void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

FAGEN_DEVICE void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// One arrival, and `bytes` more that TMA must deliver before the phase ends.
FAGEN_DEVICE void barrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Returns when the phase of this parity has ended. On a fresh barrier parity 1 has already ended.
FAGEN_DEVICE void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "WAIT:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@ended bra DONE;\n"
      "bra WAIT;\n"
      "DONE:\n"
      "}" ::"r"(barrier), "r"(parity)
      : "memory");
}

// A position in a ring of stages. The consumer waits on `parity`, the producer on `parity ^ 1`.
template <int STAGES>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  FAGEN_DEVICE void advance() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Named barriers 1..15 (0 is __syncthreads). `threads` counts both those that wait and arrive.
FAGEN_DEVICE void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
FAGEN_DEVICE void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Every thread that wrote shared memory calls it before wgmma or TMA reads what it wrote.
FAGEN_DEVICE void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

#endif
