// Which tile of queries comes when. A CTA takes a stream of tiles; the order decides what stays in
// L2 and how even the end is.
#ifndef FAGEN_TILES_SM90_H
#define FAGEN_TILES_SM90_H

#include "device/sm90.h"

// How a CTA gets its next tile: it has one only; every gridDim.x-th; of every second row of gridDim.x
// tiles the one as far from the row's end, so that nobody gets the longest of every row; from a counter.
enum class Schedule { grid, strided, snake, dynamic };

// BLOCK_M query rows of one head.
struct QueryTile {
  int block, head, batch;
};

// Which tiles of a head have most keys: none in particular; the last; or the first where the first
// row sees every key, else the last.
enum class Longest { none, last, either };

// Heads are taken in sections whose keys and values fit the L2 cache together. Inside a section the
// longest block of every head comes first, so that short ones fill the end. Where none is longest
// the blocks of one head follow each other.
//
// Tiles dealt out to and fro (snake) come out even only while lengths change slowly from tile to tile:
// sections then fall and rise in turns, and the last one falls.
//
// PACKED: the blocks are the slots of all sequences (sequence.h), and there is one entry.
template <int BLOCK_M, Longest LONGEST, bool PACKED, Schedule SCHEDULE>
struct TileOrder {
  const fagen_params &p;
  unsigned section;  // heads
  bool rising;        // Longest::either: the first block of a head is the longest

  FAGEN_DEVICE TileOrder(const fagen_params &p, int64_t bytes_per_key, int64_t section_bytes,
                         bool first_is_longest)
      : p(p), rising(first_is_longest) {
    const int kv_heads = static_cast<int>(section_bytes / (bytes_per_key * p.seqlen_kv));
    const int power = kv_heads > 1 ? 1 << (31 - __clz(kv_heads)) : 1;
    const int64_t fit = static_cast<int64_t>(power) * (p.heads / p.kv_heads);
    const int64_t all = static_cast<int64_t>(p.heads) * entries();
    section = static_cast<unsigned>(fit < all ? fit : all);
  }

  FAGEN_DEVICE int entries() const { return PACKED ? 1 : p.batch; }
  FAGEN_DEVICE unsigned blocks() const {
    return PACKED ? p.total_q / BLOCK_M + p.batch : (p.seqlen_q + BLOCK_M - 1u) / BLOCK_M;
  }
  FAGEN_DEVICE unsigned count() const { return blocks() * p.heads * entries(); }

  FAGEN_DEVICE QueryTile at(unsigned index) const {
    const unsigned blocks = this->blocks(), heads = p.heads;
    unsigned block, head;
    if constexpr (LONGEST != Longest::none) {
      const unsigned first = index / (section * blocks) * section;
      const unsigned width = min(section, heads * entries() - first);
      const unsigned inside = index - first * blocks;
      block = inside / width;
      head = first + inside - block * width;
      bool last_first = LONGEST == Longest::last || !rising;
      if constexpr (SCHEDULE == Schedule::snake)
        last_first ^= (heads * entries() - 1 - first) / section & 1;  // sections to come
      if (last_first) block = blocks - 1 - block;
    } else {
      head = index / blocks;
      block = index - head * blocks;
    }
    const unsigned batch = head / heads;
    return QueryTile{int(block), int(head - batch * heads), int(batch)};
  }
};

// The index after `index`; at or beyond the count when there is none.
template <Schedule SCHEDULE>
FAGEN_DEVICE unsigned next_tile(unsigned index, unsigned *counter) {
  if constexpr (SCHEDULE == Schedule::grid) return ~0u;
  if constexpr (SCHEDULE == Schedule::strided) return index + gridDim.x;
  if constexpr (SCHEDULE == Schedule::snake) return index + 2 * (gridDim.x - index % gridDim.x) - 1;
  wait_for_previous_kernel();  // the counter is its work, see zero_fwd_sm90.h
  return gridDim.x + atomicAdd(counter, 1u);
}

#endif
