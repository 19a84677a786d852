/* A team of threads for host kernels, where the process has none (openmp.c). Made when first needed,
 * it spins briefly after each job and then sleeps; after a while without work it ends. One job runs
 * at a time: a call from a second thread, or from inside a job, does its whole job alone. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "launcher.h"

#ifndef FAGEN_IDLE_MICROSECONDS
#define FAGEN_IDLE_MICROSECONDS 5000000
#endif

enum { MOST_THREADS = FAGEN_MOST_THREADS, SPINS = 2000 };

typedef void (*body_type)(void *arg, int32_t thread, int32_t threads);

static struct {
  pthread_mutex_t lock; /* guards the fields below it, and sleeping */
  pthread_cond_t posted, finished;
  struct { pthread_t handle; char exists, ended; } worker[MOST_THREADS];
  int32_t workers; /* slots 1..workers have been used */
  atomic_flag busy;
  /* The job: number << 32 | members << 1 | quit. Workers below `members` do a part each. */
  _Atomic uint64_t job;
  _Atomic int32_t running;
  _Atomic int32_t sleepers;
  body_type body;
  void *arg;
  int32_t threads; /* parts of the job; the caller does those without a member */
} team = {.lock = PTHREAD_MUTEX_INITIALIZER,
          .posted = PTHREAD_COND_INITIALIZER,
          .finished = PTHREAD_COND_INITIALIZER,
          .busy = ATOMIC_FLAG_INIT};

static void pause_cpu(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static int32_t members_of(uint64_t job) { return (int32_t)(job & 0xffffffffu) >> 1; }
static int quits(uint64_t job) { return (int)(job & 1); }

/* The next job after `seen`; the same one when nothing came for a while. */
static uint64_t next_job(int32_t thread, uint64_t seen) {
  for (int i = 0; i < SPINS; i++) {
    if (team.job != seen) return team.job;
    pause_cpu();
  }
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  const int64_t end = until.tv_nsec + FAGEN_IDLE_MICROSECONDS * INT64_C(1000);
  until.tv_sec += end / 1000000000;
  until.tv_nsec = end % 1000000000;
  pthread_mutex_lock(&team.lock);
  team.sleepers++;
  int expired = 0;
  while (team.job == seen && !expired)
    expired = pthread_cond_timedwait(&team.posted, &team.lock, &until) != 0;
  team.sleepers--;
  const uint64_t job = team.job;
  if (job == seen) team.worker[thread].ended = 1; /* under the lock: nobody counts on it now */
  pthread_mutex_unlock(&team.lock);
  return job;
}

static void finish_one(void) {
  if (--team.running) return;
  pthread_mutex_lock(&team.lock);
  pthread_cond_signal(&team.finished);
  pthread_mutex_unlock(&team.lock);
}

struct start { int32_t thread; uint64_t seen; };
static struct start starts[MOST_THREADS];

static void *work(void *argument) {
  const int32_t thread = ((struct start *)argument)->thread;
  uint64_t seen = ((struct start *)argument)->seen;
  for (;;) {
    const uint64_t job = next_job(thread, seen);
    if (job == seen || quits(job)) return NULL;
    seen = job;
    if (thread < members_of(job)) {
      team.body(team.arg, thread, team.threads);
      finish_one();
    }
  }
}

/* Makes workers 1..threads-1 exist, as far as the system lets it; answers how many of them do. */
static int32_t recruit(int32_t threads) {
  int32_t thread = 1;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the program's own threads */
  for (; thread < threads; thread++) {
    if (team.worker[thread].exists && !team.worker[thread].ended) continue;
    if (team.worker[thread].exists) pthread_join(team.worker[thread].handle, NULL);
    team.worker[thread].ended = 0;
    starts[thread] = (struct start){thread, team.job};
    team.worker[thread].exists =
        !pthread_create(&team.worker[thread].handle, NULL, work, &starts[thread]);
    if (!team.worker[thread].exists) break;
    if (thread > team.workers) team.workers = thread;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return thread - 1;
}

static void post(uint64_t low) {
  team.job = ((team.job >> 32) + 1) << 32 | low;
  if (team.sleepers) pthread_cond_broadcast(&team.posted);
}

static void wait_until_finished(void) {
  for (int i = 0; i < SPINS; i++) {
    if (!team.running) return;
    pause_cpu();
  }
  pthread_mutex_lock(&team.lock);
  while (team.running) pthread_cond_wait(&team.finished, &team.lock);
  pthread_mutex_unlock(&team.lock);
}

/* --- what surrounds the team ----------------------------------------------------------------- */

/* The child of a fork has none of the workers. */
static void forget(void) {
  pthread_mutex_init(&team.lock, NULL);
  pthread_cond_init(&team.posted, NULL);
  pthread_cond_init(&team.finished, NULL);
  for (int32_t i = 0; i <= team.workers; i++) team.worker[i].exists = 0;
  team.workers = team.running = team.sleepers = 0;
  atomic_flag_clear(&team.busy);
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, forget); }

/* Before the library is unloaded. Threads in the middle of a job (exit() called beside them) are
 * left to the end of the process. */
__attribute__((destructor)) static void dismiss(void) {
  if (atomic_flag_test_and_set(&team.busy)) return;
  pthread_mutex_lock(&team.lock);
  post(1);
  pthread_mutex_unlock(&team.lock);
  for (int32_t i = 1; i <= team.workers; i++)
    if (team.worker[i].exists) pthread_join(team.worker[i].handle, NULL);
  team.workers = 0;
}

int32_t fagen_usable_cores(void) {
  static _Atomic int32_t known;
  if (known) return known;
  int32_t cores = (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__linux__)
  cpu_set_t set;
  if (!sched_getaffinity(0, sizeof set, &set)) cores = CPU_COUNT(&set);
#endif
  return known = cores < 1 ? 1 : cores;
}

void fagen_parallel(int32_t threads, body_type body, void *arg) {
  if (threads > 1 && fagen_openmp_parallel(threads, body, arg)) return;
  if (threads > MOST_THREADS || threads < 2 || atomic_flag_test_and_set(&team.busy)) {
    for (int32_t thread = 0; thread < threads; thread++) body(arg, thread, threads);
    return;
  }
  pthread_mutex_lock(&team.lock);
  const int32_t helpers = recruit(threads);
  team.body = body;
  team.arg = arg;
  team.threads = threads;
  team.running = helpers;
  post((uint64_t)(helpers + 1) << 1);
  pthread_mutex_unlock(&team.lock);
  body(arg, 0, threads);
  for (int32_t thread = helpers + 1; thread < threads; thread++) body(arg, thread, threads);
  wait_until_finished();
  atomic_flag_clear(&team.busy);
}
