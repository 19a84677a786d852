/* Many callers, jobs of every size, a team that dies and is made again: for ThreadSanitizer. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "launcher.h"

enum { CALLERS = 3, ROUNDS = 1500, MOST = 8, SPREAD = 16 };

static void add(void *arg, int32_t thread, int32_t threads) {
  long *count = arg;
  for (int i = 0; i < 50; i++) count[thread * SPREAD] += threads;
}

static void inner(void *arg, int32_t thread, int32_t threads) {
  long own[MOST * SPREAD] = {0};
  fagen_parallel(3, add, own); /* from inside a job */
  for (int t = 0; t < 3; t++)
    if (own[t * SPREAD] != 150) abort();
  add(arg, thread, threads);
}

static void *call(void *argument) {
  unsigned seed = (unsigned)(size_t)argument;
  for (int round = 0; round < ROUNDS; round++) {
    const int threads = 1 + rand_r(&seed) % (MOST - 1);
    long count[MOST * SPREAD] = {0};
    fagen_parallel(threads, round % 7 ? add : inner, count);
    for (int t = 0; t < MOST; t++)
      if (count[t * SPREAD] != (t < threads ? 50 * threads : 0)) abort();
    if (rand_r(&seed) % 200 == 0) usleep(1000);
  }
  return NULL;
}

int main(void) {
  pthread_t caller[CALLERS];
  for (size_t i = 0; i < CALLERS; i++)
    if (pthread_create(&caller[i], NULL, call, (void *)(i + 1))) abort();
  for (int i = 0; i < CALLERS; i++) pthread_join(caller[i], NULL);
  puts("right");
  return 0;
}
