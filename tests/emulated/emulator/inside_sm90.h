// What the parts of the machine share: threads, blocks, launches.
#pragma once
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "machine_sm90.h"

namespace machine {

constexpr int WARP = 32, GROUP = 128;
constexpr int SHARED_END = 228 * 1024;  // of the addresses that a block may use

// Why a thread does not go on.
struct Wait {
  bool (*ready)(void *);
  std::string (*says)(void *);
  void *data;
};

struct Chain;  // accumulators in flight
struct Copy {  // a bulk store or reduction
  enum { BOX, STORE, REDUCE } kind;
  Map map;
  int at[4];
  float *to;
  uint32_t from;
  int bytes;
  std::vector<char> read;  // what it found in shared memory; empty: has not looked yet
  bool written;
};

struct Block;
struct Thread {
  Block *block;
  int number;
  Index index;
  ucontext_t context;
  jmp_buf at;
  bool started = false, done = false;
  bool arrived = false;  // at an mbarrier, and the lanes that follow have not run since
  Wait *wait = nullptr;
  unsigned meetings = 0, switches = 0;
  int registers = 0;
  const void *polled = nullptr;
  uint32_t polled_value = 0;
  std::vector<uint32_t> written;  // in 16 bytes, and not fenced since
  // wgmma: how many multiplies were issued, and at the end of each open group
  size_t issued = 0;
  std::deque<size_t> groups;
  std::vector<std::shared_ptr<Chain>> chains;  // whose results have not arrived yet
  bool fenced = false;
  // bulk copies: the last group is open
  std::vector<std::vector<Copy>> copies{1};
};

struct Meeting {
  int arrived = 0;
  const char *what = nullptr;
  alignas(8) char data[WARP][32];
};

struct Warp {
  Meeting meetings[2];
};

struct Barrier {
  int count, pending;
  int64_t bytes = 0;
  uint32_t phase = 0;
};

struct NamedBarrier {
  int threads = 0, arrived = 0;
  unsigned generation = 0;
};

// One wgmma of a warpgroup. Each of its threads issues it in its own time.
struct Operation {
  Multiply what;
  int issued = 0;
  std::shared_ptr<Chain> chain;
  const uint32_t *a[GROUP][4];
};

struct Group {
  std::deque<Operation> waiting;  // not computed yet
  size_t computed = 0;
};

struct Running;  // a launch
struct Block {
  Running *launch;
  Index index;
  char *memory;                  // of SHARED_END bytes; addresses are offsets
  std::vector<uint16_t> writer;  // of 16 bytes: the thread that wrote and has not fenced, plus 1
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Group> groups;
  std::unordered_map<uint32_t, Barrier> barriers;
  NamedBarrier named[16];
  std::unordered_map<int, std::vector<char>> statics;
  int free_registers = 0;
  int left;         // threads that have not ended
  int loading = 0;  // copies to its shared memory that have not arrived
  bool let_next_launch_start = false, waited_for_launch_before = false;
};

struct Running {
  Launch what;
  Running *before;
  unsigned started = 0, ended = 0, let_next = 0;
  std::vector<std::unique_ptr<Block>> blocks;  // resident ones
  std::vector<Copy> unfinished;                // stores that nobody waits for
  unsigned total() const { return what.grid[0] * what.grid[1] * what.grid[2]; }
  bool complete() const { return ended == total(); }
};

extern Thread *self;
extern Mode mode;
extern std::mt19937 dice;
extern long columns_multiplied;  // by 64 x N x 16 multiplies, all N together
extern std::string remark;  // what did no harm by itself, but explains a NaN

std::string text(const char *format, ...) __attribute__((format(printf, 1, 2)));
std::string place(const Thread &thread);
void suspend(Wait &wait);
void let_others_run();

template <class Ready, class Says>
void wait_until(Ready ready, Says says) {
  if (ready()) return;
  struct Both {
    Ready *ready;
    Says *says;
  } both{&ready, &says};
  Wait wait{[](void *p) { return (*static_cast<Both *>(p)->ready)(); },
            [](void *p) { return (*static_cast<Both *>(p)->says)(); }, &both};
  suspend(wait);
}

// A loading of shared memory that is under way; it may arrive at any time.
extern std::deque<std::function<void()>> arriving;

void deliver(Block &block, uint32_t barrier, int bytes);
char *shared_of(Block &block, uint32_t address, int bytes);
bool async_may_read(Block &block, uint32_t address, const char *who);  // 16 bytes
void write_copy(Copy &copy);
void check_end(Thread &thread);
uint32_t swizzled(uint32_t address, int swizzle);

}  // namespace machine
