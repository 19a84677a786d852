// Consumers by rows: every warpgroup owns 64 keys and computes P, dS, dV and dK for them. They share
// the queries, and exchange dS for dQ, in one of three ways:
//   lockstep  each makes its piece of dQ in the same step; all meet between dS and dQ
//   delayed   each makes its piece of the previous step's dQ, so that nobody waits for the others
//   own       another warpgroup makes dQ
#ifndef FAGEN_ROWS_BWD_SM90_H
#define FAGEN_ROWS_BWD_SM90_H

#include "device/dq_bwd_sm90.h"
#include "device/resident_bwd_sm90.h"
#include "device/tails_bwd_sm90.h"

struct Consumer {
  const fagen_params &p;
  uint32_t shared;
  int w;             // which consumer
  float scale_log2;
  int b = 0;         // which key block of the CTA

  FAGEN_DEVICE uint32_t q(int c) const { return shared + AT_Q + c % STAGES_Q * Q_BYTES; }
  FAGEN_DEVICE uint32_t dout(int c) const { return shared + AT_DO + c % STAGES_DO * DO_BYTES; }
  FAGEN_DEVICE uint32_t ds(int c) const { return shared + AT_DS + c % STAGES_DS * DsTile::bytes; }
  FAGEN_DEVICE uint32_t k() const { return shared + AT_K + b % STAGES_KV * KEYS_BYTES; }
  FAGEN_DEVICE uint32_t v() const { return shared + AT_V + b % STAGES_KV * KEYS_BYTES; }
  FAGEN_DEVICE uint32_t k_rows() const { return k() + 64 * w * KTile::swizzle; }
  FAGEN_DEVICE uint32_t v_rows() const { return v() + 64 * w * VTile::swizzle; }
  FAGEN_DEVICE uint32_t lse(int c) const {
    return shared + AT_LSE + c % STAGES_Q * ROW_BYTES + threadIdx.x % 4 * 8;
  }
  FAGEN_DEVICE uint32_t delta(int c) const {
    return shared + AT_DELTA + c % STAGES_DO * ROW_BYTES + threadIdx.x % 4 * 8;
  }

  FAGEN_DEVICE void issue_scores(Scores &s, int c) const {
    wait_full<STAGES_Q>(shared + Q_FULL, c);
    multiply_columns<BLOCK_M, D, KTile, QTile>(s, k_rows(), q(c));
  }
  FAGEN_DEVICE void issue_dp(Scores &dp, int c) const {
    wait_full<STAGES_DO>(shared + DO_FULL, c);
    multiply_columns<BLOCK_M, DV, VTile, DoTile>(dp, v_rows(), dout(c));
  }
  template <bool MASKED>
  FAGEN_DEVICE void make_probabilities(Scores &s, const Mask<MASKED> &mask, int c) const {
    probabilities(s, scale_log2, lse(c));
    mask.apply(s);
  }

  // P and dS of step walk.c, packed. With P_FP32, S and dP run together and P stays in fp32 until
  // dS is made; otherwise P is packed first, and dV runs under the arithmetic of dS.
  template <bool MASKED>
  FAGEN_DEVICE void make_p_and_ds(Packed &p16, Packed &ds16, float (&dv)[DV / 2],
                                  const Walk &walk) const {
    zero_queries_past_end(shared, walk);
    const Mask<MASKED> mask(p, w, walk);
    if constexpr (P_FP32) {
      Scores s, dp;
      issue_scores(s, walk.c);
      issue_dp(dp, walk.c);
      wgmma_wait<1>();
      pin(s);
      make_probabilities<MASKED>(s, mask, walk.c);
      pin(s);
      wgmma_wait<0>();
      pin(dp);
      score_gradients(ds16, p16, s, dp, delta(walk.c));
    } else {
      Scores s;
      issue_scores(s, walk.c);
      wgmma_wait<0>();
      pin(s);
      make_probabilities<MASKED>(s, mask, walk.c);
      pin(s);
      pack_all(p16, s);
      pin(p16);
      Scores dp;
      issue_dp(dp, walk.c);
      multiply_rows<DV, DoTile>(dv, p16, dout(walk.c));
      wgmma_wait<1>();
      pin(dp);
      score_gradients(ds16, p16, dp, delta(walk.c));
    }
  }
  FAGEN_DEVICE void issue_dv(float (&dv)[DV / 2], Packed &p16, int c) const {
    if constexpr (P_FP32) multiply_rows<DV, DoTile>(dv, p16, dout(c));
  }
  FAGEN_DEVICE void issue_dk(float (&dk)[D / 2], Packed &ds16, int c) const {
    multiply_rows<D, QTile>(dk, ds16, q(c));
  }
  FAGEN_DEVICE void publish_ds(const Packed &ds16, int c) const {
    wait_empty<STAGES_DS>(shared + DS_EMPTY, c);
    store_gradients(ds(c), w, ds16);
    fence_async_shared();
    __syncwarp();
    arrive_by_warp<STAGES_DS>(shared + DS_FULL, c);
  }
  FAGEN_DEVICE void release_q(int c) const { arrive_by_warp<STAGES_Q>(shared + Q_EMPTY, c); }
  FAGEN_DEVICE void release_do(int c) const { arrive_by_warp<STAGES_DO>(shared + DO_EMPTY, c); }

