// The barriers of the sm90 backward: every stage in shared memory is full or empty.
#ifndef FAGEN_RINGS_BWD_SM90_H
#define FAGEN_RINGS_BWD_SM90_H

#include "device/barrier_sm90.h"
#include "device/layout_bwd_sm90.h"

// One arrival per warp that reads (or, for dS and P, writes) a stage. K and V of a resident CTA are
// let go of by those who make or send dQ, and by the warp that sends what takes their place.
FAGEN_DEVICE void init_barriers(uint32_t shared) {
  constexpr int readers = 4 * CONSUMERS, writers = SPLIT ? 4 : 4 * CONSUMERS;
  constexpr int dq_readers = OWN_DQ ? 4 : 4 * CONSUMERS;
  constexpr int keys_readers = (OWN_DQ ? 4 : CONSUMERS) + 1;
  for (int i = 0; i < STAGES_Q; i++) {
    barrier_init(shared + Q_FULL + 8 * i, 1);
    barrier_init(shared + Q_EMPTY + 8 * i, readers);
  }
  for (int i = 0; i < STAGES_DO; i++) {
    barrier_init(shared + DO_FULL + 8 * i, 1);
    barrier_init(shared + DO_EMPTY + 8 * i, readers);
  }
  for (int i = 0; i < STAGES_DS; i++) {
    barrier_init(shared + DS_FULL + 8 * i, writers);
    barrier_init(shared + DS_EMPTY + 8 * i, dq_readers);
  }
  for (int i = 0; i < STAGES_P; i++) {
    barrier_init(shared + P_FULL + 8 * i, 4);
    barrier_init(shared + P_EMPTY + 8 * i, 4);
  }
  for (int i = 0; i < STAGES_KV; i++) {
    barrier_init(shared + K_FULL + 8 * i, 1);
    barrier_init(shared + V_FULL + 8 * i, 1);
    if (RESIDENT) barrier_init(shared + KEYS_EMPTY + 8 * i, keys_readers);
    if (RESIDENT) barrier_init(shared + OUTPUT_FULL + 8 * i, readers);
  }
  barrier_init_fence();
}

// The c-th use of a ring of barriers: wait for it to fill, wait until it may be filled, hand on.
template <int STAGES>
FAGEN_DEVICE void wait_full(uint32_t barriers, int c) {
  barrier_wait(barriers + 8 * (c % STAGES), c / STAGES & 1);
}
template <int STAGES>
FAGEN_DEVICE void wait_empty(uint32_t barriers, int c) {
  barrier_wait(barriers + 8 * (c % STAGES), (c / STAGES & 1) ^ 1);
}
template <int STAGES>
FAGEN_DEVICE void arrive_by_warp(uint32_t barriers, int c) {
  if (threadIdx.x % 32 == 0) barrier_arrive(barriers + 8 * (c % STAGES));
}

#endif
