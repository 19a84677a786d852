/* CUDA kernels: the driver (opened at run time), modules per context, tensor maps, launches. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher.h"

/* --- the driver's interface, as far as it is used -------------------------------------------- */

typedef struct context *context_type;
typedef struct module *module_type;
typedef struct function *function_type;
typedef struct stream *stream_type;
struct tensor_map { _Alignas(64) unsigned char opaque[128]; };
struct launch_attribute { int32_t id, padding; int32_t value[16]; };
struct launch_config {
  uint32_t grid[3], block[3], shared_bytes;
  stream_type stream;
  struct launch_attribute *attributes;
  uint32_t attribute_count;
};
_Static_assert(sizeof(struct launch_attribute) == 72, "CUlaunchAttribute is 72 bytes");

enum {
  ATTRIBUTE_SM_COUNT = 16,
  ATTRIBUTE_MAJOR = 75,
  ATTRIBUTE_MINOR = 76,
  FUNCTION_MAX_DYNAMIC_SHARED = 8,
  POINTER_DEVICE_ORDINAL = 9,
  CAPTURE_RELAXED = 2,
  LAUNCH_OVERLAP = 6, /* programmatic stream serialization */
  MAP_FLOAT16 = 6,
  MAP_FLOAT32 = 7,
  MAP_BFLOAT16 = 9,
};

/* X(name in the code, symbol, arguments) */
#define DRIVER(X)                                                                            \
  X(init, "cuInit", (unsigned))                                                              \
  X(version, "cuDriverGetVersion", (int *))                                                  \
  X(error_text, "cuGetErrorString", (int, const char **))                                    \
  X(device_count, "cuDeviceGetCount", (int *))                                               \
  X(device_attribute, "cuDeviceGetAttribute", (int *, int, int))                             \
  X(primary_context, "cuDevicePrimaryCtxRetain", (context_type *, int))                      \
  X(current_context, "cuCtxGetCurrent", (context_type *))                                    \
  X(push_context, "cuCtxPushCurrent_v2", (context_type))                                     \
  X(pop_context, "cuCtxPopCurrent_v2", (context_type *))                                     \
  X(context_device, "cuCtxGetDevice", (int *))                                               \
  X(context_id, "cuCtxGetId", (context_type, unsigned long long *))                          \
  X(pointer_attribute, "cuPointerGetAttribute", (void *, int, uintptr_t))                    \
  X(exchange_capture, "cuThreadExchangeStreamCaptureMode", (int *))                          \
  X(load_module, "cuModuleLoadData", (module_type *, const void *))                          \
  X(find_function, "cuModuleGetFunction", (function_type *, module_type, const char *))      \
  X(set_function, "cuFuncSetAttribute", (function_type, int, int))                           \
  X(memset_words, "cuMemsetD32Async", (uintptr_t, unsigned, size_t, stream_type))            \
  X(encode_map, "cuTensorMapEncodeTiled",                                                    \
    (struct tensor_map *, int, uint32_t, void *, const uint64_t *, const uint64_t *,         \
     const uint32_t *, const uint32_t *, int, int, int, int))                                \
  X(launch, "cuLaunchKernelEx", (const struct launch_config *, function_type, void **, void **))

static struct {
#define DECLARE(name, symbol, arguments) int(*name) arguments;
  DRIVER(DECLARE)
#undef DECLARE
  int devices;
  char trouble[256];
} driver;
static pthread_once_t driver_once = PTHREAD_ONCE_INIT;

static void open_driver(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    snprintf(driver.trouble, sizeof driver.trouble,
             "no NVIDIA driver on this machine (libcuda.so.1 cannot be opened)");
    return;
  }
#define FIND(name, symbol, arguments)                                                   \
  *(void **)&driver.name = dlsym(library, symbol);                                      \
  if (!driver.name && !*driver.trouble)                                                 \
    snprintf(driver.trouble, sizeof driver.trouble,                                     \
             "the NVIDIA driver is too old: it has no %s; CUDA 12.0 or newer is needed", symbol);
  DRIVER(FIND)
