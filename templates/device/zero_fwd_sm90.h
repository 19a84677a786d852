// The kernel before the forward, where tiles come from a counter (tiles_sm90.h): it zeroes that.
//
// The forward may begin while this runs. It finds its inputs, because this begins when all that
// stands before it in the stream has ended. Every CTA draws from the counter at least once and waits
// for this kernel first, so the forward ends behind it: what follows in the stream, the next call on
// the same scratch memory too, finds neither of them running.
#ifndef FAGEN_ZERO_FWD_SM90_H
#define FAGEN_ZERO_FWD_SM90_H

#include "device/sm90.h"

extern "C" __global__ void __launch_bounds__(32) fwd_zero(const __grid_constant__ fagen_params p) {
  launch_dependents();
  if (threadIdx.x == 0) *static_cast<unsigned *>(p.work[0]) = 0;
}

#endif
