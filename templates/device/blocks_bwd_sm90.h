// The key blocks of a CTA, and how its roles learn of them. With SCHEDULE grid it has one, which its
// number says. With dynamic there is one CTA for each SM: the loading warp takes numbers from a count
// in scratch memory and leaves a note of each key block in shared memory, read when its K is there.
//
// Nobody waits for ever, although a number is taken while the CTA still works on others:
//   - Turns (DETERMINISTIC) wait for smaller numbers only, and every number comes from the count, a
//     CTA's first too: it is taken by a CTA that has begun, after all smaller ones. A CTA finishes its
//     numbers in the order in which it took them. So the smallest of all unfinished ones is being worked
//     on, and waits for no turn.
//   - Sums that are counted without turns wait for whoever claimed a tile. It is claimed when the work
//     has come to that step, not when the number is taken, and stored without waiting for other CTAs.
// Where there are no turns a CTA begins with its own number, before the count is there to be read.
#ifndef FAGEN_BLOCKS_BWD_SM90_H
#define FAGEN_BLOCKS_BWD_SM90_H

#include "device/walk_bwd_sm90.h"

constexpr bool ALL_COUNTED = DETERMINISTIC;  // the CTAs' first numbers, too

// bwd_pre zeroes it; wait for that kernel first.
FAGEN_DEVICE unsigned *taken(const fagen_params &p) {
  return static_cast<unsigned *>(p.work[COUNTED || DETERMINISTIC ? 3 : 2]);
}
FAGEN_DEVICE int take(const fagen_params &p) {
  return (ALL_COUNTED ? 0 : gridDim.x) + atomicAdd(taken(p), 1u);
}

// Left where K and V are, when the place is empty. n of -1: nothing follows.
FAGEN_DEVICE uint32_t block_note(uint32_t shared, int b) {
  return shared + AT_BLOCKS + b % STAGES_KV * 16;
}
FAGEN_DEVICE void write_block(uint32_t shared, int b, const KeyBlock &block) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(block_note(shared, b)),
               "r"(block.n), "r"(block.kv_head), "r"(block.batch), "r"(b)
               : "memory");
}
// The CTA's b-th key block. Read anew wherever it is needed: cheaper than registers held through the
// main loop.
FAGEN_DEVICE KeyBlock key_block(const fagen_params &p, uint32_t shared, int b) {
  if constexpr (RESIDENT) {
    int n, kv_head, batch, which;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(n), "=r"(kv_head), "=r"(batch), "=r"(which)
                 : "r"(block_note(shared, b))
                 : "memory");
    return {uniform(n), uniform(kv_head), uniform(batch)};
  } else {
    int number;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(number));
    return key_block(p, number);
  }
}

// While a block lasts, which one it is: with one place for K and V nothing else needs to know.
FAGEN_DEVICE int which_block(uint32_t shared, int b) {
  if constexpr (STAGES_KV == 1)
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(b) : "r"(block_note(shared, 0) + 12) : "memory");
  return STAGES_KV == 1 ? uniform(b) : b;
}

// A warp's or a warpgroup's number, made anew: ptxas would rather spill it than keep it until a role
// begins that loops over key blocks.
FAGEN_DEVICE int again(int known, int anew) { return RESIDENT && OWN_DQ ? uniform(anew) : known; }

// Is there a b-th one? Returns when its K is there.
FAGEN_DEVICE bool follows(const fagen_params &p, uint32_t shared, int b) {
  wait_full<STAGES_KV>(shared + K_FULL, b);
  return key_block(p, shared, b).n >= 0;
}
// This warp needs neither the note nor K of the b-th one any more.
FAGEN_DEVICE void release_keys(uint32_t shared, int b) {
  if constexpr (!RESIDENT) return;
  __syncwarp();
  arrive_by_warp<STAGES_KV>(shared + KEYS_EMPTY, b);
}

// For those who come behind the consumers. They call release_keys when they are done with a block.
struct KeyBlocks {
  const fagen_params &p;
  const uint32_t shared;
  KeyBlock only;
  FAGEN_DEVICE KeyBlocks(const fagen_params &p, uint32_t shared) : p(p), shared(shared) {
    if constexpr (!RESIDENT) only = key_block(p, shared, 0);
  }
  // work(block, b), after the kernel before.
  template <class F>
  FAGEN_DEVICE void each(F work) const {
    wait_for_previous_kernel();
    if constexpr (RESIDENT)
#pragma unroll 1
      for (int b = 0; follows(p, shared, b); b++) work(key_block(p, shared, b), b);
    else
      work(only, 0);
  }
};

#endif
