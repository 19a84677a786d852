// Patterns whose rows are not runs of keys. The producer's warp asks the pattern for the blocks of a
// tile, one after the other, and every consumer reads with a block what to do with it.
#ifndef FAGEN_VISITS_FWD_SM90_H
#define FAGEN_VISITS_FWD_SM90_H

#include "device/producer_fwd_sm90.h"
#include "device/walk_fwd_sm90.h"

// Any pattern: the whole warp finds the blocks of a tile, an elected lane does the rest.
template <class P>
struct Producer : Loads {
  static constexpr bool whole_warp = true;
  bool all_known = !REDO;  // the verdict on every tile
  uint32_t landed = 0;     // parity

  // The next tile's note; true when it is computed again. As in the other run().
  FAGEN_DEVICE void choose(unsigned *counter) {
    Note tile{int(order.blocks()), 0, 0, all_known ? STOP : 0};
    if (REDO && overflowed_tile(all_known ? sent : sent - 1 - Q_BUFFERS, tile)) {
    } else if (const unsigned index = shared.control().index; index < order.count()) {
      const QueryTile next = order.at(index);
      const Slot at = q_slot(p, BLOCK_M, next.block, next.batch);
      tile = Note{at.tile, next.head, at.batch, ALL_ROWS};
      shared.control().index = next_tile<SCHEDULE>(index, counter);
    }
    write_note(tile);
  }
  FAGEN_DEVICE Keys keys_of(int number) const {
    const Note &tile = shared.control().note[number % NOTES];
    return Keys{int(unsigned(tile.head) / (unsigned(p.heads) / p.kv_heads)), tile.batch};
  }
  FAGEN_DEVICE void load_visited(const Keys &keys, Visit visit) {
    barrier_wait(shared.k_empty(k.stage), k.parity ^ 1);
    shared.control().visit[k.stage] = visit;
    load_k(keys, visit.block());
  }

  // Rows past the sequence's end are the next sequence's. Their probabilities are 0, but 0 times
  // infinity is not: V has zeros there.
  FAGEN_DEVICE void load_values(int number, int block) {
    const int batch = shared.control().note[number % NOTES].batch;
    const int kept = VARLEN ? Sequence(p, batch).seqlen_kv() - block * BLOCK_N : BLOCK_N;
    const bool whole = kept >= BLOCK_N;
    const uint32_t full = shared.v_full(v.stage);
    if (elect_one()) fill_v(keys_of(number), block, whole ? full : shared.v_landed());
    if (!whole) {
      barrier_wait(shared.v_landed(), landed);
      landed ^= 1;
      clear_below(kept);
      if (elect_one()) barrier_arrive(full);
    }
    v.advance();
  }
  FAGEN_DEVICE void clear_below(int row) const {
    constexpr int CHUNKS = V_DIM / 8;
#pragma unroll 1
    for (int i = row * CHUNKS + threadIdx.x % 32; i < BLOCK_N * CHUNKS; i += 32)
      store_shared_zero(shared.v(v.stage) + VTile::chunk(i / CHUNKS, i % CHUNKS));
    fence_async_shared();
    __syncwarp();
  }

  FAGEN_DEVICE void run(unsigned *counter) {
    const int lane = threadIdx.x % 32;
    int held = -1;  // the block whose V is still to be loaded
    if (elect_one()) shared.control().index = blockIdx.x;
#pragma unroll 1
    for (int number = 0;; number++) {
      if (elect_one()) choose(counter);
      __syncwarp();
      const Note tile = shared.control().note[number % NOTES];
      BlockWalk<P> walk(pattern_of_tile(p, tile), tile, lane);
      const bool has_keys = walk.more();
      Visit visit{};
      if (has_keys) visit = walk.take();
      if (elect_one()) {
        if (has_keys)
          load_visited(keys_of(number), visit);
        else if (tile.rows != STOP)
          shared.control().note[number % NOTES].rows |= KEYLESS;
      }
      if (held >= 0) load_values(number - 1, held);
      if (elect_one()) {
        send(has_keys);
        if (tile.rows == 0) {
          wait_until_passed();
          all_known = true;
        }
      }
      __syncwarp();
      if (tile.rows == STOP) break;
#pragma unroll 1
      while (walk.more()) {
        const int before = visit.block();
        visit = walk.take();
        if (elect_one()) load_visited(keys_of(number), visit);
        load_values(number, before);
        __syncwarp();
      }
      held = has_keys ? visit.block() : -1;
    }
  }
};

#endif