#undef FIND
  if (*driver.trouble) return;
  int code = driver.init(0);
  if (!code) code = driver.device_count(&driver.devices);
  if (code)
    snprintf(driver.trouble, sizeof driver.trouble, "the NVIDIA driver answered error %d to cuInit",
             code);
}

static int need_driver(void) {
  pthread_once(&driver_once, open_driver);
  return *driver.trouble ? fagen_fail(FAGEN_NOT_HERE, "%s", driver.trouble) : FAGEN_OK;
}

static int driver_failed(int code, const char *doing, const struct fagen_kernel *kernel) {
  const char *text = NULL;
  if (driver.error_text(code, &text) || !text) text = "unknown";
  return fagen_fail(FAGEN_FAILED, "%s: %s failed with CUDA error %d: %s", kernel->problem, doing,
                    code, text);
}

/* --- devices --------------------------------------------------------------------------------- */

static int attribute(int device, int which) {
  int value = 0;
  return driver.device_attribute(&value, which, device) ? 0 : value;
}

int fagen_cuda_sm_count(int device) {
  return need_driver() ? 0 : attribute(device, ATTRIBUTE_SM_COUNT);
}

int fagen_cuda_serves(const struct fagen_kernel *kernel, int device) {
  const int code = need_driver();
  if (code) return code;
  if (device < 0 || device >= driver.devices)
    return fagen_fail(FAGEN_NOT_HERE, "CUDA device %d was asked for; there are %d", device,
                      driver.devices);
  const int major = attribute(device, ATTRIBUTE_MAJOR), minor = attribute(device, ATTRIBUTE_MINOR);
  if (major == kernel->capability_major && minor == kernel->capability_minor) return FAGEN_OK;
  return fagen_fail(FAGEN_NOT_HERE,
                    "%s was built for compute capability %d.%d (%s); CUDA device %d has %d.%d",
                    kernel->problem, kernel->capability_major, kernel->capability_minor,
                    kernel->target, device, major, minor);
}

/* --- modules: loaded once per kernel and context --------------------------------------------- */

struct loaded {
  context_type context;
  unsigned long long context_id; /* tells a new context from an old one at the same address */
  function_type function[4];
  int sm_count;
  struct loaded *next;
};

static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;

static struct loaded *look_up(int index, context_type context, unsigned long long id) {
  struct loaded *at = fagen_loaded[index];
  while (at && (at->context != context || at->context_id != id)) at = at->next;
  return at;
}

static int load_functions(const struct fagen_kernel *kernel, struct loaded *fresh) {
  module_type module;
  int version = 0, code = driver.load_module(&module, kernel->image);
  if (code) {
    char doing[96];
    driver.version(&version);
    snprintf(doing, sizeof doing, "loading the kernel (into a driver for CUDA %d.%d)",
             version / 1000, version % 1000 / 10);
    return driver_failed(code, doing, kernel);
  }
  for (int i = 0; i < kernel->step_count; i++) {
    const struct fagen_step *step = &kernel->step[i];
    code = driver.find_function(&fresh->function[i], module, step->symbol);
    if (code) return driver_failed(code, step->symbol, kernel);
    if (step->shared_bytes > 0)
      code = driver.set_function(fresh->function[i], FUNCTION_MAX_DYNAMIC_SHARED,
                                 step->shared_bytes);
    if (code) return driver_failed(code, "asking for its shared memory", kernel);
  }
  return FAGEN_OK;
}

static int load_kernel(int index, context_type context, unsigned long long id,
                       struct loaded **result) {
  const struct fagen_kernel *kernel = &fagen_kernels[index];
  int device = 0, code = driver.context_device(&device);
  if (code) return driver_failed(code, "asking for the device", kernel);
  code = fagen_cuda_serves(kernel, device);
  if (code) return code;
  struct loaded *fresh = calloc(1, sizeof *fresh);
  if (!fresh) return fagen_fail(FAGEN_FAILED, "out of memory");
  fresh->context = context;
  fresh->context_id = id;
  fresh->sm_count = attribute(device, ATTRIBUTE_SM_COUNT);
  code = load_functions(kernel, fresh);
  if (code) {
    free(fresh);
    return code;
  }
  fresh->next = fagen_loaded[index];
  fagen_loaded[index] = fresh; /* complete before it is seen; never changed after */
  *result = fresh;
  return FAGEN_OK;
}

