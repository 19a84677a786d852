/* The OpenMP team that a process already has. A program such as torch keeps one on the cores, and its
 * threads spin for milliseconds after each job: a second team would fight them for those cores. So
 * where GNU OpenMP is loaded, jobs go to its team; nothing is linked against it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "launcher.h"

static struct {
  void (*parallel)(void (*body)(void *), void *arg, unsigned threads, unsigned flags);
  int (*thread)(void), (*threads)(void), (*inside)(void);
} openmp;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic int forked; /* the team does not survive a fork, and would be waited for for ever */

static void note_fork(void) { forked = 1; }

static int is_openmp(struct dl_phdr_info *library, size_t size, void *path) {
  (void)size;
  const char *slash = strrchr(library->dlpi_name, '/');
  if (!slash || strncmp(slash + 1, "libgomp", 7)) return 0;
  snprintf(path, 4096, "%s", library->dlpi_name);
  return 1;
}

static void find_openmp(void) {
  char path[4096];
  if (!dl_iterate_phdr(is_openmp, path)) return;
  void *library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD); /* never closed: it stays loaded */
  if (!library) return;
  *(void **)&openmp.thread = dlsym(library, "omp_get_thread_num");
  *(void **)&openmp.threads = dlsym(library, "omp_get_num_threads");
  *(void **)&openmp.inside = dlsym(library, "omp_in_parallel");
  if (!openmp.thread || !openmp.threads || !openmp.inside) return;
  pthread_atfork(NULL, NULL, note_fork);
  *(void **)&openmp.parallel = dlsym(library, "GOMP_parallel");
}

struct job {
  void (*body)(void *arg, int32_t thread, int32_t threads);
  void *arg;
  int32_t parts;
};

/* The team may be smaller than asked for: parts without a thread of their own follow. */
static void work(void *argument) {
  const struct job *job = argument;
  const int32_t step = openmp.threads();
  for (int32_t part = openmp.thread(); part < job->parts; part += step)
    job->body(job->arg, part, job->parts);
}

int fagen_openmp_parallel(int32_t threads,
                          void (*body)(void *arg, int32_t thread, int32_t threads), void *arg) {
  pthread_once(&once, find_openmp);
  if (!openmp.parallel || forked || openmp.inside()) return 0;
  struct job job = {body, arg, threads};
  openmp.parallel(work, &job, (unsigned)threads, 0);
  return 1;
}
