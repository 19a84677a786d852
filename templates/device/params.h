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
};

#endif
