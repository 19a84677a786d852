/* The C interface of an emitted attention library. Link with the library alone: no Python, no CUDA
 * toolkit; the CUDA driver is opened at run time and only when a CUDA kernel is asked for.
 *
 *   struct fagen_params p = {0};          // fill the views, sizes, scale and lse
 *   int kernel = fagen_select("fwd-bf16-d128-causal", &p, 0);   // CUDA device 0; -1 is the host
 *   int64_t bytes = fagen_workspace_bytes(kernel, &p);
 *   int code = fagen_run(kernel, &p, workspace, stream, 0);
 *   if (code) puts(fagen_last_error());
 *
 * Sequences of different lengths packed one after another: kernels whose problem ends in +varlen, and
 * fagen_params' cu_q, cu_kv, total_q, total_kv; params.h says how. fagen_select and
 * fagen_workspace_bytes look at the totals only.
 *
 * All functions may be called from any thread. */
#ifndef FAGEN_H
#define FAGEN_H

#include "fagen_plan.h"

#ifdef __cplusplus
extern "C" {
#endif

#define FAGEN_API __attribute__((visibility("default")))

enum fagen_status {
  FAGEN_OK = 0,
  FAGEN_NO_SUCH_KERNEL = 1, /* the index or the problem is not in this library      */
  FAGEN_BAD_ARGUMENT = 2,   /* sizes, strides, pointers or alignment                */
  FAGEN_NOT_HERE = 3,       /* this machine lacks what the kernel needs             */
  FAGEN_FAILED = 4          /* the CUDA driver or the kernel itself reported an error */
};

/* How many kernels are inside, and what each is. NULL when there is no such index. */
FAGEN_API int fagen_count(void);
FAGEN_API const struct fagen_kernel *fagen_kernel_at(int index);

/* Can kernel `index` run on CUDA device `device` (-1: the host)? FAGEN_OK, or the reason as text. */
FAGEN_API int fagen_serves(int index, int device);

/* The best kernel for a problem on a device (-1: the host): tuned on the same GPU first, then for
 * the nearest sizes. An index, or minus an enum fagen_status. */
FAGEN_API int fagen_select(const char *problem, const struct fagen_params *p, int device);

/* Scratch memory that fagen_run needs, in bytes; or minus an enum fagen_status. */
FAGEN_API int64_t fagen_workspace_bytes(int index, const struct fagen_params *p);

/* Runs a kernel. `workspace` is aligned to 256 bytes, on the device the kernel runs on, and may be
 * NULL when none is needed; p->work is ignored. CUDA: asynchronous on `stream` (a CUstream or
 * cudaStream_t; NULL is the default stream) of the current context, or of the context of the device
 * that holds q when none is current. Host: runs on `threads` threads (0: every usable core) and
 * returns when done. */
FAGEN_API int fagen_run(int index, const struct fagen_params *p, void *workspace, void *stream,
                        int threads);

/* What went wrong in this thread's last call that failed. */
FAGEN_API const char *fagen_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
