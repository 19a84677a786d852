// Patterns whose rows are not runs of keys. The producer's warp asks the pattern for the blocks of a
// tile, one after the other, and every consumer reads with a block what to do with it.
#ifndef FAGEN_VISITS_FWD_SM90_H
#define FAGEN_VISITS_FWD_SM90_H

#include "device/producer_fwd_sm90.h"

FAGEN_DEVICE int quad_min(int x) {
  x = min(x, __shfl_xor_sync(FULL_WARP, x, 1));
  return min(x, __shfl_xor_sync(FULL_WARP, x, 2));
}
FAGEN_DEVICE uint32_t quad_or(uint32_t x) {
  x |= __shfl_xor_sync(FULL_WARP, x, 1);
  return x | __shfl_xor_sync(FULL_WARP, x, 2);
}

// The blocks of a tile in rising order, found by a whole warp: lane g of every quad looks for
// warpgroup g, so that all lanes know the same tile.
template <class P>
struct BlockWalk {
  static constexpr int NONE_LEFT = 1 << 30;

  const P &pattern;
  const int group;
  const bool careful;
  int q0, q1;         // the rows that this lane looks for
  int mine, current;  // the next block of those rows, and of the tile
  bool met = false;   // a clean block before: every row has a reference

  FAGEN_DEVICE BlockWalk(const P &pattern, const Note &tile, int lane, int seqlen_q)
      : pattern(pattern), group(lane & 3), careful(tile.rows & CAREFUL) {
    q0 = tile.block * BLOCK_M + group * 64;
    q1 = group < WARPGROUPS && tile.rows >> group & 1 ? min(q0 + 64, seqlen_q) : q0;
    mine = from(0);
    current = quad_min(mine);
  }

  FAGEN_DEVICE bool more() const { return current != NONE_LEFT; }

  // The current block; then the next one is.
  FAGEN_DEVICE Visit take() {
    const uint32_t block = current;
    int kind = SKIP;
    if (mine == current) {
      kind = this->kind();
      mine = from((current + 1) * BLOCK_N);
    }
    current = quad_min(mine);
    const uint32_t kinds = quad_or(kind << 2 * group);
    return Visit{block << 9 | uint32_t(!more()) << 8 | kinds};
  }

 private:
  FAGEN_DEVICE int from(int key) const {
    if (q0 >= q1) return NONE_LEFT;
    const int found = pattern.next_key(q0, q1, key);
    return found < pattern.seqlen_kv ? found / BLOCK_N : NONE_LEFT;
  }
  FAGEN_DEVICE int kind() {
    const int k0 = mine * BLOCK_N;
    if (k0 + BLOCK_N > pattern.seqlen_kv || !pattern.full(q0, q1, k0, k0 + BLOCK_N)) return PARTIAL;
    const int kind = REDO && met && !careful ? FREE : CLEAN;
    met = true;
    return kind;
  }
};

// Any pattern: the whole warp finds the blocks of a tile, an elected lane does the rest.
template <class P>
struct Producer : Loads {
  static constexpr bool whole_warp = true;
  bool all_known = !REDO;  // the verdict on every tile

  // The next tile's note; true when it is computed again. As in the other run().
  FAGEN_DEVICE void choose(unsigned *counter) {
    Note tile{int(order.blocks()), 0, 0, all_known ? STOP : 0};
    if (REDO && overflowed_tile(all_known ? sent : sent - 1 - Q_BUFFERS, tile)) {
    } else if (const unsigned index = shared.control().index; index < order.count()) {
      const QueryTile next = order.at(index);
      tile = Note{next.block, next.head, next.batch, ALL_ROWS};
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

  FAGEN_DEVICE void run(unsigned *counter) {
    const int lane = threadIdx.x % 32;
    int held = -1;  // the block whose V is still to be loaded
    if (elect_one()) shared.control().index = blockIdx.x;
#pragma unroll 1
    for (int number = 0;; number++) {
      if (elect_one()) choose(counter);
      __syncwarp();
      const Note tile = shared.control().note[number % NOTES];
      BlockWalk<P> walk(pattern, tile, lane, p.seqlen_q);
      const bool has_keys = walk.more();
      Visit visit{};
      if (has_keys) visit = walk.take();
      if (elect_one()) {
        if (has_keys)
          load_visited(keys_of(number), visit);
        else if (tile.rows != STOP)
          shared.control().note[number % NOTES].rows |= KEYLESS;
        if (held >= 0) load_v(keys_of(number - 1), held);
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
        if (elect_one()) {
          load_visited(keys_of(number), visit);
          load_v(keys_of(number), before);
        }
        __syncwarp();
      }
      held = has_keys ? visit.block() : -1;
    }
  }
};

#endif
