/* Between the files of the launcher; not part of the C interface. */
#ifndef FAGEN_LAUNCHER_H
#define FAGEN_LAUNCHER_H

#include "fagen.h"

/* Written by link.py: the kernels, and one slot each for what the CUDA side loaded. */
extern const struct fagen_kernel fagen_kernels[];
extern const int fagen_kernel_count;
extern void *_Atomic fagen_loaded[];

/* launcher.c: keeps the text for fagen_last_error and returns the code. */
__attribute__((format(printf, 2, 3))) int fagen_fail(int code, const char *format, ...);
/* launcher.c: FAGEN_OK and the value, or FAGEN_BAD_ARGUMENT when it does not fit 64 bits. */
int fagen_evaluate(const struct fagen_kernel *kernel, const struct fagen_product *product,
                   const struct fagen_params *p, int64_t *value);

/* A tensor's view and extents by enum fagen_tensor. A packed batch is one entry of all its rows. */
struct fagen_extent {
  const struct fagen_view *view;
  int32_t rows, heads, batch;
  const char *name;
};
struct fagen_extent fagen_extent_of(const struct fagen_kernel *kernel, const struct fagen_params *p,
                                    int tensor);

/* isa.c: does this CPU have every instruction set of the list? FAGEN_OK or FAGEN_NOT_HERE. */
int fagen_host_serves(const struct fagen_kernel *kernel);

/* threads.c: the team, and how many cores this process may use. */
enum { FAGEN_MOST_THREADS = 1024 };
int32_t fagen_usable_cores(void);
void fagen_parallel(int32_t threads, void (*body)(void *arg, int32_t thread, int32_t threads),
                    void *arg);

/* openmp.c: 1 when the process has an OpenMP team and it did the job, else 0. */
int fagen_openmp_parallel(int32_t threads,
                          void (*body)(void *arg, int32_t thread, int32_t threads), void *arg);

/* cuda.c: everything that needs the CUDA driver. `p` has its work pointers filled; region i is
 * bytes[i] long. */
int fagen_cuda_serves(const struct fagen_kernel *kernel, int device);
int fagen_cuda_sm_count(int device);
int fagen_cuda_run(int index, const struct fagen_params *p, const int64_t *bytes, void *stream);

#endif
