// Tiles in shared memory as wgmma and TMA both see them, and the order of wgmma operations.
// The multiply itself, with its long operand list, is Wgmma<N> of macros/wgmma.j2.
//
// An accumulator of M=64 by N in a warpgroup: thread t of warp w holds d[i] at
// row 16 w + (t % 32) / 4 + 8 ((i / 2) % 2), column 8 (i / 4) + 2 (t % 4) + i % 2.
// Packed pairwise, the registers of 16 columns are the A operand of the next multiply.
#ifndef FAGEN_WGMMA_SM90_H
#define FAGEN_WGMMA_SM90_H

#include "device/sm90.h"

// The widest swizzle (bytes) whose panels a row of `columns` 16-bit elements fills exactly.
constexpr int swizzle_for(int columns) {
  return columns % 64 == 0 ? 128 : columns % 32 == 0 ? 64 : 32;
}

// A tile of ROWS x COLUMNS 16-bit elements: panels of ROWS rows by SWIZZLE bytes, one after the
// other; one TMA box fills one panel. Read K-major (columns are the reduction) as Q and K are in
// Q K', or MN-major (rows are the reduction) as V is in P V. A descriptor is a 32-bit low word that
// moves and a constant high word.
template <int ROWS, int COLUMNS, int SWIZZLE = swizzle_for(COLUMNS)>
struct Panels {
  static constexpr int swizzle = SWIZZLE;
  static constexpr int panel_columns = SWIZZLE / 2;
  static constexpr int count = ceil_div(COLUMNS, panel_columns);
  static constexpr int panel_bytes = ROWS * SWIZZLE;
  static constexpr int bytes = count * panel_bytes;
  static constexpr uint32_t mode = SWIZZLE == 128 ? 1 : SWIZZLE == 64 ? 2 : 3;
  static constexpr uint32_t high = mode << 30 | (8 * SWIZZLE) >> 4;
  static_assert(ROWS % 8 == 0, "a swizzle pattern spans 8 rows");

  static FAGEN_DEVICE uint32_t address_field(uint32_t shared) { return (shared & 0x3FFFF) >> 4; }

  static FAGEN_DEVICE uint32_t k_major(uint32_t shared) { return 1u << 16 | address_field(shared); }
  static FAGEN_DEVICE uint32_t mn_major(uint32_t shared) {
    return static_cast<uint32_t>(panel_bytes >> 4) << 16 | address_field(shared);
  }

  // What to add to the low word for the k-th group of 16 along the reduction.
  static constexpr FAGEN_DEVICE uint32_t k_major_step(int k) {
    constexpr int per_panel = SWIZZLE / 32;
    return k % per_panel * 2 + k / per_panel * (panel_bytes >> 4);
  }
  static constexpr FAGEN_DEVICE uint32_t mn_major_step(int k) { return k * SWIZZLE; }

  // Byte offset of a row's 16-byte chunk (8 columns) under the swizzle.
  static FAGEN_DEVICE uint32_t chunk(int row, int chunk) {
    constexpr int per_panel = SWIZZLE / 16;
    const int turn = SWIZZLE == 128 ? row & 7 : SWIZZLE == 64 ? row >> 1 & 3 : row >> 2 & 1;
    return chunk / per_panel * panel_bytes + row * SWIZZLE + ((chunk % per_panel ^ turn) << 4);
  }
};

// Before the first wgmma, and after any other write to its accumulators or register operands.
FAGEN_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
FAGEN_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// At most PENDING committed groups are still running.
template <int PENDING>
FAGEN_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Registers that wgmma reads or writes behind the compiler's back: nothing moves across.
template <int N>
FAGEN_DEVICE void pin(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N>
FAGEN_DEVICE void pin(uint32_t (&a)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(a[i])::"memory");
}

// Four 8x8 blocks of 16-bit elements; lane l gives the address of row l % 8 of block l / 8.
FAGEN_DEVICE void store_matrix(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a),
               "r"(b), "r"(c), "r"(d)
               : "memory");
}
FAGEN_DEVICE void store_matrix_transposed(uint32_t to, uint32_t a, uint32_t b, uint32_t c,
                                          uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

#endif
