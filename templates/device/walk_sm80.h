// Which tiles a CTA visits, and what of a tile the pattern drops. Where every row keeps one run of
// keys, the tiles are one run too. Any other pattern is asked for the next tile, once per tile, and
// the answers wait in a queue until the copies that they started have landed.
#pragma once

#include "patterns/contract.h"

constexpr int NO_TILE = 1 << 30;

// Tiles of SIZE keys for the rows [q0, q1): the current one, and AHEAD more.
template <class P, int SIZE, int AHEAD>
struct KeyWalk {
  const P &pattern;
  int q0, q1, step = 0, tiles[AHEAD + 1];

  __device__ __forceinline__ KeyWalk(const P &pattern, int q0, int q1)
      : pattern(pattern), q0(q0), q1(q1) {
    tiles[0] = from(0);
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) tiles[i + 1] = after(tiles[i]);
  }
  __device__ __forceinline__ bool more(int ahead = 0) const { return tiles[ahead] != NO_TILE; }
  __device__ __forceinline__ bool first() const { return step == 0; }
  __device__ __forceinline__ int key(int ahead = 0) const { return tiles[ahead]; }
  template <int STAGES>
  __device__ __forceinline__ int stage(int ahead = 0) const { return (step + ahead) % STAGES; }
  __device__ __forceinline__ void advance() {
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) tiles[i] = tiles[i + 1];
    tiles[AHEAD] = after(tiles[AHEAD]);
    ++step;
  }
  // May these rows go without a mask?
  __device__ __forceinline__ bool clean(int r0, int r1) const {
    return key() + SIZE <= pattern.seqlen_kv && pattern.full(r0, r1, key(), key() + SIZE);
  }

 private:
  __device__ __forceinline__ int from(int key) const {
    const int found = pattern.next_key(q0, q1, key);
    return found < pattern.seqlen_kv ? found / SIZE * SIZE : NO_TILE;
  }
  __device__ __forceinline__ int after(int key) const {
    return key == NO_TILE ? NO_TILE : from(key + SIZE);
  }
};

template <IntervalPattern P, int SIZE, int AHEAD>
struct KeyWalk<P, SIZE, AHEAD> {
  const P &pattern;
  int begin, end, k0;

  __device__ __forceinline__ KeyWalk(const P &pattern, int q0, int q1) : pattern(pattern) {
    const Range keys = pattern.keys(q0, q1);
    begin = k0 = keys.begin / SIZE * SIZE;
    end = keys.end > keys.begin ? keys.end : 0;
  }
  __device__ __forceinline__ bool more(int ahead = 0) const { return key(ahead) < end; }
  __device__ __forceinline__ bool first() const { return k0 == begin; }
  __device__ __forceinline__ int key(int ahead = 0) const { return k0 + ahead * SIZE; }
  template <int STAGES>
  __device__ __forceinline__ int stage(int ahead = 0) const { return key(ahead) / SIZE % STAGES; }
  __device__ __forceinline__ void advance() { k0 += SIZE; }
  __device__ __forceinline__ bool clean(int r0, int r1) const {
    const Range full = pattern.full_keys(r0, r1);
    return full.begin <= k0 && k0 + SIZE <= full.end;
  }
};

// Tiles of SIZE query rows that see the keys [k0, k1), for each of `heads` heads in turn: the
// current one, and the next.
template <class P, int SIZE>
struct RowWalk {
  const P &pattern;
  int heads, step = 0, tiles[2], heads_at[2] = {0, 0};

  __device__ __forceinline__ RowWalk(const P &pattern, int k0, int k1, int heads)
      : pattern(pattern), heads(heads) {
    tiles[0] = from(0, 0, k0, k1);
    if (tiles[0] == NO_TILE) next_head(0, k0, k1);
  }
  __device__ __forceinline__ bool more(int ahead = 0) const { return heads_at[ahead] < heads; }
  __device__ __forceinline__ int tile(int ahead = 0) const { return tiles[ahead]; }
  __device__ __forceinline__ int head(int ahead = 0) const { return heads_at[ahead]; }
  template <int STAGES>
  __device__ __forceinline__ int stage(int ahead = 0) const { return (step + ahead) % STAGES; }
  __device__ __forceinline__ void advance() {
    tiles[0] = tiles[1], heads_at[0] = heads_at[1];
    ++step;
  }
  // Finds the next step. Once per step, and late: what it finds takes two registers. The keys are
  // not kept for the same reason.
  __device__ __forceinline__ void look_ahead(int k0, int k1) {
    tiles[1] = from(heads_at[0], (tiles[0] + 1) * SIZE, k0, k1), heads_at[1] = heads_at[0];
    if (tiles[1] == NO_TILE) next_head(1, k0, k1);
  }
  __device__ __forceinline__ bool clean(int k0, int k1) const {
    const int q0 = tile() * SIZE;
    return head_after(pattern, head()).full(q0, min_of(q0 + SIZE, pattern.seqlen_q), k0, k1);
  }

