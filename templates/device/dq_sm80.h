// dQ of one block of query rows by one CTA: dQ = scale sum over keys of dS K, keys in order, so that
// the same inputs give the same bits. Q and dO stay in shared memory, K and V stream by.
#pragma once

constexpr int DQ_THREADS = 2 * BLOCK_M;  // one warp per 16 rows
constexpr int DQ_KEYS = HEAD_DIM > 128 || HEAD_DIM_V > 128 ? 32 : 64, DQ_TILES = DQ_KEYS / 8;
constexpr int DQ_K_BYTES = DQ_KEYS * Layout<HEAD_DIM>::pitch;
constexpr int DQ_SHARED_BYTES =
    Q_BYTES + DO_BYTES + DQ_K_BYTES + DQ_KEYS * Layout<HEAD_DIM_V>::pitch;

struct Rows : Spot {
  int q0, q1, kv_head;

  __device__ __forceinline__ explicit Rows(const fagen_params &p)
      : Spot(p, late_rows_first<BLOCK_M>(p)) {
    fill(p);
  }
  __device__ __forceinline__ Rows(const fagen_params &p, const Rows &found)
      : Spot(p, found, late_rows_first<BLOCK_M>(p)) {
    fill(p);
  }

 private:
  __device__ __forceinline__ void fill(const fagen_params &p) {
    q0 = slot.tile * BLOCK_M;
    q1 = min_of(q0 + BLOCK_M, in.seqlen_q());
    kv_head = y / (p.heads / p.kv_heads);
  }
};

// P = exp2(scale S - LSE), 0 where the pattern drops it; dS = P (dP - delta), in place of dP.
__device__ __forceinline__ void row_gradient(const float (&s)[DQ_TILES][4],
                                             float (&dp)[DQ_TILES][4], const float *stats, int row,
                                             int key, const Pattern &pattern, float scale, int q0) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const RowMask<Pattern, DQ_KEYS> kept(pattern, q0 + row + 8 * h, key);
    const float lse = stats[row + 8 * h], delta = stats[BLOCK_M + row + 8 * h];
#pragma unroll
    for (int j = 0; j < DQ_TILES; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float exponent = fmaf(s[j][2 * h + i], scale, -lse);
        const float p = exp2_approx(kept.keeps(8 * j + i) ? exponent : NEG_INF);
        dp[j][2 * h + i] = p * (dp[j][2 * h + i] - delta);
      }
  }
}

__device__ __forceinline__ void dq_pass(const fagen_params &p, uint32_t q_tile) {
  const uint32_t do_tile = q_tile + Q_BYTES, k_tile = do_tile + DO_BYTES,
                 v_tile = k_tile + DQ_K_BYTES;
  const Rows my(p);
  if (VARLEN && my.q0 >= my.in.seqlen_q()) return;  // a slot without a tile
  const Pattern pattern = my.in.pattern<Pattern>(my.y);
  KeyWalk<Pattern, DQ_KEYS, 0> walk(pattern, my.q0, my.q1);
  const float scale = exponent_scale(p.scale);

  TileCopy<BLOCK_M, HEAD_DIM, DQ_THREADS>::load(
      q_tile, my.in.q_rows<uint16_t>(p.q, my.y) + my.q0 * p.q.row_stride, p.q.row_stride,
      my.q1 - my.q0, my.thread);
  TileCopy<BLOCK_M, HEAD_DIM_V, DQ_THREADS>::load(
      do_tile, my.in.q_rows<uint16_t>(p.dout, my.y) + my.q0 * p.dout.row_stride, p.dout.row_stride,
      my.q1 - my.q0, my.thread);
  cp_async_commit();  // also where no key is seen: only what was committed can be waited for

  float dq[1][2 * STEPS][4];
  clear(dq);
  for (; walk.more(); walk.advance()) {
    const int k0 = walk.key();
    __syncthreads();  // every warp is done with the keys before
    TileCopy<DQ_KEYS, HEAD_DIM, DQ_THREADS>::load(
        k_tile, my.in.kv_rows<uint16_t>(p.k, my.kv_head) + k0 * p.k.row_stride, p.k.row_stride,
        my.in.seqlen_kv() - k0, Where().thread);
    TileCopy<DQ_KEYS, HEAD_DIM_V, DQ_THREADS>::load(
        v_tile, my.in.kv_rows<uint16_t>(p.v, my.kv_head) + k0 * p.v.row_stride, p.v.row_stride,
        my.in.seqlen_kv() - k0, Where().thread);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();

    const Rows me(p, my);
    const int row = 16 * me.warp;
    float s[1][DQ_TILES][4], dp[1][DQ_TILES][4];
    multiply_rows<HEAD_DIM>(s, rows_first<HEAD_DIM>(q_tile, row, 0, me.lane),
                            columns_first<HEAD_DIM>(k_tile, 0, 0, me.lane));
    multiply_rows<HEAD_DIM_V>(dp, rows_first<HEAD_DIM_V>(do_tile, row, 0, me.lane),
                              columns_first<HEAD_DIM_V>(v_tile, 0, 0, me.lane));
    const float *stats = stats_of(p, me.in.q_block(BLOCK_M, me.y, me.slot.tile));
    row_gradient(s[0], dp[0], stats, row + me.lane / 4, k0 + me.lane % 4 * 2, pattern, scale,
                 me.q0);
    const auto k = rows_first<HEAD_DIM>(k_tile, 0, 0, me.lane);
    multiply<DQ_KEYS / 16>(
        dq, [&](uint32_t(&r)[4], int step, int m) { as_operand(r, dp[m], step); },
        [&](uint32_t(&r)[4], int step, int n) { ldmatrix_transposed(r, k.at(16 * step, 2 * n)); });
  }

  cp_async_wait<0>();
  __syncthreads();  // dQ takes the place of Q
  const Rows out(p, my);
  put_accumulators<HEAD_DIM>(q_tile, 16 * out.warp, 0, dq[0], p.scale, out.lane);
  __syncthreads();
  TileCopy<BLOCK_M, HEAD_DIM, DQ_THREADS>::store(
      q_tile, out.in.q_rows<uint16_t>(p.dq, out.y) + out.q0 * p.dq.row_stride, p.dq.row_stride,
      out.q1 - out.q0, out.thread);
}
