// Parts that link blocks of SIZE positions by their numbers. See parts.h for what a part offers.
#ifndef FAGEN_PATTERN_BLOCKS_H
#define FAGEN_PATTERN_BLOCKS_H

#include "patterns/parts.h"

// What the parts of this file share. A block of keys meets the rows up to `end` of a query block,
// and a block of queries the keys from `begin` on.
template <int SIZE, bool CAUSAL>
struct Linked {
  FAGEN_HD static int key_in(int block, int from, int end) {
    const int first = max_of(from, block * SIZE), limit = block * SIZE + SIZE;
    return first < (CAUSAL ? min_of(limit, end) : limit) ? first : NONE;
  }
  FAGEN_HD static int query_in(int block, int from, int begin) {
    const int first = max_of(CAUSAL ? max_of(from, begin) : from, block * SIZE);
    return first < block * SIZE + SIZE ? first : NONE;
  }
};

// Blocks whose numbers differ in one bit or none: log2(n) + 1 blocks per row, and from every
// block a way to every other in log2(n) steps.
template <int SIZE, bool CAUSAL>
struct Butterfly : Linked<SIZE, CAUSAL> {
  int blocks;

  FAGEN_HD explicit Butterfly(Lengths n) : blocks((n.seqlen_kv + SIZE - 1) / SIZE) {}

  FAGEN_HD bool keep(int i, int j) const {
    return linked(floor_div(i, SIZE), j / SIZE) & (!CAUSAL | (j <= i));
  }
  FAGEN_HD int next_key(int i0, int i1, int j) const {
    int first = NONE;
    for (int block = max_of(floor_div(i0, SIZE), 0); block * SIZE < i1; ++block) {
      const int end = min_of(block * SIZE + SIZE, i1);
      first = min_of(first, this->key_in(block, j, end));
      for (int bit = 1; bit < blocks; bit *= 2)
        first = min_of(first, this->key_in(block ^ bit, j, end));
    }
    return first;
  }
  FAGEN_HD int next_query(int j0, int j1, int i) const {
    int first = NONE;
    for (int block = j0 / SIZE; block * SIZE < j1; ++block) {
      const int begin = max_of(block * SIZE, j0);
      first = min_of(first, this->query_in(block, i, begin));
      for (int bit = 1; bit < blocks; bit *= 2)
        first = min_of(first, this->query_in(block ^ bit, i, begin));
    }
    return first;
  }
  FAGEN_HD bool full(int i0, int i1, int j0, int j1) const {
    if (CAUSAL && j1 - 1 > i0) return false;
    for (int row = floor_div(i0, SIZE); row * SIZE < i1; ++row)
      for (int column = j0 / SIZE; column * SIZE < j1; ++column)
        if (!linked(row, column)) return false;
    return true;
  }

 private:
  FAGEN_HD static bool linked(int a, int b) { return ((a ^ b) & ((a ^ b) - 1)) == 0; }
};

// COUNT blocks per block of queries, drawn with a hash of (SEED, block, draw): the same ones
// wherever and however often they are asked for, so that no table is needed. With CAUSAL, drawn
// from the blocks up to the query's own.
template <int SIZE, int COUNT, unsigned SEED, bool CAUSAL>
struct DrawnBlocks : Linked<SIZE, CAUSAL> {
  int blocks;

  FAGEN_HD explicit DrawnBlocks(Lengths n) : blocks((n.seqlen_kv + SIZE - 1) / SIZE) {}

  FAGEN_HD bool keep(int i, int j) const {
    return drawn(floor_div(i, SIZE), j / SIZE) & (!CAUSAL | (j <= i));
  }
  FAGEN_HD int next_key(int i0, int i1, int j) const {
    int first = NONE;
    for (int block = max_of(floor_div(i0, SIZE), 0); block * SIZE < i1; ++block)
      for (int n = 0; n < COUNT; ++n)
        first = min_of(first, this->key_in(draw(block, n), j, min_of(block * SIZE + SIZE, i1)));
    return first;
  }
  FAGEN_HD int next_query(int j0, int j1, int i) const {
    for (int block = max_of(floor_div(i, SIZE), 0); block < blocks; ++block) {
      int first = NONE;
      for (int n = 0; n < COUNT; ++n) {
        const int key = draw(block, n) * SIZE, begin = max_of(key, j0);
        if (begin < min_of(key + SIZE, j1)) first = min_of(first, this->query_in(block, i, begin));
      }
      if (first != NONE) return first;
    }
    return NONE;
  }
  FAGEN_HD bool full(int i0, int i1, int j0, int j1) const {
    if (CAUSAL && j1 - 1 > i0) return false;
    for (int row = floor_div(i0, SIZE); row * SIZE < i1; ++row)
      for (int column = j0 / SIZE; column * SIZE < j1; ++column)
        if (!drawn(row, column)) return false;
    return true;
  }

 private:
  FAGEN_HD bool drawn(int row, int column) const {
    bool any = false;
    for (int n = 0; n < COUNT; ++n) any |= draw(row, n) == column;
    return any & (row >= 0);
  }
  // A number below `blocks` (or row + 1) from 32 mixed bits, without a division.
  FAGEN_HD int draw(int row, int n) const {
    unsigned x = SEED * 0x9e3779b1u + static_cast<unsigned>(row) * 0x85ebca77u +
                 static_cast<unsigned>(n) * 0xc2b2ae3du;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    x ^= x >> 16;
    return static_cast<int>(static_cast<unsigned long long>(x) * (CAUSAL ? row + 1 : blocks) >> 32);
  }
};

#endif
