/* A libnvidia-ml.so.1 for tests: one GPU, its processes and how much of it they used, by variables of the environment. */
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
typedef struct { unsigned pid; unsigned long long memory; unsigned instance, part; } holder;
typedef struct { unsigned pid; unsigned long long when; unsigned sm, memory, encoder, decoder; } use;

static int gpu;

API int nvmlInit_v2(void) { return 0; }
API int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  *device = &gpu;
  return strcmp(uuid, "GPU-1") ? 6 : 0;
}
API int nvmlDeviceGetClockInfo(void *device, int which, unsigned *mhz) {
  *mhz = 1755;
  return device != &gpu || which != 1;
}

/* Numbers between blanks. */
static unsigned numbers(const char *name, unsigned *found, unsigned most) {
  unsigned count = 0;
  for (char *text = getenv(name), *end; text && *text && count < most; text = end) {
    found[count] = (unsigned)strtoul(text, &end, 10);
    if (end == text) break;
    count++;
  }
  return count;
}

API int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, holder *list) {
  unsigned pids[16];
  *count = numbers("FAKE_PIDS", pids, *count < 16 ? *count : 16);
  for (unsigned i = 0; i < *count; i++) list[i] = (holder){pids[i], 1ull << 40, ~0u, ~0u};
  return device != &gpu;
}
/* Triples: process, its use in percent, and whether that was long ago. */
API int nvmlDeviceGetProcessUtilization(void *device, use *list, unsigned *count, unsigned long long since) {
  unsigned uses[48], n = numbers("FAKE_USE", uses, 48) / 3;
  if (getenv("FAKE_FORBIDDEN")) return 4;
  for (unsigned i = 0; i < n; i++)
    list[i] = (use){uses[3 * i], uses[3 * i + 2] ? 1 : since + 10, uses[3 * i + 1], 99, 99, 99};
  *count = n;
  return device != &gpu;
}
