// The sequence that a piece of work belongs to: its lengths, and its rows in the call's tensors.
// With +varlen the sequences of a call are packed; without it every batch entry is one of the same
// lengths, nothing is stored, and the code is as if this file were not there.
#ifndef FAGEN_SEQUENCE_H
#define FAGEN_SEQUENCE_H

#include "device/params.h"
#include "patterns/contract.h"

// A tile of `size` rows: of which sequence, and which of its tiles. With +varlen there may be none.
struct Slot {
  int batch, tile;
};

// Tiles of packed sequences are numbered without looking at all of them: those of sequence b begin
// at cu[b] / size + b, which leaves enough numbers for its rows, sometimes one too many.
FAGEN_HD int first_slot(const int32_t *cu, int size, int batch) { return cu[batch] / size + batch; }

// The last sequence that begins at or before a slot.
FAGEN_HD Slot find_slot(const int32_t *cu, int batch, int size, int slot) {
  int at = 0;
  for (int end = batch; end - at > 1;) {
    const int middle = at + (end - at) / 2;
    if (first_slot(cu, size, middle) <= slot) at = middle;
    else end = middle;
  }
  return Slot{at, slot - first_slot(cu, size, at)};
}

template <bool PACKED>
struct SequenceOf {
  const fagen_params &p;
  int batch;

  FAGEN_HD SequenceOf(const fagen_params &p, int batch) : p(p), batch(batch) {}

  FAGEN_HD int seqlen_q() const { return p.seqlen_q; }
  FAGEN_HD int seqlen_kv() const { return p.seqlen_kv; }
  FAGEN_HD int first_q() const { return 0; }
  FAGEN_HD int first_kv() const { return 0; }

  // Row 0 of one head in lse and dlse.
  FAGEN_HD int64_t lse_row(int head) const {
    return (static_cast<int64_t>(batch) * p.heads + head) * p.seqlen_q;
  }
  // The number of a tile of `size` query rows among those of all heads, in scratch memory.
  FAGEN_HD int64_t q_block(int size, int head, int tile) const {
    const int tiles = (p.seqlen_q + size - 1) / size;
    return (static_cast<int64_t>(batch) * p.heads + head) * tiles + tile;
  }
};

template <>
struct SequenceOf<true> {
  const fagen_params &p;
  int batch, begin_q, begin_kv, rows_q, rows_kv;

  FAGEN_HD SequenceOf(const fagen_params &p, int batch)
      : p(p), batch(batch), begin_q(p.cu_q[batch]), begin_kv(p.cu_kv[batch]),
        rows_q(p.cu_q[batch + 1] - begin_q), rows_kv(p.cu_kv[batch + 1] - begin_kv) {}

  FAGEN_HD int seqlen_q() const { return rows_q; }
  FAGEN_HD int seqlen_kv() const { return rows_kv; }
  FAGEN_HD int first_q() const { return begin_q; }
  FAGEN_HD int first_kv() const { return begin_kv; }

  FAGEN_HD int64_t lse_row(int head) const {
    return static_cast<int64_t>(head) * p.total_q + begin_q;
  }
  FAGEN_HD int64_t q_block(int size, int head, int tile) const {
    return static_cast<int64_t>(head) * (p.total_q / size + p.batch) + begin_q / size + batch + tile;
  }
};

// What kernels use. q_rows and kv_rows are row 0 of one head in a tensor of query or key rows.
struct Sequence : SequenceOf<VARLEN> {
  using SequenceOf<VARLEN>::SequenceOf;

  FAGEN_HD Lengths lengths() const { return Lengths{this->seqlen_q(), this->seqlen_kv()}; }

  // The pattern of one query head.
  template <class P>
  FAGEN_HD P pattern(int head) const {
    if constexpr (VARLEN) return P(lengths());
    else return pattern_of<P>(this->p, this->batch, head);
  }

  template <class Scalar>
  FAGEN_HD Scalar *q_rows(const fagen_view &view, int head) const {
    return row<Scalar>(view, head, this->first_q());
  }
  template <class Scalar>
  FAGEN_HD Scalar *kv_rows(const fagen_view &view, int head) const {
    return row<Scalar>(view, head, this->first_kv());
  }

 private:
  template <class Scalar>
  FAGEN_HD Scalar *row(const fagen_view &view, int head, int first) const {
    const int64_t entry = VARLEN ? first * view.row_stride : this->batch * view.batch_stride;
    return static_cast<Scalar *>(view.data) + entry + head * view.head_stride;
  }
};

// The tile that grid coordinates (x, batch) name; with +varlen x is a slot and batch is not used.
FAGEN_HD Slot q_slot(const fagen_params &p, int size, int x, int batch) {
  if constexpr (VARLEN) return find_slot(p.cu_q, p.batch, size, x);
  else return Slot{batch, x};
}
FAGEN_HD Slot kv_slot(const fagen_params &p, int size, int x, int batch) {
  if constexpr (VARLEN) return find_slot(p.cu_kv, p.batch, size, x);
  else return Slot{batch, x};
}

#endif
