// Where everything of the sm90 backward lies: tiles, stages and barriers in shared memory, the warps'
// roles and their registers. All of it follows from the problem and the knobs.
#ifndef FAGEN_LAYOUT_BWD_SM90_H
#define FAGEN_LAYOUT_BWD_SM90_H

#include "device/tma_sm90.h"
#include "device/wgmma_sm90.h"

// Head dims as the multiplies see them; TMA fills the columns past the tensor with zeros.
constexpr int D = round_up(HEAD_DIM, 16), DV = round_up(HEAD_DIM_V, 16);
constexpr bool SPLIT = ROLES == Roles::split, OWN_DQ = DQ == Dq::own;
constexpr bool RESIDENT = SCHEDULE == Schedule::dynamic;  // a CTA takes key blocks until none is left
static_assert(RESIDENT || STAGES_KV == 1, "a CTA with one key block has one place for it");
constexpr int BLOCK_N = SPLIT ? 64 : 128;
static_assert(!SPLIT || OWN_DQ, "split roles leave dQ to a warpgroup of its own");
static_assert(BLOCK_M % 16 == 0, "16 queries are one step of the dK and dV multiplies");

using QTile = Panels<BLOCK_M, D>;
using DoTile = Panels<BLOCK_M, DV>;
using KTile = Panels<BLOCK_N, D>;
using VTile = Panels<BLOCK_N, DV>;
using DsTile = Panels<BLOCK_M, BLOCK_N>;

// Warpgroup 0 loads (and, without a dQ warpgroup, its spare warps send dQ off). Then the dQ
// warpgroup if there is one, then the consumers.
constexpr int CONSUMERS = 2;
constexpr int FIRST_CONSUMER = OWN_DQ ? 2 : 1;
constexpr int THREADS = 128 * (FIRST_CONSUMER + CONSUMERS);

#include "device/registers_bwd_sm90.h"
static_assert(PRODUCER_REGISTERS + (OWN_DQ ? DQ_REGISTERS : 0) + CONSUMERS * CONSUMER_REGISTERS <=
                  (FIRST_CONSUMER + CONSUMERS) * (65536 / THREADS / 8 * 8),
              "setmaxnreg would wait for registers that the launch does not bring");

// Do all roles count along one run of query tiles? Not where heads differ. Runs that are data may
// have gaps, which a tile of queries and a block of keys see differently: turns need one view.
template <class P>
concept OneRun = IntervalPattern<P> && !HeadPattern<P> && !(DETERMINISTIC && DataPattern<P>);
constexpr bool NOTED = !OneRun<Pattern>;

// Turns: the key block that sees a query tile first, under a causal mask the last one, goes first.
constexpr bool FALLING = DETERMINISTIC && !NOTED;
// Counts: key blocks begin with the queries opposite to them, so that each finds other tiles untouched
// and other tiles complete, and has its share of the work that this is.
constexpr bool COUNTED = SUMS == Sums::counted;
constexpr bool STAGGERED = COUNTED && !DETERMINISTIC;
static_assert(!COUNTED || OWN_DQ, "a warpgroup that makes all of dQ has the time to count");

// How dQ, BLOCK_M x D, is cut. A piece is one accumulator, 64 rows by DQ_COLUMNS; with lockstep and
// delayed each consumer makes one, its own dQ warpgroup makes them all. Transposed pieces hold
// 64 dims by queries, for block_m that is not a multiple of 64.
enum class DqCut { rows, columns, dims, dims_and_rows };
constexpr DqCut DQ_CUT = OWN_DQ || BLOCK_M == 64 * CONSUMERS              ? DqCut::rows
                         : BLOCK_M == 64 && KTile::count % CONSUMERS == 0 ? DqCut::columns
                         : D == 64 * CONSUMERS                            ? DqCut::dims
                                                                          : DqCut::dims_and_rows;
static_assert(!OWN_DQ || BLOCK_M % 64 == 0, "the dQ warpgroup multiplies 64 queries at a time");
static_assert(DQ_CUT != DqCut::dims_and_rows || (D == 64 && BLOCK_M % (8 * CONSUMERS) == 0),
              "dQ cannot be cut among the consumers");
