/* A libcuda.so.1 for tests: no GPU, prints every call that matters as one line on stdout, and refuses
 * what the driver's documentation rules out. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
typedef void *handle;

static int fact(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text ? atoi(text) : otherwise;
}

API int cuInit(unsigned flags) { return (int)flags + fact("FAKE_INIT", 0); }
API int cuDriverGetVersion(int *version) { return *version = 12080, 0; }
API int cuGetErrorString(int code, const char **text) {
  *text = code == 209 ? "no kernel image is available" : "some error";
  return 0;
}
API int cuDeviceGetCount(int *count) { return *count = 2, 0; }
API int cuDeviceGetAttribute(int *value, int which, int device) {
  *value = which == 16 ? fact("FAKE_SMS", 132) : which == 75 ? fact("FAKE_MAJOR", 9) : which == 76 ? device : 0;
  return 0;
}
API int cuDevicePrimaryCtxRetain(handle *context, int device) {
  printf("retain %d\n", device);
  return *context = (handle)(intptr_t)(device + 1), 0;
}
static handle current;
API int cuCtxGetCurrent(handle *context) { return *context = current, 0; }
API int cuCtxPushCurrent_v2(handle context) {
  puts("push");
  return current = context, 0;
}
API int cuCtxPopCurrent_v2(handle *context) {
  puts("pop");
  *context = current;
  return current = NULL, 0;
}
API int cuCtxGetDevice(int *device) { return *device = (int)(intptr_t)current - 1, 0; }
API int cuCtxGetId(handle context, unsigned long long *id) {
  return *id = (unsigned long long)(intptr_t)context, 0;
}
API int cuPointerGetAttribute(void *value, int which, uintptr_t address) {
  if (which != 9 || !address) return 1;
  *(int *)value = fact("FAKE_DEVICE", 0);
  return 0;
}
API int cuThreadExchangeStreamCaptureMode(int *mode) {
  int before = *mode;
  return *mode = 0, before == 2 || before == 0 ? 0 : 1;
}
API int cuModuleLoadData(handle *module, const void *image) {
  printf("load %s\n", (const char *)image);
  *module = (handle)image;
  return fact("FAKE_LOAD", 0);
}
API int cuModuleGetFunction(handle *function, handle module, const char *name) {
  (void)module;
  *function = strdup(name);
  return 0;
}
static struct { char name[64]; int shared; } granted[64]; /* dynamic shared memory, by function */
static int shared_of(const char *name, int wanted) {
  int i = 0;
  while (i < 63 && *granted[i].name && strcmp(granted[i].name, name)) i++;
  if (!wanted) return *granted[i].name ? granted[i].shared : 48 << 10;
  strncpy(granted[i].name, name, 63);
  return granted[i].shared = wanted;
}
API int cuFuncSetAttribute(handle function, int which, int value) {
  if (which == 8) shared_of(function, value);
  printf("attribute %s %d %d\n", (char *)function, which, value);
  return 0;
}
API int cuMemsetD32Async(uintptr_t address, unsigned value, size_t words, handle stream) {
  printf("zero %lx %u %zu %lx\n", (long)address, value, words, (long)(intptr_t)stream);
  return 0;
}
static int legal_map(void *map, int type, uint32_t rank, void *address, const uint64_t *dims,
                     const uint64_t *strides, const uint32_t *box, const uint32_t *steps,
                     int interleave, int swizzle) {
  const uint32_t row = box[0] * (type == 7 ? 4 : 2), span[] = {256 * 4, 32, 64, 128};
  int good = rank == 4 && (uintptr_t)map % 64 == 0 && (uintptr_t)address % 16 == 0;
  good &= (type == 6 || type == 7 || type == 9) && !interleave && swizzle >= 0 && swizzle <= 3;
  good &= row % 16 == 0 && row <= span[swizzle & 3];
  for (uint32_t i = 0; i < rank; i++) {
    good &= dims[i] >= 1 && dims[i] <= 1ull << 32 && box[i] >= 1 && box[i] <= 256;
    good &= steps[i] >= 1 && steps[i] <= 8;
    if (i + 1 < rank) good &= strides[i] % 16 == 0 && strides[i] < 1ull << 40;
  }
  return good;
}
API int cuTensorMapEncodeTiled(void *map, int type, uint32_t rank, void *address,
                               const uint64_t *dims, const uint64_t *strides, const uint32_t *box,
                               const uint32_t *steps, int interleave, int swizzle, int promotion,
                               int fill) {
  printf("map type %d rank %u at %lx dims %lu %lu %lu %lu strides %lu %lu %lu box %u %u %u %u "
         "steps %u %u %u %u interleave %d swizzle %d promotion %d fill %d aligned %d\n",
         type, rank, (long)(intptr_t)address, dims[0], dims[1], dims[2], dims[3], strides[0],
         strides[1], strides[2], box[0], box[1], box[2], box[3], steps[0], steps[1], steps[2],
         steps[3], interleave, swizzle, promotion, fill, (int)((uintptr_t)map % 64));
  memset(map, 0, 128);
  return legal_map(map, type, rank, address, dims, strides, box, steps, interleave, swizzle) ? 0 : 1;
}
struct config {
  uint32_t grid[3], block[3], shared;
  handle stream;
  int32_t (*attributes)[18];
  uint32_t count;
};
API int cuLaunchKernelEx(const struct config *c, handle function, void **arguments, void **extra) {
  uint64_t *work = (uint64_t *)((char *)arguments[0] + 272);
  printf("launch %s grid %u %u %u block %u %u %u shared %u stream %lx overlap %d work %lx %lx "
         "extra %d\n", (char *)function, c->grid[0], c->grid[1], c->grid[2], c->block[0],
         c->block[1], c->block[2], c->shared, (long)(intptr_t)c->stream,
         c->count ? c->attributes[0][0] * 10 + c->attributes[0][2] : 0, work[0], work[1],
         extra != NULL);
  if ((int)c->shared > shared_of(function, 0)) return 1;
  return fact("FAKE_LAUNCH", 0);
}
