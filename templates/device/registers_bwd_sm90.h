// Registers per thread; the sum over warpgroups is what the launch allocates. The warps that load
// and send dQ need a few more for turns and for the places of sequences.
#pragma once

constexpr int PRODUCER_REGISTERS = !OWN_DQ && (DETERMINISTIC || VARLEN) ? 40 : 24;
constexpr int DQ_REGISTERS = DQ_COLUMNS <= 64 ? 72 : 104;
constexpr int CONSUMER_REGISTERS =
    OWN_DQ ? (512 - PRODUCER_REGISTERS - DQ_REGISTERS) / 2 : (512 - PRODUCER_REGISTERS) / 2 / 8 * 8;
