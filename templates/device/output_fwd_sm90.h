// What a forward consumer writes of its 64 rows: O divided by the row sums, and the LSE.
#ifndef FAGEN_OUTPUT_FWD_SM90_H
#define FAGEN_OUTPUT_FWD_SM90_H

#include "device/blocks_fwd_sm90.h"
#include "device/softmax_sm90.h"
#include "device/tma_sm90.h"

struct Output {
  using Registers = float[V_DIM / 2];

  const fagen_params &p;
  const TensorMap *map_o;
  const Shared &shared;
  const int group, warp, lane;  // warp in the warpgroup

  FAGEN_DEVICE bool leader() const { return warp == 0 && lane == 0; }
  FAGEN_DEVICE int first_row(const Note &tile) const { return tile.block * BLOCK_M + group * 64; }
  FAGEN_DEVICE int thread_row() const { return warp * 16 + lane / 4; }  // and the one 8 below

  FAGEN_DEVICE float *lse_row(const Note &tile) const {
    return p.lse + Sequence(p, tile.batch).lse_row(tile.head);
  }
  FAGEN_DEVICE uint16_t *o_row(const Note &tile, int row) const {
    return Sequence(p, tile.batch).template q_rows<uint16_t>(p.o, tile.head) + row * p.o.row_stride;
  }

  // `number` is the tile's place in the stream.
  FAGEN_DEVICE void write(const Registers &o, const RowState &state, const Note &tile,
                          int number) const {
    const int rows = Sequence(p, tile.batch).seqlen_q();
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float sum = quad_sum(state.sum[i]);
      const int row = first_row(tile) + thread_row() + 8 * i;
      factor[i] = sum == 0.f ? 0.f : 1.f / sum;
      if ((lane & 3) == 0 && row < rows)
        lse_row(tile)[row] = sum == 0.f ? -INFINITY : state.reference[i] * LN2 + __logf(sum);
    }
    // A whole box would write over the next sequence.
    const bool ragged = VARLEN && first_row(tile) + 64 > rows;
    if (EPILOGUE == Epilogue::staged && !ragged)
      write_staged(o, factor, tile, number);
    else
      write_direct(o, factor, tile, rows);
  }

  // The two columns that a thread has of row `i` in a group of eight.
  static FAGEN_DEVICE uint32_t pair(const Registers &o, const float (&factor)[2], int eight, int i) {
    return pack<DTYPE>(o[4 * eight + 2 * i] * factor[i], o[4 * eight + 2 * i + 1] * factor[i]);
  }

  FAGEN_DEVICE void write_staged(const Registers &o, const float (&factor)[2], const Note &tile,
                                 int number) const {
    const uint32_t to = shared.o(group);
    if (leader()) bulk_wait_read<0>();
    named_sync(5 + group, 128);
#pragma unroll
    for (int i = 0; i < V_DIM / 16; i++)
      store_matrix(to + OTile::chunk(warp * 16 + (lane & 15), 2 * i + (lane >> 4)),
                   pair(o, factor, 2 * i, 0), pair(o, factor, 2 * i, 1),
                   pair(o, factor, 2 * i + 1, 0), pair(o, factor, 2 * i + 1, 1));
    fence_async_shared();
    named_sync(5 + group, 128);
    // Two stores of the same tile would race: one that comes again is not stored now.
    const bool again = REDO && (shared.control().overflowed[number % NOTES] >> group & 1);
    if (!leader() || again) return;
#pragma unroll
    for (int i = 0; i < OTile::count; i++)
      tma_store(map_o, to + i * OTile::panel_bytes, i * OTile::panel_columns,
                Sequence(p, tile.batch).first_q() + first_row(tile), tile.head,
                map_entry(tile.batch));
    bulk_commit();
  }

  // A quad exchanges its pairs of columns so that each lane stores 8 columns of every 32 at once.
  FAGEN_DEVICE void write_direct(const Registers &o, const float (&factor)[2], const Note &tile,
                                 int rows) const {
    const int t = lane & 3;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int row = first_row(tile) + thread_row() + 8 * i;
      uint16_t *to = o_row(tile, row);
#pragma unroll
      for (int c = 0; c + 32 <= HEAD_DIM_V; c += 32) {
        uint32_t r[4];
#pragma unroll
        for (int j = 0; j < 4; j++) r[j] = pair(o, factor, c / 8 + j, i);
        quad_transpose(r, t);
        if (row < rows)
          *reinterpret_cast<uint4 *>(to + c + 8 * t) = make_uint4(r[0], r[1], r[2], r[3]);
      }
#pragma unroll
      for (int c = HEAD_DIM_V / 32 * 32; c < HEAD_DIM_V; c += 8)
        if (row < rows)
          *reinterpret_cast<uint32_t *>(to + c + 2 * t) = pair(o, factor, c / 8, i);
    }
  }

  // Rows that attend to nothing.
  FAGEN_DEVICE void write_nothing(const Note &tile) const {
    constexpr int CHUNKS = HEAD_DIM_V / 8;
    const int thread = warp * 32 + lane, row = first_row(tile) + thread;
    const int rows = Sequence(p, tile.batch).seqlen_q();
#pragma unroll 1
    for (int i = thread; i < 64 * CHUNKS; i += 128)
      if (first_row(tile) + i / CHUNKS < rows)
        *reinterpret_cast<uint4 *>(o_row(tile, first_row(tile) + i / CHUNKS) + i % CHUNKS * 8) =
            make_uint4(0, 0, 0, 0);
    if (thread < 64 && row < rows) lse_row(tile)[row] = -INFINITY;
  }

  // Shared memory must outlive the stores that read it.
  FAGEN_DEVICE void finish() const {
    if (EPILOGUE == Epilogue::staged && leader()) bulk_wait<0>();
  }
};

#endif
