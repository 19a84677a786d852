// The one parameter struct: every kernel of every family takes it, and the host launcher fills it.
// Plain C, so that the launcher, the kernels and a user's C program read the same text.
#ifndef FAGEN_PARAMS_H
#define FAGEN_PARAMS_H

#include <stdint.h>

enum fagen_dtype { FAGEN_FP32 = 0, FAGEN_FP16 = 1, FAGEN_BF16 = 2 };

// A tensor [batch, head, row, dim] seen through strides, counted in elements. The dim stride is 1.
struct fagen_view {
  void *data;
  int64_t batch_stride, head_stride, row_stride;
};

// A mask of blocks that is known at run time only (patterns/lists.h), as seen from the blocks of
// queries or from those of keys. A cell says of 32 neighbouring blocks of a row which ones keep
// anything (some) and which ones everything (full), how many blocks with holes come before it in
// all cells, and which cell of the row is the next one with a block in it (at or past the row's
// last: none). The n-th block with holes has the bitmap holes[n]: a bit per element, 16 columns in
// each number, the blocks' own rows one after another.
struct fagen_cell {
  uint32_t some, full;
  int32_t holes_before, next;
} __attribute__((aligned(16)));
struct fagen_blocks {
  const struct fagen_cell *cells;  // [batch or 1][heads or 1][rows of blocks][cells of a row]
  const int32_t *holes;
  const uint16_t *bitmaps;
};

// Keys of a query, or queries of a key, as [begin, end) (patterns/documents.h).
struct fagen_run { int32_t begin, end; };

// What patterns that are data read; null and 0 for all others. `batches` and `heads` are 1 where
// the mask is the same for all of them. A mask of blocks may bring the order of its tiles in `queries`
// and `keys`, a mask of runs in the two `holes` (device/longest_first.h); else they are null.
struct fagen_mask {
  struct fagen_blocks by_query, by_key;           // the backward needs both
  const struct fagen_run *queries, *keys;         // [batches][seqlen_q] and [batches][seqlen_kv]
  int32_t batches, heads;
};

// Forward reads q, k, v and writes o and lse. Backward reads q, k, v, o, lse, dout (and dlse when
// it is not null) and writes dq, dk, dv. Query head h reads key/value head h / (heads / kv_heads).
// lse and dlse are dense fp32 [batch, heads, seqlen_q]; lse is the natural logarithm, -inf for a
// row that attends to nothing. work[i] is scratch memory, sized by the kernel's launch plan.
//
// Kernels for +varlen take sequences of different lengths, packed one after another. Then batch is
// how many, views are [heads, total rows, dim] (batch strides are not looked at), and the offsets
// cu_q and cu_kv, batch + 1 each, rise from 0 to total_q and total_kv: sequence b has the query rows
// cu_q[b] .. cu_q[b + 1] - 1. They lie where the tensors do. seqlen_q and seqlen_kv are at least the
// longest lengths, and lse and dlse are [heads, total_q].
struct fagen_params {
  struct fagen_view q, k, v, o, dout, dq, dk, dv;
  float *lse;
  float *dlse;
  void *work[4];
  int32_t batch, heads, kv_heads, seqlen_q, seqlen_kv;
  float scale;
  const int32_t *cu_q, *cu_kv;
  int32_t total_q, total_kv;
  struct fagen_mask mask;
};

#endif
