// A consumer's way through its stream of tiles, where every row keeps one run of keys: it counts the
// blocks out, from the last to the first. Included by the kernel, behind its Consumer.
#ifndef FAGEN_RUNS_FWD_SM90_H
#define FAGEN_RUNS_FWD_SM90_H

#include "device/stream_fwd_sm90.h"

template <RunsOfKeys P>
struct Stream<P> : Consumer {
  Blocks own;  // of this warpgroup's rows

  FAGEN_DEVICE bool last(int block) const { return block == own.begin; }
  FAGEN_DEVICE bool masked(int block) const {
    return block >= own.clean_end || block < own.clean_begin;
  }

  template <int COUNT>
  FAGEN_DEVICE void first_block(float (&s)[COUNT]) {
    const int block = own.end - 1;
    scores_alone(s);
    first_softmax(s, block, masked(block), last(block));
    pack_probabilities(s);
  }

  // Everything of a tile behind its first block, but for the last P V.
  FAGEN_DEVICE void other_blocks() {
    int block = own.end - 2;
#pragma unroll 1
    for (; block >= max(own.clean_end, own.begin); block--) step<SAFE>(block, true, last(block));
    const int clean = max(own.clean_begin, own.begin);
    if (REDO && !(tile.rows & CAREFUL)) {
#pragma unroll 1
      for (; block >= clean; block--) step<SOFTMAX>(block, false, last(block));
    } else {
#pragma unroll 1
      for (; block >= clean; block--) step<SAFE>(block, false, last(block));
    }
    if constexpr (CUTS_LEFT) {
#pragma unroll 1
      for (; block >= own.begin; block--) step<SAFE>(block, true, last(block));
    }
  }

  // The last P V of a tile with nothing behind it.
  FAGEN_DEVICE void finish(const Note &of, int number) {
    output_alone();
    output.write(o, softmax, of, number);
  }

  FAGEN_DEVICE void run() {
    start();
    Note before;           // the tile whose last P V is still to come
    bool pending = false;  // there is one
#pragma unroll 1
    for (;;) {
      receive();
      const bool more = tile.rows != STOP, mine = more && (tile.rows >> group & 1);
      const P pattern = pattern_of_tile(p, tile);
      const Blocks all = blocks_of<P>(pattern, tile.block * BLOCK_M, BLOCK_M, p.seqlen_q);
      own = blocks_of<P>(pattern, output.first_row(tile), 64, p.seqlen_q);
      const bool active = mine && own.count() > 0;
      // K and V come in turns: a long skip must not hold on to the V of the tile before.
      const int lead = all.end - own.end;
      const bool cross = CROSS_TILE && pending && active && lead < STAGES;
      if (more && !active) release_q();
      if (pending && !cross) finish(before, received - 2);
      if (!more) break;
      if (!active) {
        pending = false;
        skip_tile(all, mine);
        continue;
      }
      int skipped_v = 0;  // blocks whose V is still to be released
#pragma unroll 1
      for (int i = 0; i < lead; i++) {
        skip_k();
        if (cross || i == 0)
          skipped_v++;
        else
          skip_v();
      }
      const bool halved = end_in_half(pattern, output.first_row(tile), 64, p.seqlen_q);
      if (halved) {
        float half[HALF_BLOCK / 2];
        if (cross)
          first_block_after(half, before, own.end - 1, true, last(own.end - 1));
        else
          first_block(half);
      } else if (cross) {
        first_block_after(s, before, own.end - 1, masked(own.end - 1), last(own.end - 1));
      } else {
        first_block(s);
      }
#pragma unroll 1
      for (; skipped_v > 0; skipped_v--) skip_v();
      accumulate = halved ? HALF : 0;
      other_blocks();
      pending = true;
      before = tile;
      if (SEAM == Seam::apart || (CUTS_LEFT && own.begin > all.begin)) {
        finish(before, received - 1);
        pending = false;
#pragma unroll 1
        for (int block = own.begin; block > all.begin; block--) {
          skip_k();
          skip_v();
        }
      }
      q.advance();
    }
    output.finish();
  }

  FAGEN_DEVICE void skip_tile(const Blocks &all, bool mine) {
    q.advance();
#pragma unroll 1
    for (int i = all.count(); i > 0; i--) {
      skip_k();
      skip_v();
    }
    if (mine) output.write_nothing(tile);
  }
};

#endif
