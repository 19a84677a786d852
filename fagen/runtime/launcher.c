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

static int64_t slots(int64_t total, int64_t tile, int64_t batch) { return total / tile + batch; }

static int64_t factor_value(const struct fagen_factor *f, const struct fagen_params *p,
                            int varlen) {
  const int64_t arg = f->arg;
  const int of_q = f->kind == FAGEN_Q_TILES || f->kind == FAGEN_Q_PADDED;
  switch (f->kind) {
    case FAGEN_BATCH: return varlen ? arg : p->batch * arg;
    case FAGEN_HEADS: return p->heads * arg;
    case FAGEN_KV_HEADS: return p->kv_heads * arg;
    case FAGEN_Q_TILES:
    case FAGEN_KV_TILES:
    case FAGEN_Q_PADDED:
    case FAGEN_KV_PADDED: {
      const int64_t count = varlen ? slots(of_q ? p->total_q : p->total_kv, arg, p->batch)
                                   : tiles(of_q ? p->seqlen_q : p->seqlen_kv, arg);
      return f->kind == FAGEN_Q_PADDED || f->kind == FAGEN_KV_PADDED ? count * arg : count;
    }
    default: return arg;
  }
}

int fagen_evaluate(const struct fagen_kernel *kernel, const struct fagen_product *product,
                   const struct fagen_params *p, int64_t *value) {
  *value = 1;
  for (int i = 0; i < product->count; i++)
    if (__builtin_mul_overflow(*value, factor_value(&product->factor[i], p, kernel->varlen), value))
      return fagen_fail(FAGEN_BAD_ARGUMENT,
                        "batch %d, heads %d, seqlen_q %d, seqlen_kv %d: a size of the launch does "
                        "not fit 64 bits", p->batch, p->heads, p->seqlen_q, p->seqlen_kv);
  return FAGEN_OK;
}

static int check_sizes(const struct fagen_kernel *kernel, const struct fagen_params *p) {
  if (p->batch < 1 || p->heads < 1 || p->kv_heads < 1 || p->seqlen_q < 1 || p->seqlen_kv < 1)
    return fagen_fail(FAGEN_BAD_ARGUMENT,
                      "batch %d, heads %d, kv_heads %d, seqlen_q %d, seqlen_kv %d: each must be at "
                      "least 1", p->batch, p->heads, p->kv_heads, p->seqlen_q, p->seqlen_kv);
  if (p->heads % p->kv_heads)
    return fagen_fail(FAGEN_BAD_ARGUMENT, "heads %d is not a multiple of kv_heads %d", p->heads,
                      p->kv_heads);
  if (kernel->varlen && (p->total_q < 1 || p->total_kv < 1))
    return fagen_fail(FAGEN_BAD_ARGUMENT, "total_q %d, total_kv %d: each must be at least 1",
                      p->total_q, p->total_kv);
  return FAGEN_OK;
}

