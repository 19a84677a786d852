// As key_block_bwd_sm90.h, where the mask of the call says which key blocks are the longest. A group
// of query heads goes by the mask of its first. Turns are not for this: a block would wait for one
// that has not started.
#pragma once

#include "device/longest_first.h"

static_assert(!DETERMINISTIC && !VARLEN);

FAGEN_DEVICE KeyBlock key_block(const fagen_params &p, int tile) {
  const int heads = p.batch * p.kv_heads, blocks = tiles_of(p.seqlen_kv, BLOCK_N);
  const int wide = heads_per_section(p), section = tile / (wide * blocks);
  const int inside = tile - section * wide * blocks, width = min_of(wide, heads - section * wide);
  const int head = section * wide + inside % width;
  const int kv_head = head % p.kv_heads, batch = head / p.kv_heads, rank = inside / width;
  const int n = tile_of_rank<BLOCK_N>(order_of_keys(p.mask), p.mask, p.seqlen_kv, batch,
                                      kv_head * group_size(p), rank, rank);
  return {uniform(n), uniform(kv_head), uniform(batch)};
}
