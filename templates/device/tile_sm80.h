// Tiles in shared memory: rows of 16-byte chunks, and their way from and to global memory.
#pragma once

#include "device/ptx_sm80.h"

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// DIM elements of 16 bits per row, padded to the 16 of a k step and no further. The chunks of a
// row are permuted by a key of the row, so that the eight rows an ldmatrix reads at one column
// fall on different banks, whatever DIM is.
template <int DIM>
struct Layout {
  static constexpr int steps = ceil_div(DIM, 16), chunks = 2 * steps, pitch = 16 * chunks;
  static constexpr int keys = chunks % 8 == 0 ? 8 : chunks % 4 == 0 ? 4 : 2;

  __device__ static int key(unsigned row) { return row / (8 / keys) % keys; }
  __device__ static uint32_t offset(int row, int chunk) {
    return row * pitch + ((chunk ^ key(row)) << 4);
  }
};

// WAYS warps share TOTAL items, ceil_div(TOTAL, WAYS) each: how many are left for the one that starts
// at `first`. Constant when they come out even.
template <int TOTAL, int WAYS>
__device__ __forceinline__ int left_of(int first) {
  return TOTAL % WAYS == 0 ? TOTAL / WAYS : TOTAL - first;
}

// One lane's place in ldmatrix reads. Rows then move in steps of 8, which leaves the key alone;
// chunks move by even constants below SPAN, from a first chunk that is a multiple of SPAN.
template <int DIM, int SPAN = Layout<DIM>::chunks>
struct Cursor {
  using L = Layout<DIM>;
  // Then moving along the row never carries from the permuted bits into the others.
  static constexpr bool carries = SPAN % L::keys != 0 && L::keys % SPAN != 0;
  uint32_t row, base;
  int key, chunk;

  __device__ __forceinline__ Cursor(uint32_t tile, int first_row, int first_chunk)
      : row(tile + first_row * L::pitch), key(L::key(first_row)), chunk(first_chunk) {
    base = row + ((chunk ^ key) << 4);
    // Keeps the permuted addresses out of registers across loop iterations: they are one
    // instruction each to make, and the accumulators need the room.
    keep_out_of_loops(base);
  }
  __device__ __forceinline__ uint32_t at(int row8, int chunk2) const {
    if constexpr (carries) return row + row8 * L::pitch + (((chunk + chunk2) ^ key) << 4);
    const int permuted = chunk2 % L::keys;
    return (base ^ (permuted << 4)) + row8 * L::pitch + ((chunk2 - permuted) << 4);
  }
};

// The two orders in which a lane names the four matrices of a 16x16 block: down the rows first
// (A operands, and B operands read transposed), or along the columns first (the other way round).
template <int DIM, int SPAN = Layout<DIM>::chunks>
__device__ __forceinline__ Cursor<DIM, SPAN> rows_first(uint32_t tile, int row, int chunk,
                                                        int lane) {
  return {tile, row + (lane & 15), chunk + (lane >> 4)};
}
template <int DIM, int SPAN = Layout<DIM>::chunks>
__device__ __forceinline__ Cursor<DIM, SPAN> columns_first(uint32_t tile, int row, int chunk,
                                                           int lane) {
  return {tile, row + (lane & 7) + (lane >> 4) * 8, chunk + (lane >> 3 & 1)};
}

// How THREADS threads share a tile of ROWS rows: up to eight of them on a row.
template <int ROWS, int DIM, int THREADS>
struct TileCopy {
  using L = Layout<DIM>;
  static constexpr int lanes = L::chunks > 4 ? 8 : L::chunks;
  static constexpr int step = THREADS / lanes;

  // This thread's first element of a tile whose first row is at `tile`.
  template <class Element>
  __device__ __forceinline__ static Element *start(Element *tile, int64_t stride, unsigned thread) {
    return tile + thread / lanes * stride + thread % lanes * 8;
  }

  // each(row, chunk, place in shared memory, pointer). The pointer walks down, because an address
  // per row would cost the registers that the accumulators need.
  template <class Element, class Each>
  __device__ __forceinline__ static void for_each(uint32_t tile, Element *at, int64_t stride,
                                                  unsigned thread, Each each) {
    const int first = thread / lanes, lane = thread % lanes;
    const uint32_t place = tile + L::offset(first, lane);
#pragma unroll
    for (int i = 0; i < ceil_div(ROWS, step); ++i, at += step * stride) {
      const int row = first + i * step;
      if (ROWS % step != 0 && row >= ROWS) break;
#pragma unroll
      for (int c = 0; c < ceil_div(L::chunks, lanes); ++c) {
        const int chunk = lane + c * lanes;
        if (L::chunks % lanes != 0 && chunk >= L::chunks) continue;
        // Steps of 8 rows and of whole permutations leave the permuted bits alone.
        const uint32_t to = step % 8 == 0 && lanes % L::keys == 0
                                ? place + i * step * L::pitch + c * lanes * 16
                                : tile + L::offset(row, chunk);
        each(row, chunk, to, at + c * lanes * 8);
      }
    }
  }

  // Rows from `rows` on, and the padding of each row, become zero. `at` is start()'s.
  __device__ __forceinline__ static void load_from(uint32_t tile, const uint16_t *at,
                                                   int64_t stride, int rows, unsigned thread) {
    for_each(tile, at, stride, thread,
             [&](int row, int chunk, uint32_t to, const uint16_t *element) {
               const bool there = row < rows && (DIM % 16 == 0 || chunk < DIM / 8);
               cp_async(to, element, there ? 16 : 0);
             });
  }

  __device__ __forceinline__ static void load(uint32_t tile, const uint16_t *from, int64_t stride,
                                              int rows, unsigned thread) {
    load_from(tile, start(from, stride, thread), stride, rows, thread);
  }

  __device__ __forceinline__ static void store(uint32_t tile, uint16_t *to, int64_t stride,
                                               int rows, unsigned thread) {
    for_each(tile, start(to, stride, thread), stride, thread,
             [&](int row, int chunk, uint32_t from, uint16_t *element) {
               if (row < rows && (DIM % 16 == 0 || chunk < DIM / 8))
                 *reinterpret_cast<uint4 *>(element) = load_shared_16(from);
             });
  }
};

// Accumulators of 16 rows by 8 TILES columns (the first `limit` of them) to a tile, at (row, chunk),
// times `scale`.
template <int DIM, int TILES>
__device__ __forceinline__ void put_accumulators(uint32_t tile, int row, int chunk,
                                                 const float (&c)[TILES][4], float scale,
                                                 int lane, int limit = TILES) {
#pragma unroll
  for (int j = 0; j < TILES; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (j >= limit) break;
      const uint32_t to = tile + Layout<DIM>::offset(row + lane / 4 + 8 * half, chunk + j);
      store_shared(to + lane % 4 * 4, pack(c[j][2 * half] * scale, c[j][2 * half + 1] * scale));
    }
}
