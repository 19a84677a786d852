// Where packed sequences end inside a tile. What TMA loads past the end are the next sequence's
// rows: those of K, V, Q and dO become zero before anything reads them, because a probability of
// zero times what is not a number is no zero. And dK and dV past the end are not stored.
// Only +varlen has such tiles: past the ends of whole tensors TMA loads zeros and stores nothing.
#ifndef FAGEN_TAILS_BWD_SM90_H
#define FAGEN_TAILS_BWD_SM90_H

#include "device/step_bwd_sm90.h"

// Rows first.. of a tile. All consumers take part.
template <class T>
FAGEN_DEVICE void zero_rows(uint32_t tile, int first) {
  const int thread = threadIdx.x - 128 * FIRST_CONSUMER;
  for (int i = 0; i < T::count; i++)
    for (int at = first * T::swizzle + 16 * thread; at < T::panel_bytes; at += 16 * 128 * CONSUMERS)
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(tile + i * T::panel_bytes + at),
                   "r"(0u)
                   : "memory");
}
FAGEN_DEVICE void meet_after_zeroing() {
  fence_async_shared();
  named_sync(EVERY_CONSUMER, 128 * CONSUMERS);
}

// Once, before the first step.
FAGEN_DEVICE void zero_keys_past_end(uint32_t shared, const Walk &walk) {
  if constexpr (!VARLEN) return;
  const int rows = walk.lengths.seqlen_kv - walk.n * BLOCK_N;
  if (rows >= BLOCK_N) return;
  barrier_wait(shared + K_FULL, 0);
  barrier_wait(shared + V_FULL, 0);
  zero_rows<KTile>(shared + AT_K, rows);
  zero_rows<VTile>(shared + AT_V, rows);
  meet_after_zeroing();
}

// Before each step.
FAGEN_DEVICE void zero_queries_past_end(uint32_t shared, const Walk &walk) {
  if constexpr (!VARLEN) return;
  const int rows = walk.lengths.seqlen_q - walk.m * BLOCK_M, c = walk.c;
  if (rows >= BLOCK_M) return;
  wait_full<STAGES_Q>(shared + Q_FULL, c);
  zero_rows<QTile>(shared + AT_Q + c % STAGES_Q * Q_BYTES, rows);
  wait_full<STAGES_DO>(shared + DO_FULL, c);
  zero_rows<DoTile>(shared + AT_DO + c % STAGES_DO * DO_BYTES, rows);
  meet_after_zeroing();
}

// 64 keys of dK or dV, from where they are staged. A warpgroup calls it.
template <class T, int COLUMNS>
FAGEN_DEVICE void store_keys(const fagen_view &view, uint32_t rows, int first, int kv_head,
                             const Sequence &sequence) {
  uint16_t *const to = sequence.kv_rows<uint16_t>(view, kv_head);
  for (int i = threadIdx.x % 128; i < 64 * (COLUMNS / 8); i += 128) {
    const int row = i / (COLUMNS / 8), chunk = i % (COLUMNS / 8);
    if (first + row >= sequence.seqlen_kv()) break;
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(rows + T::chunk(row, chunk)));
    reinterpret_cast<uint4 *>(to + (first + row) * view.row_stride)[chunk] = v;
  }
}

#endif
