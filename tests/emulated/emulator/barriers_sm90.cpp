// What threads of a block do together: warp operations, barriers, shared memory, registers.
#include "inside_sm90.h"

#include <algorithm>

namespace machine {

const char *meet(const char *what, const void *data, int bytes) {
  Thread &t = *self;
  Warp &warp = t.block->warps[t.number / WARP];
  const unsigned parity = t.meetings++ & 1;
  t.polled = nullptr;
  Meeting &m = warp.meetings[parity];
  if (m.arrived == 0) m.what = what;
  if (strcmp(m.what, what)) fail("lanes of a warp have parted: %s here, %s there", what, m.what);
  if (bytes) memcpy(m.data[t.number % WARP], data, bytes);
  // Whoever is here has left the meeting before.
  if (++m.arrived == WARP) warp.meetings[parity ^ 1].arrived = 0;
  wait_until([&] { return m.arrived == WARP; },
             [&] { return text("the other lanes at %s: %d are here", what, m.arrived); });
  return m.data[0];
}

uint32_t load_acquire(const void *p) {
  Thread &t = *self;
  const auto now = [p] { return *static_cast<const volatile uint32_t *>(p); };
  if (t.polled == p && t.polled_value == now())
    wait_until([&] { return now() != t.polled_value; },
               [&] { return text("the word at %p, which is %u, to change", p, t.polled_value); });
  t.polled = p;
  return t.polled_value = now();
}

void bar(int id, int threads, bool waits) {
  may_switch();
  if (id < 0 || id > 15 || threads % WARP || threads <= 0)
    fail("named barrier %d for %d threads", id, threads);
  NamedBarrier &b = self->block->named[id];
  if (b.arrived == 0) b.threads = threads;
  if (b.threads != threads)
    fail("named barrier %d is for %d threads here, for %d there", id, threads, b.threads);
  const unsigned generation = b.generation;
  if (++b.arrived == b.threads) b.arrived = 0, b.generation++;
  if (waits)
    wait_until([&] { return b.generation != generation; }, [&] {
      return text("named barrier %d: %d of %d threads are there", id, b.arrived, b.threads);
    });
}

void set_registers(int count, bool more) {
  Thread &t = *self;
  Block &block = *t.block;
  if (count % 8 || count < 24 || count > 256 || (more ? count < t.registers : count > t.registers))
    fail("setmaxnreg %s to %d registers from %d", more ? "up" : "down", count, t.registers);
  const int wanted = count - t.registers;
  if (more)
    wait_until([&] { return block.free_registers >= wanted; }, [&] {
      return text("%d more registers; %d are free", wanted, block.free_registers);
    });
  block.free_registers -= wanted;
  t.registers = count;
}

void launch_dependents() {
  Block &block = *self->block;
  if (!block.let_next_launch_start) block.launch->let_next++;
  block.let_next_launch_start = true;
  let_others_run();  // the next launch is one of them
}

void wait_for_launch_before() {
  Running *before = self->block->launch->before;
  self->block->waited_for_launch_before = true;
  wait_until([&] { return !before || (before->complete() && before->unfinished.empty()); },
             [&] { return text("the launch of %s to end", before->what.kernel->name); });
}

// --- shared memory and its barriers --------------------------------------------------------------

char *dynamic_shared() { return self->block->memory + SHARED_BASE; }

uint32_t shared_address(const void *p) {
  const ptrdiff_t at = static_cast<const char *>(p) - self->block->memory;
  if (at < 0 || at >= SHARED_END) fail("the address of something outside of shared memory");
  return static_cast<uint32_t>(at);
}

char *shared_of(Block &block, uint32_t address, int bytes) {
  const uint32_t end = SHARED_BASE + block.launch->what.shared_bytes;
  if (address % std::min(bytes, 16) || address < SHARED_BASE || address + bytes > end)
    fail("%d bytes at %u in shared memory, which has %u..%u", bytes, address, SHARED_BASE, end);
  return block.memory + address;
}
char *shared_at(uint32_t address, int bytes) { return shared_of(*self->block, address, bytes); }

void wrote_shared(uint32_t address, int bytes) {
  for (uint32_t at = address / 16; at < (address + bytes + 15) / 16; at++) {
    self->block->writer[at] = static_cast<uint16_t>(self->number + 1);
    self->written.push_back(at);
  }
}

void fence_async() {
  for (const uint32_t at : self->written)
    if (self->block->writer[at] == self->number + 1) self->block->writer[at] = 0;
  self->written.clear();
}

// What it must not read yet, it reads as NaN: that may be of no use, and then no harm is done.
bool async_may_read(Block &block, uint32_t address, const char *who) {
  const int writer = block.writer[address / 16];
  if (writer && remark.empty())
    remark = text("%s read %u in shared memory, which thread %d wrote with no proxy fence since", who,
                  address, writer - 1);
  return !writer;
}

void *static_storage(int id, int bytes) {
  auto &storage = self->block->statics[id];
  if (storage.empty()) storage.assign(bytes + 16, '\xff');
  return storage.data() + (-reinterpret_cast<uintptr_t>(storage.data()) & 15);
}

static Barrier &barrier_at(Block &block, uint32_t address) {
  const auto found = block.barriers.find(address);
  if (found == block.barriers.end()) fail("no barrier was made at %u in shared memory", address);
  return found->second;
}

static std::string name_of(const Block &block, uint32_t address) {
  const int at = address - SHARED_BASE;
  for (const Name *name = block.launch->what.kernel->names; name->text; name++)
    if (at >= name->at && at < name->at + 8 * name->count)
      return text("%s[%d]", name->text, (at - name->at) / 8);
  return text("the barrier at byte %d", at);
}

static void settle(Barrier &b) {
  if (b.pending < 0) fail("more arrivals at a barrier than its %d", b.count);
  if (b.pending == 0 && b.bytes == 0) b.pending = b.count, b.phase++;
}

void barrier_init(uint32_t at, int arrivals) {
  shared_at(at, 8);
  if (!self->block->barriers.insert({at, Barrier{arrivals, arrivals}}).second)
    fail("two barriers at %u in shared memory", at);
}

void barrier_arrive(uint32_t at, int64_t expected_bytes) {
  if (expected_bytes < 0 || expected_bytes >= 1 << 20)
    fail("a barrier that expects %lld bytes", static_cast<long long>(expected_bytes));
  Barrier &b = barrier_at(*self->block, at);
  self->arrived = true;
  b.bytes += expected_bytes;
  b.pending--;
  settle(b);
}

void barrier_wait(uint32_t at, uint32_t parity) {
  may_switch();
  const Block *self_block = self->block;
  Barrier &b = barrier_at(*self->block, at);
  wait_until([&] { return (b.phase & 1) != parity; }, [&] {
    return text("%s to end a phase of parity %u: it is in phase %u, %d of %d arrivals and %lld bytes "
                "are to come",
                name_of(*self_block, at).c_str(), parity, b.phase, b.pending, b.count,
                static_cast<long long>(b.bytes));
  });
}

void deliver(Block &block, uint32_t barrier, int bytes) {
  Barrier &b = barrier_at(block, barrier);
  b.bytes -= bytes;
  settle(b);
}

}  // namespace machine
