// wgmma: operands through the bits of their descriptors, results when a wait asks for them.
#include "inside_sm90.h"

#include <algorithm>
#include <math.h>

namespace machine {

constexpr int M = 64, K = 16;

// One accumulator of a warpgroup. From the first multiply to the wait its registers hold NaN.
struct Chain {
  int n;
  alignas(64) float sum[M][256];
  float *at[GROUP] = {};    // each thread's registers, while it has a multiply in flight
  size_t last[GROUP] = {};  // number of that thread's last multiply, plus 1
};

static int row_of(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2); }
static int column_of(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

static void take(Chain &chain, int thread, float *d) {
  chain.at[thread] = d;
  for (int i = 0; i < chain.n / 2; i++) {
    chain.sum[row_of(thread, i)][column_of(thread, i)] = d[i];
    d[i] = NAN;
  }
}
static void give_back(Chain &chain, int thread) {
  float *d = chain.at[thread];
  for (int i = 0; i < chain.n / 2; i++) d[i] = chain.sum[row_of(thread, i)][column_of(thread, i)];
  chain.at[thread] = nullptr;
}

// --- operands ------------------------------------------------------------------------------------

struct Descriptor {
  uint32_t start, leading, stride;  // bytes
  int swizzle;
  explicit Descriptor(uint64_t bits)
      : start((bits & 0x3FFF) << 4),
        leading((bits >> 16 & 0x3FFF) << 4),
        stride((bits >> 32 & 0x3FFF) << 4) {
    const int code = bits >> 62;
    swizzle = code == 1 ? 128 : code == 2 ? 64 : code == 3 ? 32 : 0;
    if (!swizzle) fail("a matrix with no swizzle");
    if (bits >> 49 & 7) fail("a matrix descriptor with base offset %d", int(bits >> 49 & 7));
    if (start % (8 * swizzle) >= uint32_t(swizzle))
      fail("a matrix at %u: its %d-byte swizzle pattern starts elsewhere", start, swizzle);
  }
};

static void widen(const char *from, float (&to)[8], bool fp16) {
  uint16_t half[8];
  memcpy(half, from, 16);
  if (fp16) {
    _Float16 h[8];
    memcpy(h, half, 16);
    for (int i = 0; i < 8; i++) to[i] = static_cast<float>(h[i]);
  } else {
    for (int i = 0; i < 8; i++) {
      const uint32_t bits = uint32_t(half[i]) << 16;
      memcpy(&to[i], &bits, 4);
    }
  }
}

// `size` rows (M or N) by 16, laid out as out[k * pitch + row].
static void fetch(Block &block, uint64_t bits, int size, bool transposed, bool fp16, float *out,
                  int pitch) {
  const Descriptor d(bits);
  const auto piece = [&](uint32_t offset, float (&eight)[8]) {
    const uint32_t at = swizzled(d.start + offset, d.swizzle);
    const char *bytes = shared_of(block, at, 16);
    if (async_may_read(block, at, "wgmma"))
      widen(bytes, eight, fp16);
    else
      std::fill(eight, eight + 8, NAN);
  };
  float eight[8];
  if (transposed) {  // the rows are contiguous: `swizzle` bytes of them, then `leading` further
    const int wide = d.swizzle / 2;
    for (int k = 0; k < K; k++)
      for (int r = 0; r < size; r += 8) {
        piece(k % 8 * d.swizzle + k / 8 * d.stride + r % wide * 2 + r / wide * d.leading, eight);
        memcpy(out + k * pitch + r, eight, sizeof eight);
      }
  } else {  // k is contiguous
    for (int r = 0; r < size; r++)
      for (int k = 0; k < K; k += 8) {
        piece(r % 8 * d.swizzle + r / 8 * d.stride + 2 * k, eight);
        for (int i = 0; i < 8; i++) out[(k + i) * pitch + r] = eight[i];
      }
  }
}

static void fetch_registers(const Operation &op, float *out) {
  for (int thread = 0; thread < GROUP; thread++)
    for (int i = 0; i < 4; i++) {
      char bytes[16] = {};
      float eight[8];
      memcpy(bytes, op.a[thread][i], 4);
      widen(bytes, eight, op.what.fp16);
      const int row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i % 2);
      const int k = thread % 4 * 2 + 8 * (i / 2);
      out[k * M + row] = eight[0];
      out[(k + 1) * M + row] = eight[1];
    }
}

