// The forward's tiles and its shared memory.
// Included by the kernel, whose constants it reads.
#ifndef FAGEN_LAYOUT_FWD_SM90_H
#define FAGEN_LAYOUT_FWD_SM90_H

#include <stddef.h>

#include "device/barrier_sm90.h"
#include "device/sequence.h"
#include "device/tiles_sm90.h"
#include "device/wgmma_sm90.h"

constexpr int QK_DIM = round_up(HEAD_DIM, 16);  // TMA fills the rest with zeros
constexpr int V_DIM = round_up(HEAD_DIM_V, 16);
constexpr int BLOCK_M = 64 * WARPGROUPS;
constexpr int THREADS = 128 * (WARPGROUPS + 1);
using QTile = Panels<64, QK_DIM>;  // of one warpgroup
using KTile = Panels<BLOCK_N, QK_DIM>;
using VTile = Panels<BLOCK_N, V_DIM>;
using OTile = Panels<64, V_DIM>;
static_assert(!PING_PONG || WARPGROUPS > 1);
constexpr int HALF_BLOCK = HALF_BLOCKS ? round_up(BLOCK_N / 2, 16) : BLOCK_N;  // keys
constexpr int HALF = -1;  // see Consumer::accumulate
constexpr bool CROSS_TILE = SCHEDULE != Schedule::grid && SEAM != Seam::apart;
static_assert(SEAM != Seam::early || Q_BUFFERS == 2);

// Where every row keeps one run of keys, consumers count the blocks of a tile themselves. Else, and
// with packed sequences, the producer lists them.
template <class P>
concept RunsOfKeys = IntervalPattern<P> && !VARLEN;

// Registers per thread: the launch gives every warpgroup the same, the consumers need most.
constexpr int LAUNCH_REGISTERS = 65536 / (THREADS * CTAS_PER_SM) / 8 * 8;
constexpr int PRODUCER_REGISTERS =
    RunsOfKeys<Pattern> ? (WARPGROUPS > 2 ? 32 : 40) : 56;
constexpr int LEFT_REGISTERS =
    (LAUNCH_REGISTERS * (WARPGROUPS + 1) - PRODUCER_REGISTERS) / WARPGROUPS / 8 * 8;
constexpr int CONSUMER_REGISTERS = LEFT_REGISTERS < 256 ? LEFT_REGISTERS : 256;

constexpr int NOTES = 8;  // a power of two, above the number of tiles in flight
constexpr bool REDO = SOFTMAX == Softmax::anchored;

// What the producer tells the consumers of a tile. `rows` has a bit for each warpgroup that must
// compute, and CAREFUL when it must do so without the anchored softmax; STOP ends the stream.
struct alignas(16) Note {
  int block, head, batch, rows;
};
constexpr int ALL_ROWS = (1 << WARPGROUPS) - 1, CAREFUL = 1 << WARPGROUPS, STOP = -1;
constexpr int KEYLESS = 2 << WARPGROUPS;  // there is no block of keys to come (see Visit)

// What a warpgroup does with a block of keys. One that is free may use the anchored softmax.
enum Kind { SKIP, PARTIAL, CLEAN, FREE };

// A block of keys, a Kind for each warpgroup, and whether the tile ends with it, in one word.
struct Visit {
  uint32_t bits;

  FAGEN_DEVICE int block() const { return bits >> 9; }
  FAGEN_DEVICE bool last() const { return bits >> 8 & 1; }
  FAGEN_DEVICE int kind(int group) const { return bits >> 2 * group & 3; }
};

// Key blocks of a tile.
struct alignas(16) Keys {
  int head, batch, begin, end;
};