static int find_loaded(int index, context_type context, struct loaded **result) {
  unsigned long long id = 0;
  int code = driver.context_id(context, &id);
  if (code) return driver_failed(code, "cuCtxGetId", &fagen_kernels[index]);
  *result = look_up(index, context, id);
  if (*result) return FAGEN_OK;
  int mode = CAPTURE_RELAXED; /* loading is allowed while this thread records a CUDA graph */
  pthread_mutex_lock(&loading);
  driver.exchange_capture(&mode);
  *result = look_up(index, context, id);
  if (!*result) code = load_kernel(index, context, id, result);
  driver.exchange_capture(&mode);
  pthread_mutex_unlock(&loading);
  return code;
}

/* --- launching ------------------------------------------------------------------------------- */

/* A dimension of extent 1 is never stepped over, so its stride may be anything: give a legal one. */
static uint64_t stride_bytes(int64_t stride, int32_t extent, uint64_t element, uint64_t legal) {
  return extent == 1 ? legal : (uint64_t)stride * element;
}

static int encode_map(const struct fagen_kernel *kernel, const struct fagen_params *p,
                      const struct fagen_map *map, struct tensor_map *out) {
  static const int types[] = {MAP_FLOAT32, MAP_FLOAT16, MAP_BFLOAT16}; /* by enum fagen_dtype */
  const struct fagen_extent t = fagen_extent_of(kernel, p, map->tensor);
  const uint64_t element = kernel->dtype == FAGEN_FP32 ? 4 : 2;
  const uint64_t row = (uint64_t)map->head_dim * element;
  const uint64_t dims[4] = {(uint64_t)map->head_dim, (uint64_t)t.rows, (uint64_t)t.heads,
                            (uint64_t)t.batch};
  const uint64_t strides[3] = {stride_bytes(t.view->row_stride, t.rows, element, row),
                               stride_bytes(t.view->head_stride, t.heads, element, row),
                               stride_bytes(t.view->batch_stride, t.batch, element, row)};
  const uint32_t box[4] = {(uint32_t)map->box_dim, (uint32_t)map->box_rows, 1, 1};
  const uint32_t steps[4] = {1, 1, 1, 1};
  const int swizzle = map->swizzle == 128 ? 3 : map->swizzle / 32;
  const int promotion = map->l2_fetch == 256 ? 3 : map->l2_fetch / 64;
  /* Interleave none; out of bounds reads as zero. */
  const int code = driver.encode_map(out, types[kernel->dtype], 4, t.view->data, dims, strides, box,
                                     steps, 0, swizzle, promotion, 0);
  if (!code) return FAGEN_OK;
  return fagen_fail(
      FAGEN_FAILED,
      "%s: no tensor map for %s (CUDA error %d): address %p, dims %llu x %llu x %llu x %llu, "
      "strides %llu, %llu, %llu bytes, box %u x %u, swizzle %d",
      kernel->problem, t.name, code, t.view->data, (unsigned long long)dims[0],
      (unsigned long long)dims[1], (unsigned long long)dims[2], (unsigned long long)dims[3],
      (unsigned long long)strides[0], (unsigned long long)strides[1],
      (unsigned long long)strides[2], box[0], box[1], map->swizzle);
}

