// Consumers by task, for head dims whose dK and dV do not fit in the registers of one warpgroup.
// Both have the same 64 keys. The value side computes P and dV, the key side dS and dK; P passes
// from one to the other in the order of the threads, which is the same on both sides.
//
// An arrival on a barrier does not wait for loads from shared memory that are still on their way. So
// what was only loaded (delta, P, LSE) is released behind a store that needs what was made of it.
#ifndef FAGEN_SPLIT_BWD_SM90_H
#define FAGEN_SPLIT_BWD_SM90_H

#include "device/rows_bwd_sm90.h"

FAGEN_DEVICE uint32_t p_stage(uint32_t shared, int c) {
  return shared + AT_P + c % STAGES_P * P_BYTES + 16 * (threadIdx.x % 128);
}

FAGEN_DEVICE void pass_p(uint32_t shared, const Packed &p16, int c) {
  wait_empty<STAGES_P>(shared + P_EMPTY, c);
#pragma unroll
  for (int i = 0; i < BLOCK_M / 16; i++)
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(p_stage(shared, c) + 2048 * i),
                 "r"(p16[4 * i]), "r"(p16[4 * i + 1]), "r"(p16[4 * i + 2]), "r"(p16[4 * i + 3])
                 : "memory");
  __syncwarp();
  arrive_by_warp<STAGES_P>(shared + P_FULL, c);
}

FAGEN_DEVICE void receive_p(uint32_t shared, Packed &p16, int c) {
  wait_full<STAGES_P>(shared + P_FULL, c);
#pragma unroll
  for (int i = 0; i < BLOCK_M / 16; i++)
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(p16[4 * i]), "=r"(p16[4 * i + 1]), "=r"(p16[4 * i + 2]),
                   "=r"(p16[4 * i + 3])
                 : "r"(p_stage(shared, c) + 2048 * i)
                 : "memory");
}
FAGEN_DEVICE void release_p(uint32_t shared, int c) {
  arrive_by_warp<STAGES_P>(shared + P_EMPTY, c);
}

// A finished result, which took the place of the operand it had in shared memory, leaves.
template <class T, int COLUMNS>
FAGEN_DEVICE void output(const fagen_params &p, uint32_t shared, uint32_t rows, const TensorMap *map,
                         const fagen_view &view, int w) {
  named_sync(OUTPUT + w, 128);
  const KeyBlock block = key_block(p, shared, 0);
  const Sequence sequence(p, block.batch);
  if constexpr (VARLEN) {
    const int first = block.n * BLOCK_N;
    if (first + 64 > sequence.seqlen_kv()) {
      store_keys<T, COLUMNS>(view, rows, first, block.kv_head, sequence);
      return;
    }
  }
  if (threadIdx.x % 128 == 0) {
    send_output<T>(map, rows, sequence.first_kv() + block.n * BLOCK_N, block);
    bulk_commit();
    bulk_wait_read<0>();
  }
}

FAGEN_DEVICE int value_side(const Consumer &consumer, int steps) {
  const uint32_t shared = consumer.shared;
  float dv[DV / 2];
#pragma unroll
  for (int i = 0; i < DV / 2; i++) dv[i] = 0.f;
  wait_full<STAGES_KV>(shared + K_FULL, consumer.b);
  Walk walk(consumer.p, shared, consumer.b, steps);
  zero_keys_past_end(shared, walk);
#pragma unroll 1
  for (; walk.more(); walk.advance()) {
    const int c = walk.c;
    zero_queries_past_end(shared, walk);
    Packed p16;
    {
      Scores s;
      consumer.issue_scores(s, c);
      wgmma_wait<0>();
      pin(s);
      if (walk.masked())
        consumer.make_probabilities<true>(s, Mask<true>(consumer.p, 0, walk), c);
      else
        consumer.make_probabilities<false>(s, Mask<false>(consumer.p, 0, walk), c);
      pack_all(p16, s);
      pin(p16);
    }
    pass_p(shared, p16, c);
    consumer.release_q(c);
    wait_full<STAGES_DO>(shared + DO_FULL, c);
    multiply_rows<DV, DoTile>(dv, p16, consumer.dout(c));
    wgmma_wait<0>();
    pin(dv);
    pin(p16);
    consumer.release_do(c);
  }
  wait_full<STAGES_KV>(shared + V_FULL, consumer.b);
  // The key side reads V until its last dP is done; then it lets go of that step's dO.
  if (walk.steps() > 0) wait_full<STAGES_DO>(shared + DO_EMPTY, walk.steps() - 1);
  stage_output<VTile, DV>(consumer.v(), dv, 1.f);
  fence_async_shared();
  return walk.steps();
}

FAGEN_DEVICE int key_side(const Consumer &consumer, int steps) {
  const uint32_t shared = consumer.shared;
  float dk[D / 2];
#pragma unroll
  for (int i = 0; i < D / 2; i++) dk[i] = 0.f;
  wait_full<STAGES_KV>(shared + V_FULL, consumer.b);
  Walk walk(consumer.p, shared, consumer.b, steps);
  zero_keys_past_end(shared, walk);
#pragma unroll 1
  for (; walk.more(); walk.advance()) {
    const int c = walk.c;
    zero_queries_past_end(shared, walk);
    Packed ds16;
    {
      Scores dp;
      Packed p16;
      consumer.issue_dp(dp, c);
      receive_p(shared, p16, c);
      wgmma_wait<0>();
      pin(dp);
      score_gradients(ds16, p16, dp, consumer.delta(c));
    }
    consumer.publish_ds(ds16, c);
    release_p(shared, c);
    consumer.release_do(c);
    wait_full<STAGES_Q>(shared + Q_FULL, c);
    consumer.issue_dk(dk, ds16, c);
    wgmma_wait<0>();
    pin(dk);
    pin(ds16);
    consumer.release_q(c);
  }
  consumer.announce_end(walk.steps());
  wait_full<STAGES_KV>(shared + K_FULL, consumer.b);
  // The last dQ, and before it the last scores, read K.
  await_last_dq(shared, walk.steps());
  stage_output<KTile, D>(consumer.k(), dk, consumer.p.scale);
  fence_async_shared();
  return walk.steps();
}

FAGEN_DEVICE void consume_split(const fagen_params &p, uint32_t shared, int side,
                                const TensorMap *dk_map, const TensorMap *dv_map) {
  const Consumer consumer{p, shared, 0, p.scale * LOG2E};
  if constexpr (RESIDENT) {
    if (side == 0) consume_blocks(consumer, value_side);
    else consume_blocks(consumer, key_side);
  } else if (side == 0) {
    value_side(consumer, 0);
    output<VTile, HEAD_DIM_V>(p, shared, consumer.v(), dv_map, p.dv, 0);
  } else {
    key_side(consumer, 0);
    output<KTile, HEAD_DIM>(p, shared, consumer.k(), dk_map, p.dk, 1);
  }
}

#endif
