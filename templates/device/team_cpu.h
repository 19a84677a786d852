// A team of threads over numbered tasks, each thread with its own piece of scratch memory.
#ifndef FAGEN_TEAM_CPU_H
#define FAGEN_TEAM_CPU_H

#include <stdlib.h>

#include "device/host.h"

constexpr size_t CACHE_LINE = 64;
constexpr size_t PAGE = 4096;

inline void *scratch_memory(size_t bytes) {
  return aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE);
}

template <class Scratch, class Task>
struct Team {
  Task task;
  Scratch *scratch;
  int64_t tasks, next;

  // Threads take the next task as they become free: put the heavy ones first.
  static void body(void *arg, int32_t thread, int32_t) {
    Team *team = (Team *)arg;
    for (;;) {
      const int64_t t = __atomic_fetch_add(&team->next, 1, __ATOMIC_RELAXED);
      if (t >= team->tasks) return;
      team->task(t, thread, team->scratch[thread]);
    }
  }
};

inline int32_t team_size(const fagen_host *host, int64_t tasks) {
  const int32_t threads = host->threads > 1 ? host->threads : 1;
  return threads < tasks ? threads : (int32_t)tasks;
}

// Runs task(t, thread, scratch) for t in [0, tasks). The scratch is not initialised.
template <class Scratch, class Task>
int for_each_task(const fagen_host *host, int64_t tasks, Task task) {
  const int32_t threads = team_size(host, tasks);
  Scratch *scratch = (Scratch *)scratch_memory(sizeof(Scratch) * threads);
  if (!scratch) return FAGEN_NO_MEMORY;
  Team<Scratch, Task> team{task, scratch, tasks, 0};
  host->parallel(threads, Team<Scratch, Task>::body, &team);
  free(scratch);
  return 0;
}

#endif