constexpr int CONTROL_BYTES = 512;
struct Control {
  Note note[NOTES];
  int overflowed[NOTES];  // a bit for each warpgroup whose anchored softmax left the range
  int checked;            // tiles whose overflow was looked at; here because registers are dear
  uint64_t q_full[Q_BUFFERS][WARPGROUPS], q_empty[Q_BUFFERS][WARPGROUPS];
  uint64_t k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
  // Where the producer lists blocks:
  Visit visit[STAGES];  // of the block in each K stage
  unsigned index;       // of the next tile
  uint64_t v_landed;    // V is here, but must be cut at the sequence's end
  Keys rest;            // SEAM early: what is still to be loaded of the tile before
};
static_assert(sizeof(Control) <= CONTROL_BYTES);

// Each array starts where a swizzle pattern may: the tiles in it keep to that by themselves.
constexpr int PATTERN_BYTES = 1024;
constexpr int Q_AT = 0;
constexpr int K_AT = round_up(Q_AT + Q_BUFFERS * WARPGROUPS * QTile::bytes, PATTERN_BYTES);
constexpr int V_AT = round_up(K_AT + STAGES * KTile::bytes, PATTERN_BYTES);
constexpr int O_AT = round_up(V_AT + STAGES * VTile::bytes, PATTERN_BYTES);
constexpr int CONTROL_AT = O_AT + (EPILOGUE == Epilogue::staged ? WARPGROUPS * OTile::bytes : 0);

constexpr int SHARED_BYTES = CONTROL_AT + CONTROL_BYTES;

extern __shared__ __align__(1024) char shared_memory[];

struct Shared {
  const uint32_t base = shared_address(shared_memory);

  FAGEN_DEVICE Control &control() const {
    return *reinterpret_cast<Control *>(shared_memory + CONTROL_AT);
  }
  FAGEN_DEVICE uint32_t q(int buffer, int group) const {
    return base + Q_AT + (buffer * WARPGROUPS + group) * QTile::bytes;
  }
  FAGEN_DEVICE uint32_t k(int stage) const { return base + K_AT + stage * KTile::bytes; }
  FAGEN_DEVICE uint32_t v(int stage) const { return base + V_AT + stage * VTile::bytes; }
  FAGEN_DEVICE uint32_t o(int group) const { return base + O_AT + group * OTile::bytes; }

  FAGEN_DEVICE uint32_t q_full(int buffer, int group) const {
    return barrier(offsetof(Control, q_full), buffer * WARPGROUPS + group);
  }
  FAGEN_DEVICE uint32_t q_empty(int buffer, int group) const {
    return barrier(offsetof(Control, q_empty), buffer * WARPGROUPS + group);
  }
  FAGEN_DEVICE uint32_t k_full(int stage) const { return barrier(offsetof(Control, k_full), stage); }
  FAGEN_DEVICE uint32_t k_empty(int stage) const {
    return barrier(offsetof(Control, k_empty), stage);
  }
  FAGEN_DEVICE uint32_t v_full(int stage) const { return barrier(offsetof(Control, v_full), stage); }
  FAGEN_DEVICE uint32_t v_empty(int stage) const {
    return barrier(offsetof(Control, v_empty), stage);
  }

  FAGEN_DEVICE uint32_t v_landed() const { return barrier(offsetof(Control, v_landed), 0); }

  FAGEN_DEVICE uint32_t barrier(int array, int i) const {
    return base + CONTROL_AT + array + 8 * i;
  }

  FAGEN_DEVICE void init() const {
    for (int i = 0; i < Q_BUFFERS * WARPGROUPS; i++) {
      barrier_init(q_full(0, i), 1);
      barrier_init(q_empty(0, i), 4);  // one arrival per warp
    }
    for (int i = 0; i < STAGES; i++) {
      barrier_init(k_full(i), 1);
      barrier_init(v_full(i), 1);
      barrier_init(k_empty(i), WARPGROUPS);
      barrier_init(v_empty(i), WARPGROUPS);
    }
    if constexpr (VARLEN) barrier_init(v_landed(), 1);
    barrier_init_fence();
    control().checked = 0;
  }
};

#endif
