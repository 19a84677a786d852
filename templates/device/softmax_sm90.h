// The online softmax of a wgmma accumulator. A thread holds 2 rows x N/4 columns of the scores; a
// quad of lanes holds a row. Every reference is in log2 units: probability = 2^(score - reference).
//
// Three ways to follow the row maximum, all exact in the end:
//   exact     the reference is the maximum so far; every step rescales
//   lazy      it moves only when the maximum outgrew it by 8: probabilities stay under 2^8
//   anchored  it stays, and no maximum is taken, until a step's sum says that it must move; what
//             overflowed before it could move is reported, and the caller computes the tile again
#ifndef FAGEN_SOFTMAX_SM90_H
#define FAGEN_SOFTMAX_SM90_H

#include "device/sm90.h"

enum class Softmax { exact, lazy, anchored };

constexpr float LAZY_SLACK = 8.f;
// A step's sum above it moves the anchor. Under it every probability fits fp16.
constexpr float ANCHOR_LIMIT = 16384.f;

FAGEN_DEVICE float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 1));
  return fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 2));
}
FAGEN_DEVICE float quad_sum(float x) {
  x += __shfl_xor_sync(FULL_WARP, x, 1);
  return x + __shfl_xor_sync(FULL_WARP, x, 2);
}
FAGEN_DEVICE bool any_lane(bool x) { return __any_sync(FULL_WARP, x); }

// Of the thread's two rows. The sums are the thread's own columns until the end.
struct RowState {
  float reference[2], sum[2];
};

struct OnlineSoftmax : RowState {
  float scale;          // log2(e) / sqrt(d), or what the caller chose
  float correction[2];  // by which the output so far must be multiplied

  template <int COUNT>
  static FAGEN_DEVICE float row_max(const float (&s)[COUNT], int row) {
    float m = -INFINITY;
#pragma unroll
    for (int i = 2 * row; i < COUNT; i += 4) m = fmaxf(m, fmaxf(s[i], s[i + 1]));
    return quad_max(m);
  }

  // Scores to probabilities; returns nothing, adds to `total`.
  template <int COUNT>
  FAGEN_DEVICE void exponentials(float (&s)[COUNT], const float (&reference)[2],
                                 float (&total)[2]) const {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int row = i >> 1 & 1;
      s[i] = exp2_fast(fmaf(s[i], scale, -reference[row]));
      total[row] += s[i];
    }
  }

  // The vote makes ptxas finish the exponentials before the wait for P V that follows in the
  // code; it would sink them below it. A sum is never -1.
  FAGEN_DEVICE void finish_before_wait() const {
    if (any_lane(sum[0] + sum[1] == -1.f)) asm volatile("nanosleep.u32 1;" ::: "memory");
  }

  // The first block of a row when FIRST, any other when not. Safe for rows with nothing kept yet.
  template <bool FIRST, Softmax KIND, int COUNT>
  FAGEN_DEVICE void followed(float (&s)[COUNT]) {
    float from[2];
#pragma unroll
    for (int row = 0; row < 2; row++) {
      const float m = row_max(s, row) * scale;
      if constexpr (FIRST) {
        reference[row] = m;
        sum[row] = 0.f;
        correction[row] = 1.f;
      } else {
        const float old = reference[row];
        const bool outgrown = KIND == Softmax::exact ? m > old : m > old + LAZY_SLACK;
        const float now = outgrown ? m : old;
        correction[row] = outgrown ? exp2_fast(old - m) : 1.f;
        reference[row] = now;
        sum[row] *= correction[row];
      }
      from[row] = reference[row] == -INFINITY ? 0.f : reference[row];
    }
    exponentials(s, from, sum);
    finish_before_wait();
  }

  // A later, unmasked block on the reference as it stands. False when a probability overflowed.
  template <int COUNT>
  FAGEN_DEVICE bool anchored(float (&s)[COUNT]) {
    float total[2] = {0.f, 0.f};
    correction[0] = correction[1] = 1.f;
    exponentials(s, reference, total);
    bool good = true;
    if (any_lane(!(total[0] + total[1] <= ANCHOR_LIMIT))) good = move_anchor(s, total);
    sum[0] += total[0];
    sum[1] += total[1];
    return good;
  }

  // Rare: divide each row that has grown by a power of two, and move its reference as far.
  template <int COUNT>
  FAGEN_DEVICE bool move_anchor(float (&s)[COUNT], float (&total)[2]) {
#pragma unroll
    for (int row = 0; row < 2; row++) {
      const int exponent = (__float_as_int(row_max(s, row)) >> 23) - 127;
      const int shift = min(max(exponent, 0), 126);
      const float factor = __int_as_float((127 - shift) << 23);
#pragma unroll
      for (int i = 2 * row; i < COUNT; i += 4) {
        s[i] *= factor;
        s[i + 1] *= factor;
      }
      reference[row] += static_cast<float>(shift);
      correction[row] = factor;
      sum[row] *= factor;
      total[row] *= factor;
    }
    return total[0] + total[1] <= ANCHOR_LIMIT;
  }
};

#endif
