// How a host kernel is called: its parameters, and the team of threads it may use. Plain C.
#ifndef FAGEN_HOST_H
#define FAGEN_HOST_H

#include <stdint.h>

struct fagen_params;

// parallel calls body(arg, thread, threads) once for every thread in 0..threads-1 and returns when
// all are done. The calls may run one after the other: a body never waits for another.
struct fagen_host {
  int32_t threads;
  void (*parallel)(int32_t threads, void (*body)(void *arg, int32_t thread, int32_t threads),
                   void *arg);
};

// 0, or an error code: FAGEN_NO_MEMORY when the kernel's scratch memory cannot be had.
typedef int (*fagen_host_kernel)(const struct fagen_params *, const struct fagen_host *);
enum { FAGEN_NO_MEMORY = 12 };

#endif
