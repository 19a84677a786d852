/* What this CPU can run: kernels are built for named instruction sets and refused without them. */
#include <pthread.h>
#include <stdint.h>
#include <string.h>

#include "launcher.h"

#if defined(__x86_64__)
#include <cpuid.h>

enum { EAX = 0, EBX = 1, ECX = 2, EDX = 3 };

/* What the operating system must save on a switch, as bits of XCR0. */
enum { NEEDS_YMM = 0x06, NEEDS_ZMM = 0xe6, NEEDS_TILES = 0x60000 };

static const struct { const char *name; int leaf, subleaf, reg, bit, state; } ISA[] = {
    {"f16c", 1, 0, ECX, 29, NEEDS_YMM},         {"fma", 1, 0, ECX, 12, NEEDS_YMM},
    {"avx2", 7, 0, EBX, 5, NEEDS_YMM},          {"avx_vnni", 7, 1, EAX, 4, NEEDS_YMM},
    {"avx512f", 7, 0, EBX, 16, NEEDS_ZMM},      {"avx512dq", 7, 0, EBX, 17, NEEDS_ZMM},
    {"avx512bw", 7, 0, EBX, 30, NEEDS_ZMM},     {"avx512vl", 7, 0, EBX, 31, NEEDS_ZMM},
    {"avx512_vnni", 7, 0, ECX, 11, NEEDS_ZMM},  {"avx512_bf16", 7, 1, EAX, 5, NEEDS_ZMM},
    {"avx512_fp16", 7, 0, EDX, 23, NEEDS_ZMM},  {"amx_tile", 7, 0, EDX, 24, NEEDS_TILES},
    {"amx_bf16", 7, 0, EDX, 22, NEEDS_TILES},
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static uint32_t present; /* bit i: ISA[i] can be used here */

static uint64_t saved_state(void) {
  unsigned r[4] = {0}, low = 0, high = 0;
  __get_cpuid(1, &r[0], &r[1], &r[2], &r[3]);
  if (!(r[ECX] >> 27 & 1)) return 0; /* no XGETBV */
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

static void look(void) {
  const uint64_t saved = saved_state();
  for (size_t i = 0; i < sizeof ISA / sizeof *ISA; i++) {
    const uint64_t state = (uint64_t)ISA[i].state;
    unsigned r[4] = {0};
    __get_cpuid_count((unsigned)ISA[i].leaf, (unsigned)ISA[i].subleaf, &r[0], &r[1], &r[2], &r[3]);
    if ((r[ISA[i].reg] >> ISA[i].bit & 1) && (saved & state) == state) present |= 1u << i;
  }
}

static int has(const char *name, size_t length) {
  pthread_once(&once, look);
  for (size_t i = 0; i < sizeof ISA / sizeof *ISA; i++)
    if (strlen(ISA[i].name) == length && !strncmp(ISA[i].name, name, length))
      return present >> i & 1;
  return 0;
}
#else
static int has(const char *name, size_t length) {
#if defined(__aarch64__)
  return length == 5 && !strncmp(name, "asimd", length);
#else
  (void)name, (void)length;
  return 0;
#endif
}
#endif

int fagen_host_serves(const struct fagen_kernel *kernel) {
  char missing[256] = "";
  for (const char *name = kernel->isa; *name;) {
    const size_t length = strcspn(name, " ");
    if (!has(name, length) && strlen(missing) + length + 2 < sizeof missing) {
      strcat(missing, " ");
      strncat(missing, name, length);
    }
    name += length;
    name += *name == ' ';
  }
  if (!*missing) return FAGEN_OK;
  return fagen_fail(FAGEN_NOT_HERE, "%s was built for %s and needs%s, which this CPU does not have",
                    kernel->problem, kernel->target, missing);
}
