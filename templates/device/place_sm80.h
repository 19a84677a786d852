// The tile of query rows or keys that a CTA works on, and the sequence it is of.
#pragma once

#include "device/ptx_sm80.h"
#include "device/sequence.h"

// Made from the CTA's coordinates again wherever it is asked for, which costs an instruction or two
// and no registers in between. What had to be searched for, with +varlen, is kept instead.
struct Spot : Where {
  Slot slot;
  Sequence in;

  // `find` gives the slot from the coordinates.
  template <class Find>
  __device__ __forceinline__ Spot(const fagen_params &p, Find find)
      : slot(find(static_cast<const Where &>(*this))), in(p, slot.batch) {}
  template <class Find>
  __device__ __forceinline__ Spot(const fagen_params &p, const Spot &found, Find find)
      : slot(again(found, find)), in(VARLEN ? found.in : Sequence(p, slot.batch)) {}

 private:
  template <class Find>
  __device__ __forceinline__ Slot again(const Spot &found, Find find) const {
    if constexpr (VARLEN) return found.slot;
    else return find(static_cast<const Where &>(*this));
  }
};

// CTAs along x for tiles of query rows, or of keys, one after another; z for the batch.
template <int SIZE>
__device__ __forceinline__ auto rows_along_x(const fagen_params &p) {
  return [&p](const Where &at) { return q_slot(p, SIZE, at.x, at.z); };
}
template <int SIZE>
__device__ __forceinline__ auto late_rows_first(const fagen_params &p) {
  return [&p](const Where &at) {
    return q_slot(p, SIZE, static_cast<int>(gridDim.x - 1 - at.x), at.z);
  };
}
template <int SIZE>
__device__ __forceinline__ auto keys_along_x(const fagen_params &p) {
  return [&p](const Where &at) { return kv_slot(p, SIZE, at.x, at.z); };
}