static int set_grid(const struct fagen_kernel *kernel, const struct fagen_step *step,
                    const struct fagen_params *p, int sm_count, uint32_t grid[3]) {
  static const int64_t limit[3] = {INT32_MAX, 65535, 65535};
  for (int i = 0; i < 3; i++) {
    int64_t value;
    const int code = fagen_evaluate(kernel, &step->grid[i], p, &value);
    if (code) return code;
    if (i == 0 && step->ctas_per_sm) {
      const int64_t most = (int64_t)sm_count * step->ctas_per_sm;
      if (value > most) value = most;
    }
    if (value > limit[i])
      return fagen_fail(FAGEN_BAD_ARGUMENT, "%s: %lld blocks along %c; CUDA allows %lld",
                        kernel->problem, (long long)value, "xyz"[i], (long long)limit[i]);
    grid[i] = (uint32_t)value;
  }
  return FAGEN_OK;
}

static int launch_step(const struct fagen_kernel *kernel, const struct loaded *loaded, int number,
                       const struct fagen_params *p, stream_type stream) {
  const struct fagen_step *step = &kernel->step[number];
  struct tensor_map maps[8];
  void *arguments[9] = {(void *)p};
  struct launch_attribute overlap = {.id = LAUNCH_OVERLAP, .value = {1}};
  struct launch_config config = {.block = {(uint32_t)step->block, 1, 1},
                                 .shared_bytes = (uint32_t)step->shared_bytes,
                                 .stream = stream,
                                 .attributes = &overlap,
                                 .attribute_count = step->overlap ? 1 : 0};
  int code = set_grid(kernel, step, p, loaded->sm_count, config.grid);
  for (int i = 0; !code && i < step->map_count; i++) {
    code = encode_map(kernel, p, &step->map[i], &maps[i]);
    arguments[i + 1] = &maps[i];
  }
  if (code) return code;
  code = driver.launch(&config, loaded->function[number], arguments, NULL);
  if (!code) return FAGEN_OK;
  char doing[256];
  snprintf(doing, sizeof doing, "%s (grid %u x %u x %u, block %d, %d bytes of shared memory)",
           step->symbol, config.grid[0], config.grid[1], config.grid[2], step->block,
           step->shared_bytes);
  return driver_failed(code, doing, kernel);
}

static int launch_all(int index, const struct fagen_params *p, const int64_t *bytes,
                      context_type context, stream_type stream) {
  const struct fagen_kernel *kernel = &fagen_kernels[index];
  struct loaded *loaded = NULL;
  int code = find_loaded(index, context, &loaded);
  for (int i = 0; !code && i < kernel->region_count; i++) {
    if (!kernel->region[i].zero) continue;
    code = driver.memset_words((uintptr_t)p->work[i], 0, (size_t)(bytes[i] + 3) / 4, stream);
    if (code) code = driver_failed(code, "zeroing scratch memory", kernel);
  }
  for (int i = 0; !code && i < kernel->step_count; i++)
    code = launch_step(kernel, loaded, i, p, stream);
  return code;
}

/* The primary context of the device that holds q; kept for the life of the process. */
static int context_of_data(const struct fagen_kernel *kernel, const void *data,
                           context_type *context) {
  int device = 0;
  int code = driver.pointer_attribute(&device, POINTER_DEVICE_ORDINAL, (uintptr_t)data);
  if (code) return driver_failed(code, "finding the device that holds q", kernel);
  code = driver.primary_context(context, device);
  return code ? driver_failed(code, "cuDevicePrimaryCtxRetain", kernel) : FAGEN_OK;
}

int fagen_cuda_run(int index, const struct fagen_params *p, const int64_t *bytes, void *stream) {
  const struct fagen_kernel *kernel = &fagen_kernels[index];
  context_type context = NULL;
  int code = need_driver();
  if (code) return code;
  code = driver.current_context(&context);
  if (code) return driver_failed(code, "cuCtxGetCurrent", kernel);
  if (context) return launch_all(index, p, bytes, context, stream);
  code = context_of_data(kernel, p->q.data, &context);
  if (code) return code;
  code = driver.push_context(context);
  if (code) return driver_failed(code, "cuCtxPushCurrent", kernel);
  code = launch_all(index, p, bytes, context, stream);
  driver.pop_context(&context);
  return code;
}
