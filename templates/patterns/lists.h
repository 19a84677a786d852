// Blocks of queries by blocks of keys that are listed at run time, for all heads or for each.
//
// The list of a row of blocks is kept as bits, 32 blocks in a cell of 16 bytes (device/params.h),
// once by rows of queries and once by rows of keys. Whichever way a kernel walks, the next tile is
// one cell away, two where the row has a gap; whether a tile is full is a comparison; and a block
// with holes finds its bitmap by counting bits. Sparse blocks and compute tiles need not match: a
// tile may cover many blocks, or a part of one.
//
// A walk stops at every block that the rows' lists name, so it may meet a tile in which a bitmap
// drops everything. Where all listed blocks are full it is exact, with the causal cut as well.
#ifndef FAGEN_PATTERN_LISTS_H
#define FAGEN_PATTERN_LISTS_H

#include "patterns/contract.h"

constexpr int NO_BLOCK = 0x7fffffff;

FAGEN_HD int first_bit(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __ffs(bits) - 1;
#else
  return __builtin_ctz(bits);
#endif
}
FAGEN_HD int count_bits(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __popc(bits);
#else
  return __builtin_popcount(bits);
#endif
}
FAGEN_HD uint32_t bits_below(int n) { return n >= 32 ? ~0u : n <= 0 ? 0u : (1u << n) - 1; }

// One direction: blocks of ROWS by COLUMNS, for `rows` by `columns` elements.
template <int ROWS, int COLUMNS>
struct BlockTable {
  const fagen_cell *cells;
  const int32_t *holes;
  const uint16_t *bitmaps;
  int rows, columns;

  FAGEN_HD BlockTable(const fagen_blocks &blocks, int rows, int columns, int which)
      : cells(blocks.cells), holes(blocks.holes), bitmaps(blocks.bitmaps), rows(rows),
        columns(columns) {
    move(which);
  }

  // To the mask of the n-th head after this one.
  FAGEN_HD void move(int n) { cells += static_cast<int64_t>(n) * ceil(rows, ROWS) * width(); }

  // The first column from c on that the rows [r0, r1) of blocks name, but for those of each row
  // that lie at or past limit(row's end).
  template <class Limit>
  FAGEN_HD int next(int r0, int r1, int c, Limit limit) const {
    int first = NO_BLOCK;
    for (int row = r0 / ROWS; row * ROWS < r1; ++row) {
      const int found = next_in(row, c);
      if (found < first && found < limit(row * ROWS + ROWS)) first = found;
    }
    return first;
  }

  FAGEN_HD bool full(int r0, int r1, int c0, int c1) const {
    const int first = c0 / COLUMNS, last = (c1 - 1) / COLUMNS;
    for (int row = r0 / ROWS; row * ROWS < r1; ++row)
      for (int i = first / 32; i <= last / 32; ++i) {
        const uint32_t wanted = bits_below(last + 1 - 32 * i) & ~bits_below(first - 32 * i);
        if (wanted & ~cell(row, i).full) return false;
      }
    return true;
  }

  // The bits of the columns c .. c + 15 of one row; 0 past the ends. c is a multiple of 16.
  FAGEN_HD uint32_t bits(int r, int c) const {
    if (r >= rows || c >= columns) return 0;
    const int block = c / COLUMNS;
    const fagen_cell in = cell(r / ROWS, block / 32);
    const uint32_t below = bits_below(block % 32), bit = 1u << block % 32;
    const uint32_t inside = 0xffffu & bits_below(columns - c);
    if (in.full & bit) return inside;
    if (!(in.some & bit)) return 0;
    const int64_t bitmap = holes[in.holes_before + count_bits(in.some & ~in.full & below)];
    return inside & bitmaps[(bitmap * ROWS + r % ROWS) * (COLUMNS / 16) + c % COLUMNS / 16];
  }

