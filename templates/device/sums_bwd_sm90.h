// SUMS counted: the sums of dQ need no kernel before or behind. Every query tile has a count in
// scratch memory. The first key block to come claims the tile and stores what others add to; whoever
// makes the count complete turns the sums, still in the L2 cache, into dQ.
//
//   0      untouched
//   1      claimed; what is stored may not be seen yet
//   1 + n  n key blocks have stored or added theirs, and all of it is seen
//
// Nobody waits for a CTA that has not begun: who claims a tile stores and publishes it without
// waiting for anyone. Where key blocks take turns (DETERMINISTIC) the order is known: counts begin
// at 1, nothing is claimed, and no turn waits for a CTA that begins later.
#ifndef FAGEN_SUMS_BWD_SM90_H
#define FAGEN_SUMS_BWD_SM90_H

#include "device/step_bwd_sm90.h"
#include "device/turns_bwd_sm90.h"

constexpr int FIRST_COUNT = DETERMINISTIC ? 1 : 0;

FAGEN_DEVICE void bulk_store(void *to, uint32_t from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
               "r"(bytes)
               : "memory");
}

// A key block's part in a query tile. One thread claims, sends and counts.
struct Share {
  int *count = nullptr;  // null: there is nothing to count
  int blocks = 0;        // that add to the tile
  int turn = 0;          // which of them this one is
  int found = 0;         // what the count was when it was to be claimed

  // From here to the end of add() a tile that is ours to store waits for no other CTA.
  FAGEN_DEVICE void claim() {
    if constexpr (DETERMINISTIC) return;
    asm volatile("atom.acquire.gpu.global.cas.b32 %0, [%1], %2, %3;"
                 : "=r"(found)
                 : "l"(count), "r"(0), "r"(1)
                 : "memory");
  }
  FAGEN_DEVICE bool stores() const { return DETERMINISTIC ? turn == 0 : found == 0; }
  // Do others wait for it to be counted?
  FAGEN_DEVICE bool urgent() const { return DETERMINISTIC || stores(); }

  // Until there is something to add to, or until it is our turn.
  FAGEN_DEVICE void await() const {
    if constexpr (DETERMINISTIC) {
      await_turn(count, 1 + turn);
    } else if (found == 1) {
      while (turn_now(count) < 2) {
      }
    }
  }
  FAGEN_DEVICE void send(float *to, uint32_t from, int bytes) const {
    if (stores())
      bulk_store(to, from, bytes);
    else
      bulk_reduce_add_f32(to, from, bytes);
    bulk_commit();
  }
  // What was sent is seen now. True if nothing is missing any more.
  FAGEN_DEVICE bool add() const {
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(count), "r"(1)
                 : "memory");
    return before == blocks;
  }
};

template <class P>
FAGEN_DEVICE Share share_of(const fagen_params &p, const KeyBlock &block, int head, int m, int tile) {
  const Range adders = adders_of(head_pattern<P>(p, block.batch, head), m);
  return {turn_at(p, tile, 0), adders.end - adders.begin, adders.end - 1 - block.n, 0};
}

// 64 queries of dQ, from sums in the order of the accumulators, by the warpgroup that made some of
// them. Each store is a pair of dims: this is rare, and registers are dear.
FAGEN_DEVICE void finish_dq(const fagen_params &p, int batch, int head, int m, const float *sums,
                            int first_row) {
  constexpr int AHEAD = D % 64 == 0 && !RESIDENT ? 8 : 4;  // loads; more spill where a last piece is narrower
  const Sequence sequence(p, batch);
  const int thread = threadIdx.x % 128, dim = thread % 4 * 2;
  const int row = m * BLOCK_M + first_row + thread / 32 * 16 + thread % 32 / 4;
  const int left = sequence.seqlen_q() - row;
  uint16_t *const to = sequence.q_rows<uint16_t>(p.dq, head) + row * p.dq.row_stride + dim;
  const float4 *const from = reinterpret_cast<const float4 *>(sums) + thread;
#pragma unroll 1
  for (int c = 0; c < D / 8; c += AHEAD) {
    float4 v[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
      if (c + i < D / 8) v[i] = __ldcg(from + 128 * (c + i));  // others' reductions are in L2
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const int at = 8 * (c + i);
      if (at >= HEAD_DIM) break;
      if (left > 0)
        *reinterpret_cast<uint32_t *>(to + at) = pack<DTYPE>(v[i].x * p.scale, v[i].y * p.scale);
      if (left > 8)
        *reinterpret_cast<uint32_t *>(to + 8 * p.dq.row_stride + at) =
            pack<DTYPE>(v[i].z * p.scale, v[i].w * p.scale);
    }
  }
}

#endif
