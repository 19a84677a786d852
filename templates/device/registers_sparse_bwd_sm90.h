// As registers_bwd_sm90.h, where the loading warp looks for the steps or reads a mask: that takes more
// of them. They are the dQ group's where it has some to spare, else the consumers'; where consumers
// make dQ and it is delayed, or the steps are one run, there are none.
#pragma once

constexpr bool NONE_TO_SPARE = !OWN_DQ && !DETERMINISTIC && !VARLEN &&
                               (DQ == Dq::delayed || IntervalPattern<Pattern>);
constexpr int PRODUCER_REGISTERS = NONE_TO_SPARE ? 24 : OWN_DQ && !SPLIT ? 32 : 40;
constexpr int DQ_REGISTERS = (DQ_COLUMNS <= 64 ? 72 : 104) - (SPLIT ? 0 : 8);
constexpr int CONSUMER_REGISTERS =
    OWN_DQ ? (512 - PRODUCER_REGISTERS - DQ_REGISTERS) / 2 : (512 - PRODUCER_REGISTERS) / 2 / 8 * 8;
