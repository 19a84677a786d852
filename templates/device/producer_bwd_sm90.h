// The loading warp: K and V of a key block, and Q, lse, dO and delta of its steps, by TMA. One thread
// keeps the stages full; where steps are looked for, all lanes look.
#ifndef FAGEN_PRODUCER_BWD_SM90_H
#define FAGEN_PRODUCER_BWD_SM90_H

#include "device/steps_bwd_sm90.h"

struct Producer {
  const fagen_params &p;
  const uint32_t shared;
  const TensorMap *q_map, *do_map, *k_map, *v_map;

  template <class T>
  FAGEN_DEVICE void load_keys(uint32_t to, const TensorMap *map, uint32_t full, int key,
                              const KeyBlock &block) const {
    barrier_expect(full, T::bytes);
    for (int i = 0; i < T::count; i++)
      tma_load(to + i * T::panel_bytes, map, full, i * T::panel_columns, key, block.kv_head,
               entry_of(block.batch), EVICT_FIRST);
  }
  FAGEN_DEVICE void load_k(int b, int key, const KeyBlock &block) const {
    load_keys<KTile>(shared + AT_K + b % STAGES_KV * KEYS_BYTES, k_map,
                     shared + K_FULL + 8 * (b % STAGES_KV), key, block);
  }
  FAGEN_DEVICE void load_v(int b, int key, const KeyBlock &block) const {
    load_keys<VTile>(shared + AT_V + b % STAGES_KV * KEYS_BYTES, v_map,
                     shared + V_FULL + 8 * (b % STAGES_KV), key, block);
  }

  // Queries of a step, and a float for each. Every key block of the head reads them. before_load()
  // comes when the stage is empty.
  template <class F>
  FAGEN_DEVICE void load_q(int c, int head, int row, const float *lse, int entry,
                           F before_load) const {
    wait_empty<STAGES_Q>(shared + Q_EMPTY, c);
    const uint32_t full = shared + Q_FULL + 8 * (c % STAGES_Q);
    before_load();
    barrier_expect(full, QTile::bytes + ROW_BYTES);
#pragma unroll
    for (int i = 0; i < QTile::count; i++)
      tma_load(shared + AT_Q + c % STAGES_Q * Q_BYTES + i * QTile::panel_bytes, q_map, full,
               i * QTile::panel_columns, row, head, entry, EVICT_LAST);
    bulk_load(shared + AT_LSE + c % STAGES_Q * ROW_BYTES, lse, ROW_BYTES, full);
  }
  FAGEN_DEVICE void load_do(int c, int head, int row, const float *lse, int entry) const {
    wait_empty<STAGES_DO>(shared + DO_EMPTY, c);
    const uint32_t full = shared + DO_FULL + 8 * (c % STAGES_DO);
    barrier_expect(full, DoTile::bytes + ROW_BYTES);
#pragma unroll
    for (int i = 0; i < DoTile::count; i++)
      tma_load(shared + AT_DO + c % STAGES_DO * DO_BYTES + i * DoTile::panel_bytes, do_map, full,
               i * DoTile::panel_columns, row, head, entry, EVICT_LAST);
    const float *const delta = lse + BLOCK_M;
    bulk_load(shared + AT_DELTA + c % STAGES_DO * ROW_BYTES, delta, ROW_BYTES, full);
  }
  FAGEN_DEVICE const float *floats(int tile) const {
    return static_cast<const float *>(p.work[0]) + static_cast<int64_t>(tile) * (2 * BLOCK_M);
  }

  FAGEN_DEVICE void load_block(const KeyBlock &block) const;
  FAGEN_DEVICE void load_blocks() const;
};

// The CTA's only key block.
FAGEN_DEVICE void Producer::load_block(const KeyBlock &block) const {
  const Sequence sequence(p, block.batch);
  const int key = sequence.first_kv() + block.n * BLOCK_N, entry = entry_of(block.batch);
  const bool loads = !NOTED || threadIdx.x == 0;
  if (loads) load_k(0, key, block);
  wait_for_previous_kernel();  // lse and delta are its work
  int c = 0;
  find_steps<Pattern>(p, block, [&](int head, int m, int tile, bool masked) {
    const float *const lse = floats(tile);
    const int row = sequence.first_q() + m * BLOCK_M;
    load_q(c, head, row, lse, entry, [&] {
      if constexpr (NOTED) write_note(shared, c, {head, 2 * m + masked});
    });
    if (c == 0) load_v(0, key, block);
    load_do(c, head, row, lse, entry);
    c++;
  });
  if (!loads) return;
  if (c == 0) load_v(0, key, block);  // consumers wait for it even when no query sees their keys
  if constexpr (NOTED) {
    wait_empty<STAGES_Q>(shared + Q_EMPTY, c);
    write_note(shared, c, {-1, 0});
    barrier_arrive(shared + Q_FULL + 8 * (c % STAGES_Q));
  }
}

// Key blocks until there is none left. Keys come first: to load the first queries before there is a
// place for their keys takes registers that this warp does not have.
FAGEN_DEVICE void Producer::load_blocks() const {
  static_assert(!RESIDENT || !(NOTED || VARLEN), "who reads the last note would have to release it");
  const bool loads = threadIdx.x == 0;
  const int numbers = tiles_of(p.seqlen_kv, BLOCK_N) * p.kv_heads * p.batch;
  int c = 0, number = blockIdx.x;
  if (ALL_COUNTED) wait_for_previous_kernel();
  if (ALL_COUNTED && loads) number = take(p);
#pragma unroll 1
  for (int b = 0;; b++) {
    number = uniform(number);
    const bool none = number >= numbers;
    const KeyBlock block = key_block(p, none ? 0 : number);
    if (loads) {
      wait_empty<STAGES_KV>(shared + KEYS_EMPTY, b);
      write_block(shared, b, {none ? -1 : block.n, block.kv_head, block.batch});
      if (none) {
        barrier_arrive(shared + K_FULL + 8 * (b % STAGES_KV));
        return;
      }
      load_k(b, block.n * BLOCK_N, block);
      load_v(b, block.n * BLOCK_N, block);
      if (b == 0) wait_for_previous_kernel();  // lse, delta and the count are its work
      find_steps<Pattern>(p, block, [&](int head, int m, int tile, bool) {
        const float *const lse = floats(tile);
        load_q(c, head, m * BLOCK_M, lse, block.batch, [] {});
        load_do(c, head, m * BLOCK_M, lse, block.batch);
        c++;
      });
      number = take(p);
    }
    if (none) return;
    __syncwarp();
  }
}

#endif
