// Which blocks of keys a tile needs, and what of a block the pattern drops. Where every row keeps one
// run of keys, the blocks are one run too. For any other pattern see visits_fwd_sm90.h.
#ifndef FAGEN_BLOCKS_FWD_SM90_H
#define FAGEN_BLOCKS_FWD_SM90_H

#include "device/layout_fwd_sm90.h"

template <class P>
constexpr bool cuts_left() {
  if constexpr (requires { P::bounded_left; }) return P::bounded_left;
  return true;
}
template <class P>
constexpr bool cuts_right() {
  if constexpr (requires { P::bounded_right; }) return P::bounded_right;
  return true;
}
constexpr bool CUTS_LEFT = cuts_left<Pattern>(), CUTS_RIGHT = cuts_right<Pattern>();

// The pattern that a tile's rows follow.
template <class P = Pattern>
FAGEN_DEVICE P pattern_of_tile(const fagen_params &p, const Note &tile) {
  return Sequence(p, tile.batch).template pattern<P>(tile.head);
}

// The entry of the batch as tensor maps count: packed sequences are one.
FAGEN_DEVICE int map_entry(int batch) { return VARLEN ? 0 : batch; }

// Blocks [begin, end) hold a kept key, [clean_begin, clean_end) need no mask.
struct Blocks {
  int begin, end, clean_begin, clean_end;
  FAGEN_DEVICE int count() const { return end - begin; }
};

template <IntervalPattern P>
FAGEN_DEVICE Blocks blocks_of(const P &pattern, int row, int rows, int seqlen_q) {
  const int row_end = min(row + rows, seqlen_q);
  if (row >= row_end) return Blocks{0, 0, 0, 0};
  const Range some = pattern.keys(row, row_end), all = pattern.full_keys(row, row_end);
  if (some.end <= some.begin) return Blocks{0, 0, 0, 0};
  // An anchor is a kept key of its row: the last key that all rows share must be in a masked block.
  const int clean = max(REDO ? all.end - 1 : all.end, 0);
  return Blocks{some.begin / BLOCK_N, (some.end + BLOCK_N - 1) / BLOCK_N,
                (all.begin + BLOCK_N - 1) / BLOCK_N, clean / BLOCK_N};
}

// Is the kept part of these rows' last block in its first half?
template <IntervalPattern P>
FAGEN_DEVICE bool end_in_half(const P &pattern, int row, int rows, int seqlen_q) {
  if constexpr (!HALF_BLOCKS) return false;
  const int end = pattern.keys(row, min(row + rows, seqlen_q)).end;
  return (end - 1) % BLOCK_N < HALF_BLOCK;
}

#include "device/order_fwd_sm90.h"
constexpr int64_t SECTION_BYTES = 32 << 20;

// --- the elements of a block ------------------------------------------------------------------

// Which elements of a row stay, of those that one thread has: they come in pairs of columns, 8
// apart, from `column` on. Bit i of word w keeps element 32 w + i.
template <class P>
struct RowMask {
  const P &pattern;
  const int row, column;

  FAGEN_DEVICE RowMask(const P &pattern, int row, int column)
      : pattern(pattern), row(row), column(column) {}

  FAGEN_DEVICE uint32_t word(int word) const {
    uint32_t bits = 0;
#pragma unroll 2
    for (int i = 0; i < 32 && 32 * word + i < BLOCK_N / 4; i++) {
      const int key = column + 128 * word + 8 * (i >> 1) + (i & 1);
      bits |= uint32_t((key < pattern.seqlen_kv) & pattern.keep(row, key)) << i;
    }
    return bits;
  }
};

// 16 columns at once: of these a thread has two, and the two 8 further.
template <BitPattern P>
struct RowMask<P> {
  const P &pattern;
  const int row, column;

  FAGEN_DEVICE RowMask(const P &pattern, int row, int column)
      : pattern(pattern), row(row), column(column) {}

  FAGEN_DEVICE uint32_t word(int word) const {
    uint32_t bits = 0;
#pragma unroll 4
    for (int i = 0; i < 8 && 128 * word + 16 * i < BLOCK_N; i++) {
      const uint32_t kept =
          pattern.key_bits(row, (column & ~15) + 128 * word + 16 * i) >> (column & 15);
      bits |= ((kept & 3) | (kept >> 6 & 12)) << 4 * i;
    }
    return bits;
  }
};

template <IntervalPattern P>
struct RowMask<P> {
  int begin, end;  // elements

  FAGEN_DEVICE RowMask(const P &pattern, int row, int column) {
    const Range kept = pattern.row(row);
    end = elements_below(kept.end - column);
    begin = CUTS_LEFT ? elements_below(kept.begin - column) : 0;
  }

  FAGEN_DEVICE uint32_t word(int word) const {
    uint32_t bits = shift_right(~0u, max(32 * word + 32 - end, 0));
    if constexpr (CUTS_LEFT) bits &= shift_left(~0u, max(begin - 32 * word, 0));
    return bits;
  }

 private:
  // How many of the row's elements in this thread have a column under `limit`.
  static FAGEN_DEVICE int elements_below(int limit) {
    limit = max(limit, 0);
    return (limit >> 3) * 2 + min(limit & 7, 2);
  }
};

#endif
