// Before and after the main kernel. One CTA of ENDS_THREADS per (query tile, head, batch); of packed
// sequences, per (slot of a query tile, head).
#ifndef FAGEN_ENDS_BWD_SM90_H
#define FAGEN_ENDS_BWD_SM90_H

#include "device/dq_bwd_sm90.h"

constexpr int ENDS_THREADS = 256;

// A row of a tensor, eight elements at a time.
FAGEN_DEVICE uint4 *row_of(const Sequence &sequence, const fagen_view &v, int head, int row) {
  return reinterpret_cast<uint4 *>(sequence.q_rows<uint16_t>(v, head) + row * v.row_stride);
}

FAGEN_DEVICE float dot(const uint4 &a, const uint4 &b) {
  const uint32_t x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 u = unpack(x[i]), v = unpack(y[i]);
    sum = fmaf(u.x, v.x, fmaf(u.y, v.y, sum));
  }
  return sum;
}

// No key block comes to a tile that attends to nothing: its dQ is written here.
template <class P>
FAGEN_DEVICE void zero_dq_without_adders(const fagen_params &p, const Sequence &sequence, int batch,
                                         int head, int m) {
  const Range adders = adders_of(head_pattern<P>(p, batch, head), m);
  if (adders.begin < adders.end) return;
  constexpr int CHUNKS = HEAD_DIM / 8;
  const int rows = min_of(BLOCK_M, sequence.seqlen_q() - m * BLOCK_M);
  for (int i = threadIdx.x; i < rows * CHUNKS; i += ENDS_THREADS)
    row_of(sequence, p.dq, head, m * BLOCK_M + i / CHUNKS)[i % CHUNKS] = make_uint4(0, 0, 0, 0);
}

// delta = rowsum(dO * O) - dLSE, the log-sum-exp in base 2, and zeros where dQ will be summed.
// A row that attends to nothing, or past the end, gets +inf: its probabilities come out as zero.
FAGEN_DEVICE void preprocess(const fagen_params &p) {
  constexpr int LANES = HEAD_DIM_V <= 64 ? 8 : HEAD_DIM_V <= 128 ? 16 : 32;  // 8 dims each
  constexpr int ROWS = ENDS_THREADS / LANES;
  if (RESIDENT && (blockIdx.x | blockIdx.y | blockIdx.z | threadIdx.x) == 0) *taken(p) = 0;
  const Slot slot = q_slot(p, BLOCK_M, blockIdx.x, blockIdx.z);
  const int m = slot.tile, head = blockIdx.y, batch = slot.batch;
  const Sequence sequence(p, batch);
  const int seqlen_q = sequence.seqlen_q();
  if (VARLEN && m * BLOCK_M >= seqlen_q) return;
  const int lane = threadIdx.x % LANES;
  const int tile = tile_index(p, batch, head, m);

  if constexpr (COUNTED) {
    if (threadIdx.x < DQ_SENDERS) *turn_at(p, tile, threadIdx.x) = FIRST_COUNT;
    zero_dq_without_adders<Pattern>(p, sequence, batch, head, m);
  } else {
    float4 *const sums = reinterpret_cast<float4 *>(dq_tile(p, tile));
#pragma unroll 4
    for (int i = threadIdx.x; i < DQ_TILE_FLOATS / 4; i += ENDS_THREADS)
      sums[i] = make_float4(0.f, 0.f, 0.f, 0.f);
    if (DETERMINISTIC && threadIdx.x < DQ_SENDERS)
      *turn_at(p, tile, threadIdx.x) =
          first_turn(head_pattern<Pattern>(p, batch, head), m);
  }

#pragma unroll
  for (int first = 0; first < BLOCK_M; first += ROWS) {
    const int in_tile = first + threadIdx.x / LANES, row = m * BLOCK_M + in_tile;
    float delta = 0.f;
    if (row < seqlen_q && lane * 8 < HEAD_DIM_V && in_tile < BLOCK_M)
      delta = dot(row_of(sequence, p.o, head, row)[lane], row_of(sequence, p.dout, head, row)[lane]);
#pragma unroll
    for (int i = LANES / 2; i > 0; i /= 2) delta += __shfl_xor_sync(FULL_WARP, delta, i);
    if (lane == 0 && in_tile < BLOCK_M) {
      float lse = -INFINITY;
      if (row < seqlen_q) {
        const int64_t at = sequence.lse_row(head) + row;
        lse = p.lse[at];
        if (p.dlse) delta -= p.dlse[at];
      }
      const bool empty = lse == -INFINITY;
      float *const rows = static_cast<float *>(p.work[0]) + static_cast<int64_t>(tile) * (2 * BLOCK_M) + in_tile;
      rows[0] = empty ? INFINITY : lse * LOG2E;
      rows[BLOCK_M] = empty ? 0.f : delta;
    }
  }
}

