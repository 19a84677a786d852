// A consumer's way through its stream of tiles, for any pattern: the producer says which blocks of
// keys a tile has and what to do with each. Included by the kernel, behind its Consumer.
#ifndef FAGEN_STREAM_FWD_SM90_H
#define FAGEN_STREAM_FWD_SM90_H

template <class P>
struct Stream : Consumer {
  bool pending = false;  // there is a P V still to come, of this tile or the one before
  bool begun = false;    // this tile has had a block of ours
  int skipped = 0;       // blocks since then whose V is still to be released

  // Read again where it is needed: registers are dear.
  FAGEN_DEVICE const Note &before() const { return shared.control().note[(received - 2) % NOTES]; }

  FAGEN_DEVICE void release_skipped(int but) {
#pragma unroll 1
    for (; skipped > but; skipped--) skip_v();
  }

  // The P V still to come, with nothing behind it.
  FAGEN_DEVICE void flush() {
    output_alone();
    accumulate = 1;
    pending = false;
    if (!begun) output.write(o, softmax, before(), received - 2);
  }

  // K and V come in turns: a long skip must not hold on to an earlier V.
  FAGEN_DEVICE void skip(bool last) {
    skip_k();
    if (last) release_q();
    skipped++;
    if (pending && skipped == STAGES) flush();
    if (!pending) release_skipped(1);
  }

  // A block with no product behind it.
  FAGEN_DEVICE void alone(int block, bool masked, bool last) {
    scores_alone(s);
    release_k();
    if (last) release_q();
    if (masked) mask(s, block);
    if (!begun) {
      softmax.reference[0] = softmax.reference[1] = -INFINITY;
      softmax.sum[0] = softmax.sum[1] = 0.f;
      accumulate = 0;
    }
    softmax.template followed<false, SAFE>(s);
    pack_probabilities(s);
    rescale();
  }

  // The next block of the tile; true when it was the last.
  FAGEN_DEVICE bool visit() {
    wait_k();
    const Visit visit{uint32_t(uniform(shared.control().visit[k.stage].bits))};
    const int kind = visit.kind(group), block = visit.block();
    const bool masked = kind == PARTIAL, last = visit.last();
    if (kind == SKIP) {
      skip(last);
      return last;
    }
    if (!pending) {
      alone(block, masked, last);
    } else if (!begun) {
      first_block_after(s, before(), block, masked, last);
      accumulate = 0;
    } else if (REDO && kind == FREE) {
      step<SOFTMAX>(block, false, last);
    } else {
      step<SAFE>(block, masked, last);
    }
    pending = begun = true;
    release_skipped(0);
    return last;
  }

  FAGEN_DEVICE void run() {
    start();
#pragma unroll 1
    for (;;) {
      receive();
      begun = false;
      if (pending && (!CROSS_TILE || tile.rows == STOP || tile.rows & KEYLESS)) flush();
      if (tile.rows == STOP) break;
      if (tile.rows & KEYLESS) {
        release_q();
      } else {
#pragma unroll 1
        while (!visit()) {
        }
        if (SEAM == Seam::apart && pending && begun) flush();
      }
      if (!begun) {
        if (pending) flush();
        if (tile.rows >> group & 1) output.write_nothing(tile);
      } else if (!pending) {
        output.write(o, softmax, tile, received - 1);
      }
      q.advance();
    }
    release_skipped(0);
    output.finish();
  }
};

#endif
