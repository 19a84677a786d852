// The blocks of keys that a tile visits, one after the other, for any pattern.
#ifndef FAGEN_WALK_FWD_SM90_H
#define FAGEN_WALK_FWD_SM90_H

#include "device/blocks_fwd_sm90.h"

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

  const P pattern;
  const int group;
  const bool careful;
  int q0, q1;         // the rows that this lane looks for
  int mine, current;  // the next block of those rows, and of the tile
  bool met = false;   // a clean block before: every row has a reference

  FAGEN_DEVICE BlockWalk(const P &of, const Note &tile, int lane)
      : pattern(of), group(lane & 3), careful(tile.rows & CAREFUL) {
    q0 = tile.block * BLOCK_M + group * 64;
    q1 = group < WARPGROUPS && tile.rows >> group & 1 ? min(q0 + 64, pattern.seqlen_q) : q0;
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

#endif
