// A user's C++ program: causal attention and its gradients on the host through the emitted library.
// Prints its inputs and results as JSON, so that the test can compare them.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <fagen.h>

namespace {

struct Tensor {
  int heads, rows, dim;
  std::vector<float> data = std::vector<float>(std::size_t(heads) * rows * dim);

  fagen_view view() {
    return {data.data(), int64_t(heads) * rows * dim, int64_t(rows) * dim, dim};
  }
  void fill(double step) {
    for (std::size_t i = 0; i < data.size(); i++) data[i] = float(std::sin(step * double(i)));
  }
};

void run(const std::string &problem, const fagen_params &p) {
  const int kernel = fagen_select(problem.c_str(), &p, -1);  // -1: the host
  const int64_t bytes = kernel < 0 ? -1 : fagen_workspace_bytes(kernel, &p);
  if (bytes < 0) throw std::runtime_error(fagen_last_error());
  const std::size_t rounded = (std::size_t(bytes) + 255) / 256 * 256;
  const std::unique_ptr<void, decltype(&std::free)> workspace(
      rounded ? std::aligned_alloc(256, rounded) : nullptr, &std::free);
  if (fagen_run(kernel, &p, workspace.get(), nullptr, 2))
    throw std::runtime_error(fagen_last_error());
}

void print(const char *name, const std::vector<float> &data) {
  std::printf("\"%s\": [", name);
  for (std::size_t i = 0; i < data.size(); i++)
    std::printf("%s%.9g", i ? ", " : "", double(data[i]));
  std::printf("], ");
}

}  // namespace

int main() try {
  constexpr int heads = 4, kv_heads = 2, rows = 5, keys = 7, dim = 8;
  Tensor q{heads, rows, dim}, k{kv_heads, keys, dim}, v{kv_heads, keys, dim}, o = q, dout = q,
      dq = q, dk = k, dv = v;
  std::vector<float> lse(heads * rows), dlse(heads * rows);
  q.fill(1), k.fill(2), v.fill(3), dout.fill(4);
  for (std::size_t i = 0; i < dlse.size(); i++) dlse[i] = float(std::cos(double(i)));

  fagen_params p{};
  p.q = q.view(), p.k = k.view(), p.v = v.view(), p.o = o.view(), p.lse = lse.data();
  p.batch = 1, p.heads = heads, p.kv_heads = kv_heads, p.seqlen_q = rows, p.seqlen_kv = keys;
  p.scale = 0.25f;
  run("fwd-fp32-d8-causal", p);
  p.dout = dout.view(), p.dq = dq.view(), p.dk = dk.view(), p.dv = dv.view(), p.dlse = dlse.data();
  run("bwd-fp32-d8-causal", p);

  std::printf("{");
  print("q", q.data), print("k", k.data), print("v", v.data), print("dout", dout.data);
  print("dlse", dlse), print("o", o.data), print("lse", lse);
  print("dq", dq.data), print("dk", dk.data), print("dv", dv.data);
  std::printf("\"kernels\": %d}\n", fagen_count());
} catch (const std::exception &error) {
  std::fprintf(stderr, "%s\n", error.what());
  return EXIT_FAILURE;
}
