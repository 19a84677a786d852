// Fibers and their scheduling.
#include "inside_sm90.h"

#include <algorithm>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

namespace machine {

Index threadIdx, blockIdx, gridDim, blockDim;
Thread *self;
Mode mode;
std::mt19937 dice;
std::deque<std::function<void()>> arriving;

static jmp_buf scheduler, ending;
static unsigned round_number;
std::string remark;
long columns_multiplied;
static std::string trouble;
static std::vector<std::unique_ptr<Running>> launches;

static std::string filled(const char *format, va_list arguments) {
  va_list again;
  va_copy(again, arguments);
  std::string line(vsnprintf(nullptr, 0, format, again), ' ');
  va_end(again);
  vsnprintf(line.data(), line.size() + 1, format, arguments);
  return line;
}

std::string text(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const std::string line = filled(format, arguments);
  va_end(arguments);
  return line;
}

std::string place(const Thread &t) {
  const Index &b = t.block->index;
  return text("%s, block (%u, %u, %u), warp %d, lane %d", t.block->launch->what.kernel->name, b.x, b.y,
              b.z, t.number / WARP, t.number % WARP);
}

void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  trouble = filled(format, arguments);
  va_end(arguments);
  if (self) trouble += " [" + place(*self) + "]";
  if (!remark.empty()) trouble += "; before that, " + remark;
  longjmp(ending, 1);
}

// --- fibers --------------------------------------------------------------------------------------

constexpr size_t STACK = 256 * 1024;
static std::vector<char *> spare_stacks, spare_memories;

static char *pages(std::vector<char *> &spare, size_t size) {
  if (!spare.empty()) {
    char *p = spare.back();
    spare.pop_back();
    return p;
  }
  void *p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                 -1, 0);
  if (p == MAP_FAILED) fail("no memory");
  return static_cast<char *>(p);
}

static void fiber() {
  self->block->launch->what.kernel->body();
  check_end(*self);
  self->done = true;
  longjmp(scheduler, 1);
}

void suspend(Wait &wait) {
  Thread *me = self;
  me->wait = &wait;
  if (!_setjmp(me->at)) longjmp(scheduler, 1);
  me->wait = nullptr;
}

