// The thread team the CPU kernel tests call kernels with: one std::thread per member.
#include <thread>
#include <vector>

#include "device/host.h"

namespace {

void parallel(int32_t threads, void (*body)(void *, int32_t, int32_t), void *arg) {
  std::vector<std::thread> team;
  for (int32_t i = 1; i < threads; ++i) team.emplace_back(body, arg, i, threads);
  body(arg, 0, threads);
  for (std::thread &member : team) member.join();
}

}  // namespace

extern "C" int call(fagen_host_kernel kernel, const fagen_params *params, int32_t threads) {
  const fagen_host host{threads, parallel};
  return kernel(params, &host);
}