  template <bool MASKED>
  FAGEN_DEVICE void lockstep(float (&dk)[D / 2], float (&dv)[DV / 2], const Walk &walk) const;
  template <bool MASKED>
  FAGEN_DEVICE void delayed(float (&dk)[D / 2], float (&dv)[DV / 2], const Walk &walk) const;
  template <bool MASKED>
  FAGEN_DEVICE void without_dq(float (&dk)[D / 2], float (&dv)[DV / 2], const Walk &walk) const;
  FAGEN_DEVICE void last_delayed_dq(int steps) const;
  FAGEN_DEVICE void announce_end(int steps) const;

  template <bool MASKED>
  FAGEN_DEVICE void step(float (&dk)[D / 2], float (&dv)[DV / 2], const Walk &walk) const {
    if constexpr (DQ == Dq::lockstep) lockstep<MASKED>(dk, dv, walk);
    if constexpr (DQ == Dq::delayed) delayed<MASKED>(dk, dv, walk);
    if constexpr (DQ == Dq::own) without_dq<MASKED>(dk, dv, walk);
  }
};

template <bool MASKED>
FAGEN_DEVICE void Consumer::lockstep(float (&dk)[D / 2], float (&dv)[DV / 2],
                                     const Walk &walk) const {
  const int c = walk.c;
  Packed p16, ds16;
  make_p_and_ds<MASKED>(p16, ds16, dv, walk);
  store_gradients(ds(c), w, ds16);
  issue_dv(dv, p16, c);
  fence_async_shared();
  named_sync(EVERY_CONSUMER, 128 * CONSUMERS);  // all of dS is there, and the last dQ was read
  float dq[DQ_PIECE_COLUMNS / 2];
  multiply_own_piece(dq, ds(c), k(), w);
  wgmma_wait<1>();
  pin(dv);
  pin(p16);
  release_do(c);
  issue_dk(dk, ds16, c);
  wgmma_wait<1>();
  pin(dq);
  hand_over_dq(shared, dq, w);
  wgmma_wait<0>();
  pin(dk);
  pin(ds16);
  release_q(c);
}

template <bool MASKED>
FAGEN_DEVICE void Consumer::delayed(float (&dk)[D / 2], float (&dv)[DV / 2],
                                    const Walk &walk) const {
  const int c = walk.c, before = c + STAGES_DS - 1;  // the same stage as c - 1
  Packed p16, ds16;
  float dq[DQ_PIECE_COLUMNS / 2];
  make_p_and_ds<MASKED>(p16, ds16, dv, walk);
  issue_dv(dv, p16, c);
  publish_ds(ds16, c);
  if (!walk.first()) wait_full<STAGES_DS>(shared + DS_FULL, c - 1);
  multiply_own_piece(dq, ds(before), k(), w);  // of no use in the first step
  issue_dk(dk, ds16, c);
  wgmma_wait<1>();
  pin(dv);
  pin(p16);
  pin(dq);
  release_do(c);
  if (!walk.first()) {
    arrive_by_warp<STAGES_DS>(shared + DS_EMPTY, c - 1);
    hand_over_dq(shared, dq, w);
  }
  wgmma_wait<0>();
  pin(dk);
  pin(ds16);
  release_q(c);
}

FAGEN_DEVICE void Consumer::last_delayed_dq(int steps) const {
  float dq[DQ_PIECE_COLUMNS / 2];
  wait_full<STAGES_DS>(shared + DS_FULL, steps - 1);
  multiply_own_piece(dq, ds(steps - 1), k(), w);
  wgmma_wait<0>();
  pin(dq);
  if (RESIDENT) arrive_by_warp<STAGES_DS>(shared + DS_EMPTY, steps - 1);
  hand_over_dq(shared, dq, w);
}

