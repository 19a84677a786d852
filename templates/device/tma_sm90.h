// TMA: one thread moves a box between device and shared memory. Boxes are (dim, row, 1, 1) of a
// rank-4 map (dim, row, head, batch); out-of-range elements load as zero and are not stored.
#ifndef FAGEN_TMA_SM90_H
#define FAGEN_TMA_SM90_H

#include "device/sm90.h"

struct alignas(64) TensorMap {
  char opaque[128];
};

// L2 hints: what many CTAs read again stays, what is read once goes first.
constexpr uint64_t EVICT_FIRST = 0x12F0000000000000ull;
constexpr uint64_t EVICT_LAST = 0x14F0000000000000ull;

FAGEN_DEVICE void tma_prefetch_map(const TensorMap *map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

FAGEN_DEVICE void tma_load(uint32_t to, const TensorMap *map, uint32_t barrier, int dim, int row,
                           int head, int batch, uint64_t hint) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(dim), "r"(row), "r"(head), "r"(batch), "l"(hint)
      : "memory");
}

FAGEN_DEVICE void tma_store(const TensorMap *map, uint32_t from, int dim, int row, int head,
                            int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
          map),
      "r"(from), "r"(dim), "r"(row), "r"(head), "r"(batch)
      : "memory");
}

FAGEN_DEVICE void tma_reduce_add(const TensorMap *map, uint32_t from, int dim, int row, int head,
                                 int batch) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.4d.global.shared::cta.add.bulk_group "
      "[%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
      "r"(from), "r"(dim), "r"(row), "r"(head), "r"(batch)
      : "memory");
}

// Contiguous copies, in multiples of 16 bytes on 16-byte addresses.
FAGEN_DEVICE void bulk_load(uint32_t to, const void *from, int bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to), "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

FAGEN_DEVICE void bulk_reduce_add_f32(void *to, uint32_t from, int bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
               "r"(from), "r"(bytes)
               : "memory");
}

// Stores and reductions of one thread form groups.
FAGEN_DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// At most PENDING groups still read shared memory.
template <int PENDING>
FAGEN_DEVICE void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// At most PENDING groups are not yet visible in device memory.
template <int PENDING>
FAGEN_DEVICE void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
}

#endif
