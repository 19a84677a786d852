// Which tiles of a head are started first: what follows from the pattern alone.
#pragma once

constexpr Longest LONGEST = !IntervalPattern<Pattern> ? Longest::either
                            : CUTS_RIGHT && !CUTS_LEFT ? Longest::last
                                                       : Longest::none;
using Order = TileOrder<BLOCK_M, LONGEST, VARLEN, SCHEDULE>;