/* Bytes of each region, and their sum when every region starts at a multiple of the alignment. */
static int measure_regions(const struct fagen_kernel *kernel, const struct fagen_params *p,
                           int64_t bytes[4], int64_t *total) {
  *total = 0;
  for (int i = 0; i < kernel->region_count; i++) {
    const int code = fagen_evaluate(kernel, &kernel->region[i].bytes, p, &bytes[i]);
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
  int code = check_sizes(kernel, p);
  if (!code) code = measure_regions(kernel, p, bytes, &total);
  return code ? -code : total;
}

/* --- tensors --------------------------------------------------------------------------------- */

struct fagen_extent fagen_extent_of(const struct fagen_kernel *kernel, const struct fagen_params *p,
                                    int tensor) {
  static const char *const names[] = {"q", "k", "v", "o", "dout", "dq", "dk", "dv"};
  const struct fagen_view *views[] = {&p->q, &p->k, &p->v, &p->o, &p->dout, &p->dq, &p->dk, &p->dv};
  const int of_keys = tensor == FAGEN_K || tensor == FAGEN_V || tensor == FAGEN_DK ||
                      tensor == FAGEN_DV;
  const int32_t rows = of_keys ? p->seqlen_kv : p->seqlen_q, all = of_keys ? p->total_kv : p->total_q;
  return (struct fagen_extent){views[tensor], kernel->varlen ? all : rows,
                               of_keys ? p->kv_heads : p->heads, kernel->varlen ? 1 : p->batch,
                               names[tensor]};
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
  const struct fagen_extent t = fagen_extent_of(kernel, p, tensor);
  const int32_t element = kernel->dtype == FAGEN_FP32 ? 4 : 2;
  const int32_t alignment = kernel->entry ? element : 16;
  const int written = tensor >= FAGEN_DQ || (tensor == FAGEN_O && kernel->op == FAGEN_FWD);
  if (!t.view->data) return fagen_fail(FAGEN_BAD_ARGUMENT, "%s is a null pointer", t.name);
  if ((uintptr_t)t.view->data % (uintptr_t)alignment)
    return fagen_fail(FAGEN_BAD_ARGUMENT, "%s starts at %p, not a multiple of %d bytes", t.name,
                      t.view->data, alignment);
  int code = check_stride(&t, "batch", t.view->batch_stride, t.batch, element, alignment, written);
  if (!code)
    code = check_stride(&t, "head", t.view->head_stride, t.heads, element, alignment, written);
  if (!code) code = check_stride(&t, "row", t.view->row_stride, t.rows, element, alignment, written);
  return code;
}

/* The offsets of sequences in packed rows. A GPU's cannot be read from here. */
static int check_offsets(const struct fagen_kernel *kernel, const struct fagen_params *p,
                         const char *name, const int32_t *cu, int32_t total, int32_t longest) {
  if (!cu) return fagen_fail(FAGEN_BAD_ARGUMENT, "%s needs %s, which is null", kernel->problem, name);
  if ((uintptr_t)cu % sizeof *cu)
    return fagen_fail(FAGEN_BAD_ARGUMENT, "%s starts at %p, not a multiple of 4 bytes", name,
                      (const void *)cu);
  if (!kernel->entry) return FAGEN_OK;
  if (cu[0] || cu[p->batch] != total)
    return fagen_fail(FAGEN_BAD_ARGUMENT, "%s goes from %d to %d; it must rise from 0 to %d", name,
                      cu[0], cu[p->batch], total);
  for (int32_t b = 0; b < p->batch; b++)
    if (cu[b + 1] < cu[b] || (int64_t)cu[b + 1] - cu[b] > longest)
      return fagen_fail(FAGEN_BAD_ARGUMENT,
                        "%s: sequence %d has %lld rows; none to %d are possible", name, b,
                        (long long)cu[b + 1] - cu[b], longest);
  return FAGEN_OK;
}

static int check_packing(const struct fagen_kernel *kernel, const struct fagen_params *p) {
  if (!kernel->varlen)
    return p->cu_q || p->cu_kv ? fagen_fail(FAGEN_BAD_ARGUMENT,
                                            "offsets of packed sequences are given; %s takes none",
                                            kernel->problem)
                               : FAGEN_OK;
  const int code = check_offsets(kernel, p, "cu_q", p->cu_q, p->total_q, p->seqlen_q);
  return code ? code : check_offsets(kernel, p, "cu_kv", p->cu_kv, p->total_kv, p->seqlen_kv);
}

/* What the arrays of a mask say cannot be checked here, only that they are there. */
static int check_mask(const struct fagen_kernel *kernel, const struct fagen_params *p) {
  const struct fagen_mask *mask = &p->mask;
  const int backward = kernel->op == FAGEN_BWD;
  const char *missing = NULL;
  if (kernel->mask == FAGEN_NO_MASK) return FAGEN_OK;
  if (kernel->mask == FAGEN_BLOCKS)
    missing = !mask->by_query.cells               ? "by_query.cells"
              : backward && !mask->by_key.cells ? "by_key.cells"
                                                  : NULL;
  else
    missing = !mask->queries ? "queries" : backward && !mask->keys ? "keys" : NULL;
  if (missing)
    return fagen_fail(FAGEN_BAD_ARGUMENT, "%s needs mask.%s, which is null", kernel->problem,
                      missing);
  if ((mask->batches != 1 && mask->batches != p->batch) ||
      (mask->heads != 1 && mask->heads != p->heads))
    return fagen_fail(FAGEN_BAD_ARGUMENT,
                      "the mask is for %d batches and %d heads; 1 or %d, and 1 or %d are possible",
                      mask->batches, mask->heads, p->batch, p->heads);
  return FAGEN_OK;
}

static int check_params(const struct fagen_kernel *kernel, const struct fagen_params *p) {
  int code = check_sizes(kernel, p);
  if (!code) code = check_packing(kernel, p);
  if (!code) code = check_mask(kernel, p);
  const int last = kernel->op == FAGEN_FWD ? FAGEN_O : FAGEN_DV;
  for (int tensor = FAGEN_Q; !code && tensor <= last; tensor++)
    code = check_tensor(kernel, p, tensor);
  if (!code && !p->lse) code = fagen_fail(FAGEN_BAD_ARGUMENT, "lse is a null pointer");
  /* The largest score of a row is the largest product: scale must not turn the order around. */
  if (!code && !(p->scale >= 0 && isfinite(p->scale)))
    code = fagen_fail(FAGEN_BAD_ARGUMENT, "scale is %g; it must be finite and not negative",
                      (double)p->scale);
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
static double size_distance(const struct fagen_kernel *kernel, const struct fagen_params *p) {
  const struct fagen_sizes *tuned = &kernel->tuned;
  if (tuned->seqlen_q < 1) return 1e3;
  const double q = kernel->varlen ? (double)p->total_q / p->batch : p->seqlen_q;
  const double kv = kernel->varlen ? (double)p->total_kv / p->batch : p->seqlen_kv;
  return apart(tuned->seqlen_q, q) + apart(tuned->seqlen_kv, kv) +
         apart((double)tuned->batch * tuned->heads, (double)p->batch * p->heads) / 2 +
         apart((double)tuned->heads / tuned->kv_heads, (double)p->heads / p->kv_heads) / 4;
}

int fagen_select(const char *problem, const struct fagen_params *p, int device) {
  int best = -1, named = 0;
  double best_hardware = 0, best_size = 0;
  const int sm_count = device >= 0 ? fagen_cuda_sm_count(device) : 0;
  for (int i = 0; i < fagen_kernel_count; i++) {
    const struct fagen_kernel *kernel = &fagen_kernels[i];
    if (strcmp(kernel->problem, problem)) continue;
    named++;
    const int code = check_sizes(kernel, p);
    if (code) return -code;
    if (fagen_serves(i, device)) continue;
    const double hardware = hardware_distance(kernel, sm_count);
    const double size = size_distance(kernel, p);
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
