/* The C interface: which kernel, how much scratch memory, and the way to a kernel on either side. */
#include "launcher.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { REGION_ALIGNMENT = 256 };

static _Thread_local char last_error[1024];

int fagen_fail(int code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return code;
}

const char *fagen_last_error(void) { return last_error; }

int fagen_count(void) { return fagen_kernel_count; }

const struct fagen_kernel *fagen_kernel_at(int index) {
  if (index >= 0 && index < fagen_kernel_count) return &fagen_kernels[index];
  fagen_fail(FAGEN_NO_SUCH_KERNEL, "kernel %d was asked for; this library has 0 to %d", index,
             fagen_kernel_count - 1);
  return NULL;
}

/* --- sizes ----------------------------------------------------------------------------------- */

static int64_t tiles(int64_t length, int64_t tile) { return (length + tile - 1) / tile; }

static int64_t factor_value(const struct fagen_factor *f, const struct fagen_params *p) {
  const int64_t arg = f->arg;
  switch (f->kind) {
    case FAGEN_BATCH: return p->batch * arg;
    case FAGEN_HEADS: return p->heads * arg;
    case FAGEN_KV_HEADS: return p->kv_heads * arg;
    case FAGEN_Q_TILES: return tiles(p->seqlen_q, arg);
    case FAGEN_KV_TILES: return tiles(p->seqlen_kv, arg);
    case FAGEN_Q_PADDED: return tiles(p->seqlen_q, arg) * arg;
    case FAGEN_KV_PADDED: return tiles(p->seqlen_kv, arg) * arg;
    default: return arg;
  }
}

int fagen_evaluate(const struct fagen_product *product, const struct fagen_params *p,
                   int64_t *value) {
  *value = 1;
  for (int i = 0; i < product->count; i++)
    if (__builtin_mul_overflow(*value, factor_value(&product->factor[i], p), value))
      return fagen_fail(FAGEN_BAD_ARGUMENT,
                        "batch %d, heads %d, seqlen_q %d, seqlen_kv %d: a size of the launch does "
                        "not fit 64 bits", p->batch, p->heads, p->seqlen_q, p->seqlen_kv);
  return FAGEN_OK;
}

static int check_sizes(const struct fagen_params *p) {
  if (p->batch < 1 || p->heads < 1 || p->kv_heads < 1 || p->seqlen_q < 1 || p->seqlen_kv < 1)
    return fagen_fail(FAGEN_BAD_ARGUMENT,
                      "batch %d, heads %d, kv_heads %d, seqlen_q %d, seqlen_kv %d: each must be at "
                      "least 1", p->batch, p->heads, p->kv_heads, p->seqlen_q, p->seqlen_kv);
  if (p->heads % p->kv_heads)
    return fagen_fail(FAGEN_BAD_ARGUMENT, "heads %d is not a multiple of kv_heads %d", p->heads,
                      p->kv_heads);
  return FAGEN_OK;
}

/* Bytes of each region, and their sum when every region starts at a multiple of the alignment. */
static int measure_regions(const struct fagen_kernel *kernel, const struct fagen_params *p,
                           int64_t bytes[4], int64_t *total) {
  *total = 0;
  for (int i = 0; i < kernel->region_count; i++) {
    const int code = fagen_evaluate(&kernel->region[i].bytes, p, &bytes[i]);
    if (code) return code;
    int64_t padded;
    if (__builtin_add_overflow(bytes[i], (int64_t)REGION_ALIGNMENT - 1, &padded) ||
        __builtin_add_overflow(*total, padded & -REGION_ALIGNMENT, total))
      return fagen_fail(FAGEN_BAD_ARGUMENT, "scratch memory does not fit 64 bits");
  }
  return FAGEN_OK;
}

int64_t fagen_workspace_bytes(int index, const struct fagen_params *p) {
  const struct fagen_kernel *kernel = fagen_kernel_at(index);
  if (!kernel) return -FAGEN_NO_SUCH_KERNEL;
  int64_t bytes[4], total;
  int code = check_sizes(p);
  if (!code) code = measure_regions(kernel, p, bytes, &total);
  return code ? -code : total;
}