static uint64_t hash(int64_t what) {
  uint64_t x = (what << 20) + mode.seed * 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

void let_others_run() {
  unsigned now = round_number;
  Wait wait{[](void *then) { return *static_cast<unsigned *>(then) != round_number; },
            [](void *) { return std::string("the next round"); }, &now};
  suspend(wait);
}

// The same for all lanes of a warp, which hardware keeps together.
void may_switch() {
  if (!mode.seed) return;
  if (hash(self->number / WARP * 100000 + self->switches++) % 4) return;
  let_others_run();
}

static void resume(Thread &thread) {
  self = &thread;
  threadIdx = thread.index;
  blockIdx = thread.block->index;
  const Launch &what = thread.block->launch->what;
  gridDim = {what.grid[0], what.grid[1], what.grid[2]};
  blockDim = {static_cast<unsigned>(what.threads), 1, 1};
  if (!_setjmp(scheduler)) {
    if (thread.started) longjmp(thread.at, 1);
    thread.started = true;
    setcontext(&thread.context);
  }
  self = nullptr;
}

// --- blocks --------------------------------------------------------------------------------------

static std::unique_ptr<Block> new_block(Running &launch, unsigned number) {
  const Launch &what = launch.what;
  auto block = std::make_unique<Block>();
  block->launch = &launch;
  block->index = {number % what.grid[0], number / what.grid[0] % what.grid[1],
                  number / what.grid[0] / what.grid[1]};
  block->memory = pages(spare_memories, SHARED_END);
  memset(block->memory, 0xff, SHARED_END);  // NaN, in every type
  block->writer.assign(SHARED_END / 16, 0);
  block->threads = std::vector<Thread>(what.threads);
  block->warps.resize((what.threads + WARP - 1) / WARP);
  block->groups.resize((what.threads + GROUP - 1) / GROUP);
  block->left = what.threads;
  for (int i = 0; i < what.threads; i++) {
    Thread &t = block->threads[i];
    t.block = block.get();
    t.number = i;
    t.index = {static_cast<unsigned>(i), 0, 0};
    t.registers = what.kernel->launch_registers;
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = pages(spare_stacks, STACK);
    t.context.uc_stack.ss_size = STACK;
    t.context.uc_link = nullptr;
    makecontext(&t.context, fiber, 0);
  }
  return block;
}

static void end_block(Running &launch, Block &block) {
  const char *name = launch.what.kernel->name;
  if (block.loading) fail("a block of %s ends before what it loads has arrived", name);
  // Else the launch could end, and what waits for it start, with the one before still running.
  if (launch.before && launch.what.overlap && !block.waited_for_launch_before)
    fail("a block of %s never waits for the launch before", name);
  for (int i = SHARED_BASE + launch.what.shared_bytes; i < SHARED_END; i++)
    if (block.memory[i] != '\xff')
      fail("%s wrote byte %d of its %d bytes of shared memory", name, i - SHARED_BASE,
           launch.what.shared_bytes);
  for (Thread &t : block.threads) spare_stacks.push_back(static_cast<char *>(t.context.uc_stack.ss_sp));
  spare_memories.push_back(block.memory);
  launch.ended++;
  launch.let_next += !block.let_next_launch_start;
}

static bool may_start(const Running &launch) {
  if (!launch.before) return true;
  return launch.what.overlap ? launch.before->let_next == launch.before->total()
                             : launch.before->complete();
}

static void finish(Running &launch) {
  for (Copy &copy : launch.unfinished) write_copy(copy);
  launch.unfinished.clear();
}

// --- scheduling ----------------------------------------------------------------------------------

static bool can_go_on(const Thread &t) {
  return !t.done && (!t.wait || t.wait->ready(t.wait->data));
}

// A lane's arrival at an mbarrier says nothing of the other lanes: others run before they do.
static bool run_warp(Block &block, int warp) {
  bool ran = false, again = true;
  while (again) {
    again = false;
    const int end = std::min<int>((warp + 1) * WARP, block.threads.size());
    for (int i = warp * WARP; i < end; i++) {
      Thread &t = block.threads[i];
      if (!can_go_on(t)) continue;
      resume(t);
      ran = again = true;
      if (t.done) block.left--;
      if (std::exchange(t.arrived, false)) return true;
    }
  }
  return ran;
}

// In a random order some warps, warpgroups and launches are slower than the rest all along.
static unsigned pace(const Block &block, int warp) {
  const int64_t launch = 1000 * block.launch->what.grid[0] + block.launch->what.threads;
  const bool slow = !(hash(warp) % 8) || !(hash(100 + warp / 4) % 4) || !(hash(launch) % 4);
  return !slow ? 2 : hash(10) % 2 ? 20 : 1000;
}

static bool run_round() {
  std::vector<std::pair<Block *, int>> warps;
  round_number++;
  for (auto &launch : launches) {
    if (!may_start(*launch)) break;
    const size_t room = mode.residents * (launch->what.shared_bytes ? 1 : 4);
    while (launch->blocks.size() < room && launch->started < launch->total())
      launch->blocks.push_back(new_block(*launch, launch->started++));
    for (auto &block : launch->blocks)
      for (size_t w = 0; w < block->warps.size(); w++) warps.push_back({block.get(), int(w)});
  }
  if (mode.seed) {
    std::shuffle(warps.begin(), warps.end(), dice);
  } else if (!mode.late) {  // what was launched last comes first
    std::reverse(warps.begin(), warps.end());
  }
  bool ran = false;
  for (auto [block, warp] : warps) {
    if (mode.seed && ran && dice() % pace(*block, warp)) continue;
    ran |= run_warp(*block, warp);
  }
  for (auto &launch : launches) {
    for (auto &block : launch->blocks)
      if (block->left == 0) {
        end_block(*launch, *block);
        block.reset();
        ran = true;
      }
    std::erase(launch->blocks, nullptr);
    if (launch->complete()) finish(*launch);
  }
  return ran;
}

static std::string deadlock() {
  std::string all = "deadlock: nothing can go on";
  for (auto &launch : launches)
    for (auto &block : launch->blocks) {
      std::string last;
      for (Thread &t : block->threads) {
        if (t.done || !t.wait) continue;
        const std::string why = t.wait->says(t.wait->data) + text(" (warp %d)", t.number / WARP);
        if (why != last) all += "\n  " + place(t) + " waits for " + why;
        last = why;
      }
    }
  return all;
}

static void run_all() {
  const auto complete = [] {
    return std::all_of(launches.begin(), launches.end(), [](auto &l) { return l->complete(); });
  };
  while (!complete()) {
    if (mode.seed && !arriving.empty() && dice() % 4 == 0) {
      std::swap(arriving.front(), arriving[dice() % arriving.size()]);
      arriving.front()();
      arriving.pop_front();
    }
    if (run_round()) continue;
    if (arriving.empty()) fail("%s", deadlock().c_str());
    arriving.front()();
    arriving.pop_front();
  }
}

static void forget() {
  for (auto &launch : launches)
    for (auto &block : launch->blocks) {
      for (Thread &t : block->threads)
        spare_stacks.push_back(static_cast<char *>(t.context.uc_stack.ss_sp));
      spare_memories.push_back(block->memory);
    }
  launches.clear();
  arriving.clear();
  // A process loads hundreds of emulated kernels: each gives back what it does not use.
  for (char *stack : spare_stacks) munmap(stack, STACK);
  for (char *memory : spare_memories) munmap(memory, SHARED_END);
  spare_stacks.clear();
  spare_memories.clear();
}

}  // namespace machine

// Null when all went well, else what did not.
extern "C" const char *emulate(const machine::Launch *steps, int count, const machine::Mode *how) {
  using namespace machine;
  mode = *how;
  dice.seed(mode.seed);
  trouble.clear();
  remark.clear();
  columns_multiplied = 0;
  if (!setjmp(ending)) {
    for (int i = 0; i < count; i++) {
      launches.push_back(std::make_unique<Running>());
      launches.back()->what = steps[i];
      launches.back()->before = i ? launches[i - 1].get() : nullptr;
    }
    run_all();
  }
  self = nullptr;
  forget();
  return trouble.empty() ? nullptr : trouble.c_str();
}

extern "C" long columns_multiplied_in_run() { return machine::columns_multiplied; }
// What did no harm by itself, but explains a NaN; empty when there is nothing to say.
extern "C" const char *remark_on_run() { return machine::remark.c_str(); }
