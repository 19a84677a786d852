// dQ: the multiply, and its way out. Accumulator registers go to shared memory as they lie in the
// threads, four floats each, and from there to an fp32 tile of the same order in device memory by a
// bulk reduction; the convert kernel undoes the order.
#ifndef FAGEN_DQ_BWD_SM90_H
#define FAGEN_DQ_BWD_SM90_H

#include "device/sums_bwd_sm90.h"

// One piece of dQ = dS K over all keys of the block. `row` and `dim` say where the piece begins.
template <int N>
FAGEN_DEVICE void multiply_dq(float (&d)[N / 2], uint32_t ds, uint32_t k, int row, int dim) {
  const uint32_t at_ds = DsTile::k_major(ds + row * DsTile::swizzle);
  const uint32_t at_k = KTile::mn_major(k + dim / KTile::panel_columns * KTile::panel_bytes);
  pin(d);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < BLOCK_N / 16; i++) {
    const uint32_t a = at_ds + DsTile::k_major_step(i), b = at_k + KTile::mn_major_step(i);
    if constexpr (DQ_TRANSPOSED)
      Wgmma<N>::template shared<KTile::high, DsTile::high, 1, 0>(d, b, a, i > 0);
    else
      Wgmma<N>::template shared<DsTile::high, KTile::high, 0, 1>(d, a, b, i > 0);
  }
  wgmma_commit();
  pin(d);
}

// The piece of consumer w, where each makes one.
FAGEN_DEVICE void multiply_own_piece(float (&d)[DQ_PIECE_COLUMNS / 2], uint32_t ds, uint32_t k,
                                     int w) {
  const int row = DQ_CUT == DqCut::rows            ? 64 * w
                  : DQ_CUT == DqCut::dims_and_rows ? DQ_PIECE_COLUMNS * w
                                                   : 0;
  const int dim = DQ_CUT == DqCut::columns ? DQ_PIECE_COLUMNS * w : DQ_CUT == DqCut::dims ? 64 * w : 0;
  multiply_dq<DQ_PIECE_COLUMNS>(d, ds, k, row, dim);
}

template <int N>
FAGEN_DEVICE void stage_dq(uint32_t buffer, const float (&d)[N / 2]) {
  const uint32_t to = buffer + 16 * (threadIdx.x % 128);
#pragma unroll
  for (int i = 0; i < N / 8; i++)
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to + 2048 * i), "f"(d[4 * i]),
                 "f"(d[4 * i + 1]), "f"(d[4 * i + 2]), "f"(d[4 * i + 3])
                 : "memory");
}

// Scratch memory: the sums of a query tile.
FAGEN_DEVICE float *dq_tile(const fagen_params &p, int tile) {
  return static_cast<float *>(p.work[1]) + static_cast<int64_t>(tile) * DQ_TILE_FLOATS;
}

// A warp that sends consumer w's piece of every step. Its lane 0 works, the others keep barriers.
FAGEN_DEVICE void send_dq(const fagen_params &p, uint32_t shared, int w) {
  const KeyBlocks blocks(p, shared);
  const uint32_t buffer = shared + AT_DQ + w * DQ_PIECE_BYTES;
  const bool first_lane = threadIdx.x % 32 == 0;
  const auto staged = [&] {
    named_arrive(DQ_SENT + w, 160);
    named_sync(DQ_STAGED + w, 160);
  };
  blocks.each([&](const KeyBlock &block, int b) {
    for_each_dq(p, block, shared, staged, [&](int head, int m, int tile) {
      if (first_lane) {
        Turn turn{};
        if (DETERMINISTIC) turn = turn_of(head_pattern<Pattern>(p, block.batch, head), block.n, m);
        if (DETERMINISTIC) await_turn(turn_at(p, tile, w), turn.mine);
        bulk_reduce_add_f32(dq_tile(p, tile) + w * (DQ_PIECE_BYTES / 4), buffer, DQ_PIECE_BYTES);
        bulk_commit();
        bulk_wait_read<0>();
        if (DETERMINISTIC) pass_turn(turn_at(p, tile, w), turn.pass);
      }
      __syncwarp();
    });
    release_keys(shared, b);
  });
  if (first_lane) bulk_wait<0>();
}