/* --- tensors --------------------------------------------------------------------------------- */

struct fagen_extent fagen_extent_of(const struct fagen_params *p, int tensor) {
  static const char *const names[] = {"q", "k", "v", "o", "dout", "dq", "dk", "dv"};
  const struct fagen_view *views[] = {&p->q, &p->k, &p->v, &p->o, &p->dout, &p->dq, &p->dk, &p->dv};
  const int of_keys = tensor == FAGEN_K || tensor == FAGEN_V || tensor == FAGEN_DK ||
                      tensor == FAGEN_DV;
  return (struct fagen_extent){views[tensor], of_keys ? p->seqlen_kv : p->seqlen_q,
                               of_keys ? p->kv_heads : p->heads, names[tensor]};
}

/* Strides count only where there is more than one element along them. */
static int check_stride(const struct fagen_extent *t, const char *which, int64_t stride,
                        int32_t extent, int32_t element, int32_t alignment, int written) {
  if (extent == 1) return FAGEN_OK;
  if (stride < 0 || (written && stride == 0))
    return fagen_fail(FAGEN_BAD_ARGUMENT, "%s: %s stride is %lld elements", t->name, which,
                      (long long)stride);
  if (stride * element % alignment)
    return fagen_fail(FAGEN_BAD_ARGUMENT,
                      "%s: %s stride is %lld elements of %d bytes, not a multiple of %d bytes",
                      t->name, which, (long long)stride, element, alignment);
  return FAGEN_OK;
}

static int check_tensor(const struct fagen_kernel *kernel, const struct fagen_params *p,
                        int tensor) {
  const struct fagen_extent t = fagen_extent_of(p, tensor);
  const int32_t element = kernel->dtype == FAGEN_FP32 ? 4 : 2;
  const int32_t alignment = kernel->entry ? element : 16;
  const int written = tensor >= FAGEN_DQ || (tensor == FAGEN_O && kernel->op == FAGEN_FWD);
  if (!t.view->data) return fagen_fail(FAGEN_BAD_ARGUMENT, "%s is a null pointer", t.name);
  if ((uintptr_t)t.view->data % (uintptr_t)alignment)
    return fagen_fail(FAGEN_BAD_ARGUMENT, "%s starts at %p, not a multiple of %d bytes", t.name,
                      t.view->data, alignment);
  int code = check_stride(&t, "batch", t.view->batch_stride, p->batch, element, alignment, written);
  if (!code)
    code = check_stride(&t, "head", t.view->head_stride, t.heads, element, alignment, written);
  if (!code) code = check_stride(&t, "row", t.view->row_stride, t.rows, element, alignment, written);
  return code;
}

static int check_params(const struct fagen_kernel *kernel, const struct fagen_params *p) {
  int code = check_sizes(p);
  const int last = kernel->op == FAGEN_FWD ? FAGEN_O : FAGEN_DV;
  for (int tensor = FAGEN_Q; !code && tensor <= last; tensor++)
    code = check_tensor(kernel, p, tensor);
  if (!code && !p->lse) code = fagen_fail(FAGEN_BAD_ARGUMENT, "lse is a null pointer");
  return code;
}

/* --- running --------------------------------------------------------------------------------- */

static int run_host(const struct fagen_kernel *kernel, const struct fagen_params *p,
                    const int64_t *bytes, int threads) {
  const int code = fagen_host_serves(kernel);
  if (code) return code;
  for (int i = 0; i < kernel->region_count; i++)
    if (kernel->region[i].zero) memset(p->work[i], 0, (size_t)bytes[i]);
  if (threads < 1) threads = fagen_usable_cores();
  if (threads > FAGEN_MOST_THREADS) threads = FAGEN_MOST_THREADS;
  const struct fagen_host host = {threads, fagen_parallel};
  const int answer = kernel->entry(p, &host);
  if (answer == FAGEN_NO_MEMORY)
    return fagen_fail(FAGEN_FAILED, "%s (%s): no memory for the kernel's scratch space",
                      kernel->problem, kernel->family);
  if (answer)
    return fagen_fail(FAGEN_FAILED, "%s (%s): the kernel answered %d", kernel->problem,
                      kernel->family, answer);
  return FAGEN_OK;
}

