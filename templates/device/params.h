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
struct fagen_params {
  struct fagen_view q, k, v, o, dout, dq, dk, dv;
  float *lse;
  float *dlse;
  void *work[4];
  int32_t batch, heads, kv_heads, seqlen_q, seqlen_kv;
  float scale;
};

#endif
