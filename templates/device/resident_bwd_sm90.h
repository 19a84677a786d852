// The consumers of a CTA that takes key blocks until none is left. What they leave in the place of K
// and V is sent by a warp of its own, while they go on; the place is empty when it has been read.
#ifndef FAGEN_RESIDENT_BWD_SM90_H
#define FAGEN_RESIDENT_BWD_SM90_H

#include "device/step_bwd_sm90.h"

// `consume` one key block after the other, and let what it leaves be sent.
template <class Consumer, class F>
FAGEN_DEVICE void consume_blocks(Consumer consumer, F consume) {
#pragma unroll 1
  for (int steps = 0; follows(consumer.p, consumer.shared, consumer.b); consumer.b++) {
    steps = consume(consumer, steps);
    consumer.b = which_block(consumer.shared, consumer.b);
    __syncwarp();
    arrive_by_warp<STAGES_KV>(consumer.shared + OUTPUT_FULL, consumer.b);
  }
}

// The warp that sends it.
FAGEN_DEVICE void send_outputs(const fagen_params &p, uint32_t shared, const TensorMap *dk_map,
                               const TensorMap *dv_map) {
  KeyBlocks(p, shared).each([&](const KeyBlock &block, int b) {
    wait_full<STAGES_KV>(shared + OUTPUT_FULL, b);
    const uint32_t keys = shared + b % STAGES_KV * KEYS_BYTES;
    if (threadIdx.x % 32 == 0) {
      for (int rows = 0; rows < BLOCK_N; rows += 64) {
        const int row = block.n * BLOCK_N + rows;
        send_output<VTile>(dv_map, keys + AT_V + rows * VTile::swizzle, row, block);
        send_output<KTile>(dk_map, keys + AT_K + rows * KTile::swizzle, row, block);
      }
      bulk_commit();
      bulk_wait_read<0>();
    }
    release_keys(shared, b);
  });
}

#endif
