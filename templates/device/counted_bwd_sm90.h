// The warpgroup that makes dQ, where the sums are counted (sums_bwd_sm90.h).
#ifndef FAGEN_COUNTED_BWD_SM90_H
#define FAGEN_COUNTED_BWD_SM90_H

#include "device/dq_bwd_sm90.h"

// A step's query tile.
struct Place {
  int head, m, tile;
};

constexpr int PIECES = BLOCK_M / 64 * ((D + DQ_PIECE_COLUMNS - 1) / DQ_PIECE_COLUMNS);  // of a tile

FAGEN_DEVICE void finish_tile(const fagen_params &p, int batch, const Place &at) {
#pragma unroll 1
  for (int row = 0; row < BLOCK_M; row += 64)
    finish_dq(p, batch, at.head, at.m, dq_tile(p, at.tile) + row * D, row);
}

// What thread 0 has to say, to the whole warpgroup. Between two calls the group meets otherwise.
FAGEN_DEVICE int told(uint32_t shared, int word) {
  if (threadIdx.x % 128 == 0)
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(shared + AT_TOLD), "r"(word) : "memory");
  named_sync(DQ_GROUP, 128);
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(shared + AT_TOLD));
  return word;
}

// A step is counted one step later, when its reductions have landed anyway, or at once if others wait.
template <class P>
FAGEN_DEVICE void make_counted_dq(const fagen_params &p, uint32_t shared) {
  int b = 0, step = 0, sent = 0;  // of the CTA so far
  if (RESIDENT && !follows(p, shared, b)) return wait_for_previous_kernel();
  do {
    const KeyBlock block = key_block(p, shared, b);
    const bool first_thread = threadIdx.x % 128 == 0;
    const uint32_t k = shared + AT_K + b % STAGES_KV * KEYS_BYTES;
    DqWork work{shared, k, nullptr, nullptr, {}, step, sent, {}};
    Share before;  // of the step before, if it is not counted yet: the first thread knows
    Place before_at{};
    wait_for_previous_kernel();
    wait_full<STAGES_KV>(shared + K_FULL, b);
    find_steps<P>(p, block, [&](int head, int m, int tile, bool) {
      const Place at{head, m, tile};
      work.share = share_of<P>(p, block, head, m, tile);
      work.sums = dq_tile(p, tile);
      if (first_thread) work.share.claim();  // the answer is there when the piece is
      wait_full<STAGES_DS>(shared + DS_FULL, work.step);
      for (int row = 0; row < BLOCK_M; row += 64) make_dq_pieces<0>(work, row);
      work.step++;
      int complete = 0;  // 1: the tile of the step before, 2: this one
      if (first_thread) {
        if (before.count) {
          bulk_wait<PIECES>();
          complete = before.add();
        }
        before = work.share;
        if (work.share.urgent()) {
          bulk_wait<0>();
          complete |= work.share.add() << 1;
          before.count = nullptr;
        }
      }
      complete = told(shared, complete);
      if (complete & 1) finish_tile(p, block.batch, before_at);
      if (complete & 2) finish_tile(p, block.batch, at);
      before_at = at;
    });
    release_keys(shared, b);
    if (work.step == step) continue;
    step = work.step, sent = work.sent;
    // The last step of the block, while consumers end it and begin the next one.
    int complete = 0;
    if (first_thread) {
      bulk_wait<0>();
      if (before.count) complete = before.add();
    }
    named_sync(DQ_GROUP, 128);  // all have read what was told last
    if (told(shared, complete)) finish_tile(p, block.batch, before_at);
  } while (RESIDENT && follows(p, shared, ++b));
}

#endif