template <bool MASKED>
FAGEN_DEVICE void Consumer::without_dq(float (&dk)[D / 2], float (&dv)[DV / 2],
                                       const Walk &walk) const {
  const int c = walk.c;
  Packed p16, ds16;
  make_p_and_ds<MASKED>(p16, ds16, dv, walk);
  issue_dv(dv, p16, c);
  publish_ds(ds16, c);
  issue_dk(dk, ds16, c);
  wgmma_wait<1>();
  pin(dv);
  pin(p16);
  release_do(c);
  wgmma_wait<0>();
  pin(dk);
  pin(ds16);
  release_q(c);
}

// Those who send dQ wait for a step that does not come: its note says so.
FAGEN_DEVICE void Consumer::announce_end(int steps) const {
  if constexpr (!NOTED) return;
  if constexpr (OWN_DQ) {
    wait_empty<STAGES_DS>(shared + DS_EMPTY, steps);
    arrive_by_warp<STAGES_DS>(shared + DS_FULL, steps);
  } else {
    named_sync(DQ_SENT + w, 160);
    named_arrive(DQ_STAGED + w, 160);
  }
}

// Until the last dQ multiply, which reads K, is done. Only with a dQ warpgroup.
FAGEN_DEVICE void await_last_dq(uint32_t shared, int steps) {
  if (steps > 0) wait_full<STAGES_DS>(shared + DS_EMPTY, steps - 1);
}

// dK and dV of the consumer's key block, left in the place of K and V. Returns the steps so far.
FAGEN_DEVICE int consume_block(const Consumer &consumer, int steps) {
  const fagen_params &p = consumer.p;
  const uint32_t shared = consumer.shared;
  float dk[D / 2], dv[DV / 2];
#pragma unroll
  for (int i = 0; i < D / 2; i++) dk[i] = 0.f;
#pragma unroll
  for (int i = 0; i < DV / 2; i++) dv[i] = 0.f;
  wait_full<STAGES_KV>(shared + K_FULL, consumer.b);
  wait_full<STAGES_KV>(shared + V_FULL, consumer.b);
  Walk walk(p, shared, consumer.b, steps);
  zero_keys_past_end(shared, walk);
#pragma unroll 1
  for (; walk.more(); walk.advance())
    if (walk.masked())
      consumer.step<true>(dk, dv, walk);
    else
      consumer.step<false>(dk, dv, walk);
  if constexpr (DQ == Dq::delayed)
    if (walk.any()) consumer.last_delayed_dq(walk.steps());
  consumer.announce_end(walk.steps());
  // The output takes the place of K and V when nobody reads them any more.
  if constexpr (DQ == Dq::own)
    await_last_dq(shared, walk.steps());
  else
    named_sync(EVERY_CONSUMER, 128 * CONSUMERS);
  stage_output<VTile, DV>(consumer.v_rows(), dv, 1.f);
  stage_output<KTile, D>(consumer.k_rows(), dk, p.scale);
  fence_async_shared();
  return walk.steps();
}

FAGEN_DEVICE void consume_rows(const fagen_params &p, uint32_t shared, int w, const TensorMap *dk_map,
                               const TensorMap *dv_map) {
  const Consumer consumer{p, shared, w, p.scale * LOG2E};
  if constexpr (RESIDENT)
    return consume_blocks(consumer, consume_block);
  consume_block(consumer, 0);
  named_sync(OUTPUT + w, 128);
  const KeyBlock block = key_block(p, shared, 0);
  const Sequence sequence(p, block.batch);
  if constexpr (VARLEN) {
    const int first = block.n * BLOCK_N + 64 * w;
    if (first + 64 > sequence.seqlen_kv()) {
      store_keys<VTile, HEAD_DIM_V>(p.dv, consumer.v_rows(), first, block.kv_head, sequence);
      store_keys<KTile, HEAD_DIM>(p.dk, consumer.k_rows(), first, block.kv_head, sequence);
      return;
    }
  }
  if (threadIdx.x % 128 == 0) {
    const int row = sequence.first_kv() + block.n * BLOCK_N + 64 * w;
    send_output<VTile>(dv_map, consumer.v_rows(), row, block);
    send_output<KTile>(dk_map, consumer.k_rows(), row, block);
    bulk_commit();
    bulk_wait_read<0>();
  }
}

#endif