 private:
  FAGEN_HD static int ceil(int a, int b) { return (a + b - 1) / b; }
  FAGEN_HD int width() const { return ceil(columns, 32 * COLUMNS); }
  FAGEN_HD const fagen_cell &cell(int row, int i) const {
    return cells[static_cast<int64_t>(row) * width() + i];
  }
  FAGEN_HD int next_in(int row, int c) const {
    if (c >= columns) return NO_BLOCK;
    int at = c / COLUMNS / 32;
    const fagen_cell here = cell(row, at);
    uint32_t rest = here.some & ~bits_below(c / COLUMNS % 32);
    if (!rest) {
      at = here.next;
      if (at >= width()) return NO_BLOCK;
      rest = cell(row, at).some;
    }
    const int first = (32 * at + first_bit(rest)) * COLUMNS;
    return first > c ? first : c;
  }
};

// CAUSAL drops the keys past the query's position as well, the last query's being the last key.
template <int BLOCK_Q, int BLOCK_KV, bool CAUSAL>
struct Lists {
  static_assert(BLOCK_Q % 16 == 0 && BLOCK_KV % 16 == 0, "blocks are multiples of 16");
  static constexpr bool interval = false;
  int seqlen_q, seqlen_kv, shift;
  bool per_head;
  BlockTable<BLOCK_Q, BLOCK_KV> by_query;
  BlockTable<BLOCK_KV, BLOCK_Q> by_key;

  FAGEN_HD Lists(const fagen_params &p, int batch, int head)
      : Lists(p, (p.mask.batches > 1 ? batch * p.mask.heads : 0) + (p.mask.heads > 1 ? head : 0)) {}
  FAGEN_HD Lists after(int n) const {
    Lists other = *this;
    if (per_head) other.by_query.move(n), other.by_key.move(n);
    return other;
  }

  FAGEN_HD bool keep(int q, int k) const { return key_bits(q, k & ~15) >> k % 16 & 1; }
  FAGEN_HD uint32_t key_bits(int q, int k) const {
    return by_query.bits(q, k) & (CAUSAL ? bits_below(q + shift + 1 - k) : ~0u);
  }
  FAGEN_HD uint32_t query_bits(int k, int q) const {
    return by_key.bits(k, q) & (CAUSAL ? ~bits_below(k - shift - q) : ~0u);
  }

  FAGEN_HD int next_key(int q0, int q1, int k) const {
    const int found = by_query.next(
        q0, q1, k, [&](int end) { return CAUSAL ? min_of(end, q1) + shift : NO_BLOCK; });
    return min_of(found, seqlen_kv);
  }
  FAGEN_HD int next_query(int k0, int k1, int q) const {
    int first = seqlen_q;
    for (int k = k0; k < k1; k = k / BLOCK_KV * BLOCK_KV + BLOCK_KV)  // each key block's own start
      first = min_of(first, by_key.next(k, k + 1, CAUSAL ? max_of(q, k - shift) : q,
                                        [](int) { return NO_BLOCK; }));
    return first;
  }
  FAGEN_HD bool full(int q0, int q1, int k0, int k1) const {
    return (!CAUSAL || k1 - 1 <= q0 + shift) && by_query.full(q0, q1, k0, k1);
  }
  FAGEN_HD Tile tile(int q0, int q1, int k0, int k1) const {
    if (next_key(q0, q1, k0) >= k1) return Tile::skip;
    return full(q0, q1, k0, k1) ? Tile::full : Tile::partial;
  }

 private:
  FAGEN_HD Lists(const fagen_params &p, int which)
      : seqlen_q(p.seqlen_q), seqlen_kv(p.seqlen_kv), shift(seqlen_kv - seqlen_q),
        per_head(p.mask.heads > 1), by_query(p.mask.by_query, seqlen_q, seqlen_kv, which),
        by_key(p.mask.by_key, seqlen_kv, seqlen_q, which) {}
};

#endif
