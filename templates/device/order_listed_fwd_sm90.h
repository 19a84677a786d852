// As order_fwd_sm90.h, where the mask of the call says which tiles of a head are the longest.
#pragma once

#include "device/longest_first.h"

constexpr Longest LONGEST = Longest::last;  // where it does not

using LastFirst = TileOrder<BLOCK_M, LONGEST, VARLEN, SCHEDULE>;

struct Order : LastFirst {
  using LastFirst::LastFirst;

  FAGEN_DEVICE QueryTile at(unsigned index) const {
    QueryTile tile = LastFirst::at(index);
    const int rank = static_cast<int>(blocks()) - 1 - tile.block;
    tile.block = tile_of_rank<BLOCK_M>(order_of_queries(p.mask), p.mask, p.seqlen_q, tile.batch,
                                       tile.head, rank, tile.block);
    return tile;
  }
};