int fagen_run(int index, const struct fagen_params *p, void *workspace, void *stream, int threads) {
  const struct fagen_kernel *kernel = fagen_kernel_at(index);
  if (!kernel) return FAGEN_NO_SUCH_KERNEL;
  int64_t bytes[4], total;
  int code = check_params(kernel, p);
  if (!code) code = measure_regions(kernel, p, bytes, &total);
  if (code) return code;
  if (total && (!workspace || (uintptr_t)workspace % REGION_ALIGNMENT))
    return fagen_fail(FAGEN_BAD_ARGUMENT, "%s needs a workspace of %lld bytes aligned to %d; got %p",
                      kernel->problem, (long long)total, REGION_ALIGNMENT, workspace);
  struct fagen_params own = *p;
  char *at = workspace;
  memset(own.work, 0, sizeof own.work);
  for (int i = 0; i < kernel->region_count; i++) {
    own.work[i] = at;
    at += (bytes[i] + REGION_ALIGNMENT - 1) & -REGION_ALIGNMENT;
  }
  return kernel->entry ? run_host(kernel, &own, bytes, threads)
                       : fagen_cuda_run(index, &own, bytes, stream);
}

/* --- choosing -------------------------------------------------------------------------------- */

int fagen_serves(int index, int device) {
  const struct fagen_kernel *kernel = fagen_kernel_at(index);
  if (!kernel) return FAGEN_NO_SUCH_KERNEL;
  if (!kernel->entry != (device >= 0))
    return fagen_fail(FAGEN_NOT_HERE, "%s is for %s; the tensors are on %s", kernel->problem,
                      kernel->entry ? "the host CPU" : "CUDA devices",
                      device >= 0 ? "a CUDA device" : "the host");
  return kernel->entry ? fagen_host_serves(kernel) : fagen_cuda_serves(kernel, device);
}

static double apart(double a, double b) { return fabs(log2(a / b)); }

/* Kernels tuned on the same hardware come before any other; then the nearest sizes decide. */
static double hardware_distance(const struct fagen_kernel *kernel, int sm_count) {
  if (kernel->entry) return -(double)strlen(kernel->isa); /* the more it uses, the closer */
  return kernel->sm_count > 0 && sm_count > 0 ? apart(kernel->sm_count, sm_count) : 64.0;
}

/* In octaves; lengths count fully, the number of heads half, the sharing of keys a quarter. */
static double size_distance(const struct fagen_sizes *tuned, const struct fagen_params *p) {
  if (tuned->seqlen_q < 1) return 1e3;
  return apart(tuned->seqlen_q, p->seqlen_q) + apart(tuned->seqlen_kv, p->seqlen_kv) +
         apart((double)tuned->batch * tuned->heads, (double)p->batch * p->heads) / 2 +
         apart((double)tuned->heads / tuned->kv_heads, (double)p->heads / p->kv_heads) / 4;
}

int fagen_select(const char *problem, const struct fagen_params *p, int device) {
  int best = -1, named = 0, code = check_sizes(p);
  double best_hardware = 0, best_size = 0;
  if (code) return -code;
  const int sm_count = device >= 0 ? fagen_cuda_sm_count(device) : 0;
  for (int i = 0; i < fagen_kernel_count; i++) {
    const struct fagen_kernel *kernel = &fagen_kernels[i];
    if (strcmp(kernel->problem, problem)) continue;
    named++;
    if (fagen_serves(i, device)) continue;
    const double hardware = hardware_distance(kernel, sm_count);
    const double size = size_distance(&kernel->tuned, p);
    if (best < 0 || hardware < best_hardware || (hardware == best_hardware && size < best_size)) {
      best = i;
      best_hardware = hardware;
      best_size = size;
    }
  }
  if (best >= 0) return best;
  if (!named)
    return -fagen_fail(FAGEN_NO_SUCH_KERNEL, "no kernel for %s is in this library", problem);
  return -FAGEN_NOT_HERE; /* the text is the last kernel's own reason */
}
