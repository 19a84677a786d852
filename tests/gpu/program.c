/* A user's C program on a GPU: forward and backward through the emitted library, compared with the
 * same formula on the host. Memory comes from the CUDA driver, opened at run time. */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fagen.h"

enum { HEADS = 2, ROWS = 150, DIM = 64, COUNT = HEADS * ROWS * DIM, SIZE = COUNT * 2 };
static const float SCALE = 0.125f;

static uint16_t to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static float from_bf16(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}

static int (*allocate)(uintptr_t *, size_t), (*upload)(uintptr_t, const void *, size_t),
    (*download)(void *, uintptr_t, size_t), (*synchronize)(void);

static void must(int code, const char *what) {
  if (!code) return;
  fprintf(stderr, "%s: %d: %s\n", what, code, fagen_last_error());
  exit(1);
}

static void open_driver(void) {
  void *cuda = dlopen("libcuda.so.1", RTLD_NOW), *context = NULL;
  int (*init)(unsigned), (*retain)(void **, int), (*set)(void *);
  if (!cuda) must(1, "no driver");
  *(void **)&init = dlsym(cuda, "cuInit");
  *(void **)&retain = dlsym(cuda, "cuDevicePrimaryCtxRetain");
  *(void **)&set = dlsym(cuda, "cuCtxSetCurrent");
  *(void **)&allocate = dlsym(cuda, "cuMemAlloc_v2");
  *(void **)&upload = dlsym(cuda, "cuMemcpyHtoD_v2");
  *(void **)&download = dlsym(cuda, "cuMemcpyDtoH_v2");
  *(void **)&synchronize = dlsym(cuda, "cuCtxSynchronize");
  must(init(0), "cuInit");
  must(retain(&context, 0), "cuDevicePrimaryCtxRetain");
  must(set(context), "cuCtxSetCurrent");
}

static uintptr_t room(size_t bytes) {
  uintptr_t address = 0;
  must(allocate(&address, bytes), "cuMemAlloc");
  return address;
}

/* Random input on the device, and what it was rounded to. */
static struct fagen_view input(float *copy, unsigned seed) {
  static uint16_t packed[COUNT];
  for (int i = 0; i < COUNT; i++) {
    packed[i] = to_bf16(sinf((float)(i * (int)seed % 1009)));
    copy[i] = from_bf16(packed[i]);
  }
  uintptr_t address = room(SIZE);
  must(upload(address, packed, SIZE), "upload");
  return (struct fagen_view){(void *)address, COUNT, ROWS * DIM, DIM};
}

static struct fagen_view output(void) {
  return (struct fagen_view){(void *)room(SIZE), COUNT, ROWS * DIM, DIM};
}

static void run(const char *problem, struct fagen_params *p) {
  const int kernel = fagen_select(problem, p, 0);
  if (kernel < 0) must(-kernel, problem);
  const int64_t bytes = fagen_workspace_bytes(kernel, p);
  if (bytes < 0) must((int)-bytes, problem);
  must(fagen_run(kernel, p, bytes ? (void *)room((size_t)bytes) : NULL, NULL, 0), problem);
  must(synchronize(), "cuCtxSynchronize");
}

static float worst(const float *expected, struct fagen_view found) {
  static uint16_t packed[COUNT];
  float error = 0, largest = 0;
  must(download(packed, (uintptr_t)found.data, SIZE), "download");
  for (int i = 0; i < COUNT; i++) {
    error = fmaxf(error, fabsf(from_bf16(packed[i]) - expected[i]));
    largest = fmaxf(largest, fabsf(expected[i]));
  }
  return error / largest;
}

static float q[COUNT], k[COUNT], v[COUNT], g[COUNT], o[COUNT], dq[COUNT], dk[COUNT], dv[COUNT];

/* Causal attention and its gradients, row by row. */
static void formula(void) {
  static float e[ROWS], dp[ROWS];
  for (int h = 0; h < HEADS; h++)
    for (int i = 0; i < ROWS; i++) {
      const int base = h * ROWS * DIM, row = base + i * DIM;
      float sum = 0, delta = 0;
      for (int j = 0; j <= i; j++) {
        float s = 0;
        for (int d = 0; d < DIM; d++) s += q[row + d] * k[base + j * DIM + d];
        sum += e[j] = expf(s * SCALE);
      }
      for (int j = 0; j <= i; j++) {
        e[j] /= sum;
        dp[j] = 0;
        for (int d = 0; d < DIM; d++) {
          o[row + d] += e[j] * v[base + j * DIM + d];
          dp[j] += g[row + d] * v[base + j * DIM + d];
          dv[base + j * DIM + d] += e[j] * g[row + d];
        }
        delta += e[j] * dp[j];
      }
      for (int j = 0; j <= i; j++) {
        const float ds = e[j] * (dp[j] - delta) * SCALE;
        for (int d = 0; d < DIM; d++) {
          dq[row + d] += ds * k[base + j * DIM + d];
          dk[base + j * DIM + d] += ds * q[row + d];
        }
      }
    }
}

int main(void) {
  open_driver();
  struct fagen_params p = {.q = input(q, 7), .k = input(k, 13), .v = input(v, 29),
                           .dout = input(g, 31), .o = output(), .dq = output(), .dk = output(),
                           .dv = output(), .lse = (float *)room(HEADS * ROWS * 4), .batch = 1,
                           .heads = HEADS, .kv_heads = HEADS, .seqlen_q = ROWS, .seqlen_kv = ROWS,
                           .scale = SCALE};
  run("fwd-bf16-d64-causal", &p);
  run("bwd-bf16-d64-causal", &p);
  formula();
  const float errors[4] = {worst(o, p.o), worst(dq, p.dq), worst(dk, p.dk), worst(dv, p.dv)};
  printf("errors o %.2e dq %.2e dk %.2e dv %.2e\n", (double)errors[0], (double)errors[1],
         (double)errors[2], (double)errors[3]);
  for (int i = 0; i < 4; i++)
    if (!(errors[i] < 0.03f)) return 1;
  puts("forward and backward agree");
  return 0;
}
