// The order of the reductions to dQ, when every run must give the same bits: key blocks take turns
// at a piece of a query tile.
#ifndef FAGEN_TURNS_BWD_SM90_H
#define FAGEN_TURNS_BWD_SM90_H

#include "device/walk_bwd_sm90.h"

// Scratch memory: whose turn it is.
FAGEN_DEVICE int *turn_at(const fagen_params &p, int tile, int sender) {
  return static_cast<int *>(p.work[2]) + static_cast<int64_t>(tile) * DQ_SENDERS + sender;
}

// The key blocks that see a query tile, where they are one run.
template <class P>
FAGEN_DEVICE Range adders_of(const P &pattern, int m) {
  const int q0 = m * BLOCK_M;
  const Range keys = pattern.keys(q0, min_of(q0 + BLOCK_M, pattern.seqlen_q));
  const int begin = keys.begin / BLOCK_N;
  return {begin, keys.begin < keys.end ? tiles_of(keys.end, BLOCK_N) : begin};
}

// A query tile's turn is the number of the key block that may add to it next; where key blocks of
// a tile are one run, how many have done so, from the last on. No turn waits for a CTA that starts
// later (key_block).
struct Turn {
  int mine, pass;  // what to wait for, and what to add when done
};
template <class P>
FAGEN_DEVICE Turn turn_of(const P &pattern, int n, int m) {
  return {n, next_key_block(pattern, m, n + 1) - n};
}
template <OneRun P>
FAGEN_DEVICE Turn turn_of(const P &pattern, int n, int m) {
  return {adders_of(pattern, m).end - 1 - n, 1};
}
FAGEN_DEVICE int first_turn(const Pattern &pattern, int m) {
  return NOTED ? next_key_block(pattern, m, 0) : 0;
}
FAGEN_DEVICE int turn_now(const int *turn) {
  int now;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(turn) : "memory");
  return now;
}
FAGEN_DEVICE void await_turn(const int *turn, int mine) {
  int now;
  do now = turn_now(turn);
  while (now != mine);
}
FAGEN_DEVICE void pass_turn(int *turn, int more) {
  bulk_wait<0>();
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(turn), "r"(more) : "memory");
}

#endif