// Where the float4 i of a dQ tile lies: rows r and r + 8, columns c and c + 1, as (r, c).
// A transposed piece holds dims as rows; then it is dims r and r + 8, queries c and c + 1.
FAGEN_DEVICE int2 dq_place(int i) {
  constexpr int ROW_FLOAT4 = OWN_DQ ? 16 * D : 16 * DQ_PIECE_COLUMNS;  // of one row of pieces
  const int part = i / ROW_FLOAT4, inside = i % ROW_FLOAT4;  // a piece, or a row of them
  const int thread = i % 128, row = thread / 32 * 16 + thread % 32 / 4;
  const int column = inside / 128 * 8 + thread % 4 * 2;
  const int2 shift = DQ_CUT == DqCut::columns         ? make_int2(0, DQ_PIECE_COLUMNS * part)
                     : DQ_CUT == DqCut::dims_and_rows ? make_int2(0, DQ_PIECE_COLUMNS * part)
                                                      : make_int2(64 * part, 0);
  return make_int2(row + shift.x, column + shift.y);
}

constexpr int PITCH = D + 8;  // of `turned`, so that the four banks of a row are apart
constexpr int TURNED_BYTES = 2 * BLOCK_M * PITCH;

// dQ = scale * sums, in 16 bits and in order. `turned` is shared memory.
FAGEN_DEVICE void convert(const fagen_params &p, uint16_t *turned) {
  const Slot slot = q_slot(p, BLOCK_M, blockIdx.x, blockIdx.z);
  const int m = slot.tile, head = blockIdx.y, batch = slot.batch;
  const Sequence sequence(p, batch);
  const int seqlen_q = sequence.seqlen_q();
  if (VARLEN && m * BLOCK_M >= seqlen_q) return;
  const float4 *const sums =
      reinterpret_cast<const float4 *>(dq_tile(p, tile_index(p, batch, head, m)));
#pragma unroll 4
  for (int i = threadIdx.x; i < DQ_TILE_FLOATS / 4; i += ENDS_THREADS) {
    const float4 v = sums[i];
    const int2 at = dq_place(i);
    const uint32_t top = pack<DTYPE>(v.x * p.scale, v.y * p.scale);
    const uint32_t bottom = pack<DTYPE>(v.z * p.scale, v.w * p.scale);
    if constexpr (DQ_TRANSPOSED) {
      turned[at.y * PITCH + at.x] = static_cast<uint16_t>(top);
      turned[(at.y + 1) * PITCH + at.x] = static_cast<uint16_t>(top >> 16);
      turned[at.y * PITCH + at.x + 8] = static_cast<uint16_t>(bottom);
      turned[(at.y + 1) * PITCH + at.x + 8] = static_cast<uint16_t>(bottom >> 16);
    } else {
      *reinterpret_cast<uint32_t *>(&turned[at.x * PITCH + at.y]) = top;
      *reinterpret_cast<uint32_t *>(&turned[(at.x + 8) * PITCH + at.y]) = bottom;
    }
  }
  __syncthreads();
  constexpr int CHUNKS = HEAD_DIM / 8;
  for (int i = threadIdx.x; i < BLOCK_M * CHUNKS; i += ENDS_THREADS) {
    const int row = i / CHUNKS, chunk = i % CHUNKS, q = m * BLOCK_M + row;
    if (q < seqlen_q)
      row_of(sequence, p.dq, head, q)[chunk] =
          *reinterpret_cast<const uint4 *>(&turned[row * PITCH + 8 * chunk]);
  }
}

#endif
