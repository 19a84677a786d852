// Which keys a number stands for: what follows from the number alone.
#pragma once

// All lanes of a warp call it.
FAGEN_DEVICE KeyBlock key_block(const fagen_params &p, int tile) {
  const int heads = entries(p) * p.kv_heads;
  const int blocks = VARLEN ? p.total_kv / BLOCK_N + p.batch : tiles_of(p.seqlen_kv, BLOCK_N);
  const int wide = heads_per_section(p), section = tile / (wide * blocks);
  const int inside = tile - section * wide * blocks, width = min_of(wide, heads - section * wide);
  const int head = section * wide + inside % width;
  const int n = FALLING ? blocks - 1 - inside / width : inside / width;
  if constexpr (VARLEN) {
    const Slot slot = kv_slot(p, BLOCK_N, n, 0);
    return {uniform(slot.tile), uniform(head), uniform(slot.batch)};
  } else {
    return {uniform(n), uniform(head % p.kv_heads), uniform(head / p.kv_heads)};
  }
}