 private:
  __device__ __forceinline__ int from(int head, int row, int k0, int k1) const {
    const int found = head_after(pattern, head).next_query(k0, k1, row);
    return found < pattern.seqlen_q ? found / SIZE : NO_TILE;
  }
  // To the first tile of the next head that has one. If all heads have the same tiles, that is the
  // next head, or none has any.
  __device__ __forceinline__ void next_head(int i, int k0, int k1) {
    if constexpr (HeadPattern<P>) {
      while (tiles[i] == NO_TILE && ++heads_at[i] < heads) tiles[i] = from(heads_at[i], 0, k0, k1);
    } else if (i == 0) {
      heads_at[0] = heads;
    } else {
      tiles[1] = from(0, 0, k0, k1), ++heads_at[1];
    }
  }
};

template <IntervalPattern P, int SIZE>
struct RowWalk<P, SIZE> {
  Range full;
  int begin, tiles, count, step = 0;

  __device__ __forceinline__ RowWalk(const P &pattern, int k0, int k1, int heads)
      : full(pattern.full_queries(k0, k1)) {
    const Range rows = pattern.queries(k0, k1);
    begin = rows.begin / SIZE;
    tiles = rows.end > rows.begin ? ceil_div(rows.end, SIZE) - begin : 0;
    count = tiles * heads;
  }
  __device__ __forceinline__ bool more(int ahead = 0) const { return step + ahead < count; }
  __device__ __forceinline__ int tile(int ahead = 0) const {
    return begin + (step + ahead) % tiles;
  }
  __device__ __forceinline__ int head(int ahead = 0) const { return (step + ahead) / tiles; }
  template <int STAGES>
  __device__ __forceinline__ int stage(int ahead = 0) const { return (step + ahead) % STAGES; }
  __device__ __forceinline__ void look_ahead(int, int) {}
  __device__ __forceinline__ void advance() { ++step; }
  __device__ __forceinline__ bool clean(int, int) const {
    const int q0 = tile() * SIZE;
    return full.begin <= q0 && q0 + SIZE <= full.end;
  }
};

// Which of KEYS keys of a row stay: keeps(j) for key + j.
template <class P, int KEYS>
struct RowMask {
  const P &pattern;
  int row, key;
  __device__ __forceinline__ RowMask(const P &pattern, int row, int key)
      : pattern(pattern), row(row), key(key) {}
  __device__ __forceinline__ bool keeps(int j) const {
    return (key + j < pattern.seqlen_kv) & pattern.keep(row, key + j);
  }
};

template <IntervalPattern P, int KEYS>
struct RowMask<P, KEYS> {
  int begin, end;
  __device__ __forceinline__ RowMask(const P &pattern, int row, int key) {
    const Range kept = pattern.row(row);
    begin = kept.begin - key, end = kept.end - key;
  }
  __device__ __forceinline__ bool keeps(int j) const { return j >= begin && j < end; }
};

// A lane starts at one of the first 8 of each 16 keys and asks for j % 16 in 0, 1, 8 and 9: then 16
// keys are asked for at once, and bits that come from the next 16 are not looked at.
template <BitPattern P, int KEYS>
struct RowMask<P, KEYS> {
  uint32_t kept[ceil_div(KEYS, 32)] = {};
  __device__ __forceinline__ RowMask(const P &pattern, int row, int key) {
#pragma unroll
    for (int j = 0; j < KEYS; j += 16)
      kept[j / 32] |= pattern.key_bits(row, key / 16 * 16 + j) << j % 32;
#pragma unroll
    for (auto &bits : kept) bits >>= key % 16;
  }
  __device__ __forceinline__ bool keeps(int j) const { return kept[j / 32] >> j % 32 & 1; }
};

// Which of ROWS rows keep a key: keeps(j) for row + j. None does for keys past the end.
template <class P, int ROWS>
struct ColumnMask {
  const P &pattern;
  int key, row;
  __device__ __forceinline__ ColumnMask(const P &pattern, int key, int row)
      : pattern(pattern), key(key), row(row) {}
  __device__ __forceinline__ bool keeps(int j) const {
    return (key < pattern.seqlen_kv) & pattern.keep(row + j, key);
  }
};

template <IntervalPattern P, int ROWS>
struct ColumnMask<P, ROWS> {
  int begin, end;
  __device__ __forceinline__ ColumnMask(const P &pattern, int key, int row) {
    const Range kept = pattern.column(key);
    begin = kept.begin - row, end = key < pattern.seqlen_kv ? kept.end - row : begin;
  }
  __device__ __forceinline__ bool keeps(int j) const { return j >= begin && j < end; }
};

template <BitPattern P, int ROWS>
struct ColumnMask<P, ROWS> {
  uint32_t kept[ceil_div(ROWS, 32)] = {};
  __device__ __forceinline__ ColumnMask(const P &pattern, int key, int row) {
#pragma unroll
    for (int j = 0; j < ROWS; j += 16)
      kept[j / 32] |= pattern.query_bits(key, row / 16 * 16 + j) << j % 32;
#pragma unroll
    for (auto &bits : kept) bits >>= row % 16;
  }
  __device__ __forceinline__ bool keeps(int j) const { return kept[j / 32] >> j % 32 & 1; }
};
