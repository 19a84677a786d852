// The forward's producer: it walks the tiles, and one thread issues every TMA load.
#ifndef FAGEN_PRODUCER_FWD_SM90_H
#define FAGEN_PRODUCER_FWD_SM90_H

#include "device/blocks_fwd_sm90.h"
#include "device/tma_sm90.h"

struct Loads {
  const fagen_params &p;
  const TensorMap *map_q, *map_k, *map_v;
  const Shared &shared;
  const Order order;
  Ring<Q_BUFFERS> q;
  Ring<STAGES> k, v;
  int sent = 0;  // tiles

  FAGEN_DEVICE void load_k(const Keys &keys, int block) {
    barrier_wait(shared.k_empty(k.stage), k.parity ^ 1);
    load_block<KTile>(map_k, shared.k(k.stage), shared.k_full(k.stage), keys, block);
    k.advance();
  }
  FAGEN_DEVICE void load_v(const Keys &keys, int block) {
    fill_v(keys, block, shared.v_full(v.stage));
    v.advance();
  }
  FAGEN_DEVICE void fill_v(const Keys &keys, int block, uint32_t full) const {
    barrier_wait(shared.v_empty(v.stage), v.parity ^ 1);
    load_block<VTile>(map_v, shared.v(v.stage), full, keys, block);
  }
  template <class T>
  FAGEN_DEVICE void load_block(const TensorMap *map, uint32_t to, uint32_t full, const Keys &keys,
                               int block) const {
    const int row = Sequence(p, keys.batch).first_kv() + block * BLOCK_N;
    barrier_expect(full, T::bytes);
#pragma unroll
    for (int i = 0; i < T::count; i++)
      tma_load(to + i * T::panel_bytes, map, full, i * T::panel_columns, row, keys.head,
               map_entry(keys.batch), EVICT_LAST);
  }

  // Its slot is long free: fewer tiles are in flight than there are notes.
  FAGEN_DEVICE void write_note(const Note &tile) {
    shared.control().note[sent % NOTES] = tile;
    if constexpr (REDO) shared.control().overflowed[sent % NOTES] = 0;
  }

  // The tile whose note was written; with its queries when it has keys.
  FAGEN_DEVICE void send(bool has_keys) {
    const Note tile = shared.control().note[sent % NOTES];
#pragma unroll 1
    for (int group = 0; group < WARPGROUPS; group++) {
      const uint32_t full = shared.q_full(q.stage, group);
      barrier_wait(shared.q_empty(q.stage, group), q.parity ^ 1);
      if (!has_keys) {
        barrier_arrive(full);
        continue;
      }
      const int row = Sequence(p, tile.batch).first_q() + tile.block * BLOCK_M + group * 64;
      barrier_expect(full, QTile::bytes);
#pragma unroll 1
      for (int i = 0; i < QTile::count; i++)
        tma_load(shared.q(q.stage, group) + i * QTile::panel_bytes, map_q, full,
                 i * QTile::panel_columns, row, tile.head, map_entry(tile.batch), EVICT_FIRST);
    }
    q.advance();
    sent++;
  }

  // Among the first `known` tiles: one that must be computed again.
  FAGEN_DEVICE bool overflowed_tile(int known, Note &tile) {
#pragma unroll 1
    while (shared.control().checked < known) {
      const int slot = shared.control().checked++ % NOTES;
      const int rows = shared.control().overflowed[slot];
      if (rows == 0) continue;
      tile = shared.control().note[slot];
      tile.rows = rows | CAREFUL;
      return true;
    }
    return false;
  }

  // Returns when the consumers have passed the tile just sent.
  FAGEN_DEVICE void wait_until_passed() const {
    const int buffer = q.stage == 0 ? Q_BUFFERS - 1 : q.stage - 1;
    const uint32_t parity = q.stage == 0 ? q.parity ^ 1 : q.parity;
#pragma unroll 1
    for (int i = 0; i < WARPGROUPS; i++) barrier_wait(shared.q_empty(buffer, i), parity);
  }
};

template <class P>
struct Producer;

// Where the pattern's rows are runs of keys, one thread does it all.
//
// SEAM early: a tile is chosen, and its queries are asked for, when two blocks of the tile before have
// been. The buffer they go to is free once the tile before that has its last S, as the K stage is that
// the second of those blocks has gone to: nothing waits longer for it.
template <RunsOfKeys P>
struct Producer<P> : Loads {
  static constexpr bool whole_warp = false, EARLY = SEAM == Seam::early;

  FAGEN_DEVICE void run(unsigned *counter) {
    Keys held{0, 0, -1, -1};  // of the tile before; begin: the block whose V is still to be loaded
    if constexpr (EARLY) shared.control().rest = held;  // between two tiles it is there: registers are dear
    bool all_known = !REDO;  // the verdict on every tile
    unsigned index = blockIdx.x;
#pragma unroll 1
    for (;;) {
      Note tile{int(order.blocks()), 0, 0, all_known ? STOP : 0};
      // A Q buffer that was free says: its last tile's products are done, and before them the
      // softmax of the tile before that. Behind the last tile an empty one asks for the rest.
      const bool again = REDO && overflowed_tile(all_known ? sent : sent - 1 - Q_BUFFERS, tile);
      const bool fresh = !again && index < order.count();
      if (fresh) {
        const QueryTile next = order.at(index);
        tile = Note{next.block, next.head, next.batch, ALL_ROWS};
      }
      const P pattern = pattern_of_tile(p, tile);
      const Blocks blocks = blocks_of<P>(pattern, tile.block * BLOCK_M, BLOCK_M, p.seqlen_q);
      const Keys keys{int(unsigned(tile.head) / (unsigned(p.heads) / p.kv_heads)), tile.batch,
                      blocks.begin, blocks.end};
      const bool has_keys = blocks.count() > 0;
      write_note(tile);
      if constexpr (EARLY) {
        send(has_keys);
        held = shared.control().rest;
        load_pairs(held, held.end - 1);
      }
      if (has_keys) load_k(keys, keys.end - 1);
      if (held.begin >= 0) load_v(held, held.begin);
      held = Keys{keys.head, keys.batch, has_keys ? keys.begin : -1, 0};
      if constexpr (!EARLY) send(has_keys);
      if (tile.rows == STOP) break;
      if (tile.rows == 0) {
        wait_until_passed();
        all_known = true;
      }
      if (fresh) index = next_tile<SCHEDULE>(index, counter);
      if constexpr (EARLY) {
        if (keys.end - 2 >= keys.begin) load_pair(keys, keys.end - 2);
        held.end = keys.end - 2;
        shared.control().rest = held;
      } else {
        load_pairs(keys, keys.end - 2);
      }
    }
  }

 private:
  FAGEN_DEVICE void load_pair(const Keys &keys, int block) {
    load_k(keys, block);
    load_v(keys, block + 1);
  }
  // From `block` to the tile's first one.
  FAGEN_DEVICE void load_pairs(const Keys &keys, int block) {
#pragma unroll 1
    for (; block >= keys.begin; block--) load_pair(keys, block);
  }
};

#endif