static void compute(Block &block, Operation &op) {
  static float a[K * M], b[K * 256];
  const Multiply &what = op.what;
  columns_multiplied += what.n;
  if (what.a_in_registers)
    fetch_registers(op, a);
  else
    fetch(block, what.a, M, what.a_transposed, what.fp16, a, M);
  fetch(block, what.b, what.n, what.b_transposed, what.fp16, b, 256);
  for (int m = 0; m < M; m++) {
    float *sum = op.chain->sum[m];
    if (!what.accumulate) memset(sum, 0, sizeof(float) * what.n);
    for (int k = 0; k < K; k++) {
      const float left = a[k * M + m];
      const float *right = b + 256 * k;
      for (int n = 0; n < what.n; n++) sum[n] += left * right[n];
    }
  }
}

static void compute_next(Block &block, Group &group) {
  compute(block, group.waiting.front());
  group.waiting.pop_front();
  group.computed++;
}

// --- instructions --------------------------------------------------------------------------------

static Group &group_of(Thread &t) { return t.block->groups[t.number / GROUP]; }

void wgmma_fence() { self->fenced = true; }

static std::shared_ptr<Chain> chain_for(Thread &t, const Multiply &what, float *d) {
  for (auto &chain : t.chains)
    if (chain->at[t.number % GROUP] == d) {
      if (chain->n != what.n) fail("accumulators of two sizes, %d and %d", chain->n, what.n);
      return chain;
    }
  return nullptr;
}

void wgmma_issue(const Multiply &what, float *d, const uint32_t *const *a) {
  Thread &t = *self;
  Group &group = group_of(t);
  const int thread = t.number % GROUP;
  if (!t.fenced) fail("wgmma with no wgmma.fence since its registers were last free");
  const size_t place = t.issued++ - group.computed;
  std::shared_ptr<Chain> known = chain_for(t, what, d);
  if (place == group.waiting.size()) {
    group.waiting.emplace_back();
    group.waiting.back().what = what;
    group.waiting.back().chain = known;
    if (!known) {
      group.waiting.back().chain = std::make_shared<Chain>();
      group.waiting.back().chain->n = what.n;
    }
  }
  Operation &op = group.waiting[place];
  if (!(op.what == what)) fail("the threads of a warpgroup issue different wgmmas");
  if (known && known != op.chain) fail("the threads of a warpgroup use different accumulators");
  if (!known) {
    take(*op.chain, thread, d);
    t.chains.push_back(op.chain);
  }
  op.chain->last[thread] = t.issued;
  if (a) std::copy(a, a + 4, op.a[thread]);
  op.issued++;
  if (mode.late) return;
  while (!group.waiting.empty() && group.waiting.front().issued == GROUP)
    compute_next(*t.block, group);
}

void wgmma_commit() { self->groups.push_back(self->issued); }

void wgmma_wait(int pending) {
  may_switch();
  Thread &t = *self;
  Group &group = group_of(t);
  size_t needed = 0;
  while (t.groups.size() > static_cast<size_t>(pending)) {
    needed = t.groups.front();
    t.groups.pop_front();
  }
  while (group.computed < needed) {
    const auto ready = [&] {
      return group.computed >= needed || group.waiting.front().issued == GROUP;
    };
    wait_until(ready, [&] {
      return text("a wgmma that %d threads of the warpgroup have issued", group.waiting.front().issued);
    });
    if (group.computed < needed) compute_next(*t.block, group);
  }
  const int thread = t.number % GROUP;
  const auto arrived = [&](const std::shared_ptr<Chain> &chain) {
    const bool here = chain->last[thread] <= needed;
    if (here) give_back(*chain, thread);
    return here;
  };
  if (std::erase_if(t.chains, arrived)) t.fenced = false;
}

}  // namespace machine
