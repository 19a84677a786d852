// Heads whose queries and dQ lie in the L2 cache together are one section. Inside it the heads
// alternate, so that the first key blocks of all of them, the longest under a causal mask, start first
// and short ones fill the end.
#pragma once

// One head per section keeps the fewest bytes in use; by_section leaves room for what both halves of
// the cache hold. A power of two, because a narrow last section would end unevenly.
FAGEN_DEVICE int section_of_heads(Order order, int heads, float bytes_per_head) {
  const float section_bytes = order == Order::by_section ? 20e6f : 40e6f;
  const int fit = static_cast<int>(section_bytes / bytes_per_head);
  const int wide = fit > 1 ? 1 << (31 - __clz(fit)) : 1;
  return wide < heads ? wide : heads;
}