// The consumer's half of it: wait for the buffer, fill it, hand it over.
FAGEN_DEVICE void hand_over_dq(uint32_t shared, const float (&d)[DQ_PIECE_COLUMNS / 2], int w) {
  named_sync(DQ_SENT + w, 160);
  stage_dq<DQ_PIECE_COLUMNS>(shared + AT_DQ + w * DQ_PIECE_BYTES, d);
  fence_async_shared();
  named_arrive(DQ_STAGED + w, 160);
}

// --- a warpgroup that makes all of dQ and sends it itself ---------------------------------------

struct DqWork {
  uint32_t shared, k;  // k: of the key block
  float *sums;
  int *turn_at;
  Turn turn;
  int step, sent;
  Share share;  // of the query tile
};

// The pieces of one row of pieces from dim FIRST on.
template <int FIRST>
FAGEN_DEVICE void make_dq_pieces(DqWork &work, int row) {
  constexpr int N = !OWN_DQ || D - FIRST >= DQ_PIECE_COLUMNS ? DQ_PIECE_COLUMNS : D - FIRST;
  const bool first_thread = threadIdx.x % 128 == 0;
  float d[N / 2];
  const uint32_t ds = work.shared + AT_DS + work.step % STAGES_DS * DsTile::bytes;
  multiply_dq<N>(d, ds, work.k, row, FIRST);
  wgmma_wait<0>();
  pin(d);
  const bool last = FIRST + N == D && row + 64 == BLOCK_M;
  if (last) arrive_by_warp<STAGES_DS>(work.shared + DS_EMPTY, work.step);

  const uint32_t buffer = work.shared + AT_DQ + work.sent++ % DQ_BUFFERS * DQ_PIECE_BYTES;
  if (first_thread) bulk_wait_read<DQ_BUFFERS - 1>();
  named_sync(DQ_GROUP, 128);
  stage_dq<N>(buffer, d);
  fence_async_shared();
  named_sync(DQ_GROUP, 128);
  if (COUNTED && first_thread) {
    if (FIRST == 0 && row == 0) work.share.await();
    work.share.send(work.sums + row * D + FIRST * 64, buffer, N * 256);
  } else if (first_thread) {
    if (DETERMINISTIC && FIRST == 0 && row == 0) await_turn(work.turn_at, work.turn.mine);
    bulk_reduce_add_f32(work.sums + row * D + FIRST * 64, buffer, N * 256);
    bulk_commit();
    if (DETERMINISTIC && last) pass_turn(work.turn_at, work.turn.pass);
  }
  if constexpr (OWN_DQ && FIRST + N < D) make_dq_pieces<FIRST + N>(work, row);
}

FAGEN_DEVICE void make_dq(const fagen_params &p, uint32_t shared) {
  const KeyBlocks blocks(p, shared);
  DqWork work{shared, shared + AT_K, nullptr, nullptr, {}, 0, 0, {}};
  const auto ready = [&] { wait_full<STAGES_DS>(shared + DS_FULL, work.step); };
  blocks.each([&](const KeyBlock &block, int b) {
    wait_full<STAGES_KV>(shared + K_FULL, b);
    work.k = shared + AT_K + b % STAGES_KV * KEYS_BYTES;
    for_each_dq(p, block, shared, ready, [&](int head, int m, int tile) {
      work.sums = dq_tile(p, tile);
      work.turn_at = turn_at(p, tile, 0);
      if (DETERMINISTIC) work.turn = turn_of(head_pattern<Pattern>(p, block.batch, head), block.n, m);
      for (int row = 0; row < BLOCK_M; row += 64) make_dq_pieces<0>(work, row);
      work.step++;
    });
    release_keys(shared, b);
  });
  if (threadIdx.x % 128 == 0) bulk_wait<0>();
}

#endif
