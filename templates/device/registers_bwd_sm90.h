// Registers per thread; the sum over warpgroups is what the launch allocates. The warps that load
// and send dQ need a few more for turns, for the places of sequences, and to go from one key block to
// the next; then so does a dQ group that counts. They are the consumers' where those hold little, else
// the dQ group's.
#pragma once

constexpr bool WIDE_DQ = DQ_COLUMNS > 64, COUNTS = SUMS == Sums::counted;
constexpr int HELD = (D + DV) / 2 + (P_FP32 ? BLOCK_M : 3 * BLOCK_M / 4);  // in consumers by rows
constexpr bool SPARE = SPLIT || HELD <= (WIDE_DQ ? 152 : COUNTS ? 168 : 144);
constexpr bool SPARE_MORE = COUNTS && !SPLIT && !WIDE_DQ && HELD <= 144;
constexpr int PRODUCER_REGISTERS = RESIDENT                               ? OWN_DQ && !SPARE ? 32 : 40
                                   : !OWN_DQ && (DETERMINISTIC || VARLEN) ? 40
                                                                          : 24;
constexpr int DQ_REGISTERS = (WIDE_DQ ? 104 : 72) + (!RESIDENT ? 0 : !SPARE ? -8 : SPARE_MORE ? 16 : 0);
constexpr int CONSUMER_REGISTERS =
    OWN_DQ ? (512 - PRODUCER_REGISTERS - DQ_REGISTERS) / 2 : (512 - PRODUCER_REGISTERS) / 2 / 8 * 8;