constexpr bool DQ_TRANSPOSED = DQ_CUT == DqCut::dims || DQ_CUT == DqCut::dims_and_rows;
constexpr int DQ_PIECE_COLUMNS = OWN_DQ                    ? (DQ_COLUMNS < D ? DQ_COLUMNS : D)
                                 : DQ_CUT == DqCut::rows    ? D
                                 : DQ_CUT == DqCut::columns ? D / CONSUMERS
                                 : DQ_CUT == DqCut::dims    ? BLOCK_M
                                                            : BLOCK_M / CONSUMERS;
constexpr int DQ_PIECE_BYTES = 64 * DQ_PIECE_COLUMNS * 4;
constexpr int DQ_TILE_FLOATS = BLOCK_M * D;
constexpr int DQ_BUFFERS = OWN_DQ ? STAGES_DQ : CONSUMERS;
constexpr int DQ_SENDERS = OWN_DQ ? 1 : CONSUMERS;  // each keeps its own turn per query tile

// --- shared memory, in bytes from its start -----------------------------------------------------
constexpr int aligned(int bytes) { return round_up(bytes, 1024); }
constexpr int Q_BYTES = aligned(QTile::bytes), DO_BYTES = aligned(DoTile::bytes);
constexpr int ROW_BYTES = 4 * BLOCK_M;           // one float per query: log-sum-exp, delta
constexpr int STAGES_P = SPLIT ? 2 : 0;          // P on its way to the warpgroup that makes dS
constexpr int P_BYTES = 64 * BLOCK_M * 2;

constexpr int AT_K = 0;
constexpr int AT_V = AT_K + aligned(KTile::bytes);
constexpr int KEYS_BYTES = AT_V + aligned(VTile::bytes);  // K and V of a key block
constexpr int AT_Q = STAGES_KV * KEYS_BYTES;
constexpr int AT_DO = AT_Q + STAGES_Q * Q_BYTES;
constexpr int AT_DS = AT_DO + STAGES_DO * DO_BYTES;
constexpr int AT_P = AT_DS + STAGES_DS * DsTile::bytes;
constexpr int AT_DQ = AT_P + STAGES_P * P_BYTES;
constexpr int AT_LSE = AT_DQ + DQ_BUFFERS * DQ_PIECE_BYTES;
constexpr int AT_DELTA = AT_LSE + STAGES_Q * ROW_BYTES;

constexpr int AT_BLOCKS = AT_DELTA + STAGES_DO * ROW_BYTES;  // notes (blocks_bwd_sm90.h)
constexpr int BARRIERS = AT_BLOCKS + (RESIDENT ? 16 * STAGES_KV : 0);
constexpr int Q_FULL = BARRIERS, Q_EMPTY = Q_FULL + 8 * STAGES_Q;
constexpr int DO_FULL = Q_EMPTY + 8 * STAGES_Q, DO_EMPTY = DO_FULL + 8 * STAGES_DO;
constexpr int DS_FULL = DO_EMPTY + 8 * STAGES_DO, DS_EMPTY = DS_FULL + 8 * STAGES_DS;
constexpr int P_FULL = DS_EMPTY + 8 * STAGES_DS, P_EMPTY = P_FULL + 8 * STAGES_P;
constexpr int K_FULL = P_EMPTY + 8 * STAGES_P, V_FULL = K_FULL + 8 * STAGES_KV;
// A note is read at the latest when the consumers are done with the step after it, or with dS of
// STAGES_DS more; it is written STAGES_Q steps ahead of them.
constexpr int NOTES = 8, AT_NOTES = V_FULL + 8 * STAGES_KV;
static_assert(STAGES_Q + max_of(STAGES_DS, 2) <= NOTES);
// What the first thread of a dQ warpgroup tells the others.
constexpr int AT_TOLD = AT_NOTES + (NOTED ? 8 * NOTES : 0);
// What a resident CTA has besides, for each place of K and V.
constexpr int KEYS_EMPTY = AT_TOLD + (COUNTED ? 16 : 0), OUTPUT_FULL = KEYS_EMPTY + 8 * STAGES_KV;
constexpr int SHARED_BYTES = RESIDENT ? OUTPUT_FULL + 8 * STAGES_KV : KEYS_EMPTY;

// Named barriers; those with a warpgroup's number added are one per consumer.
enum Named { EVERY_CONSUMER = 1, DQ_STAGED = 2, DQ_SENT = 4, OUTPUT = 6, DQ_GROUP = 8 };

#endif
