// The order in which a mask of the call wants its tiles started: those that visit most come first, so
// that short ones fill the end. It was made with the mask, for tiles of 64, 128, 192 and 256 rows (of
// queries, or of keys): for each size one order for every batch and head that has a mask of its own.
#pragma once

#include "patterns/contract.h"

// A mask of blocks has no runs, and one of runs has no holes: their pointers lead to the order. Null
// where whoever made the mask made no order.
FAGEN_HD const int32_t *order_of_queries(const fagen_mask &mask) {
  return mask.by_query.cells ? reinterpret_cast<const int32_t *>(mask.queries)
                             : mask.by_query.holes;
}
FAGEN_HD const int32_t *order_of_keys(const fagen_mask &mask) {
  return mask.by_query.cells ? reinterpret_cast<const int32_t *>(mask.keys) : mask.by_key.holes;
}

// Which of a head's tiles of SIZE rows comes rank-th.
template <int SIZE>
FAGEN_HD int tile_of_rank(const int32_t *order, const fagen_mask &mask, int rows, int batch,
                          int head, int rank, int otherwise) {
  constexpr int STEP = 64, LARGEST = 256;
  if (SIZE % STEP != 0 || SIZE > LARGEST || order == nullptr) return otherwise;
  const int which = (mask.batches > 1 ? batch * mask.heads : 0) + (mask.heads > 1 ? head : 0);
  int before = 0;  // tiles in the orders of smaller ones, for one mask
  for (int size = STEP; size < SIZE; size += STEP) before += (rows + size - 1) / size;
  const int tiles = (rows + SIZE - 1) / SIZE;
  return order[before * mask.batches * mask.heads + which * tiles + rank];
}
