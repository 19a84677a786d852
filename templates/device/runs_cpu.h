// The backward's parts are runs of keys. With too few heads to feed the team, the keys of a sequence
// are cut into several runs, each with an fp32 dq of its own; these are added up at the end.
#ifndef FAGEN_RUNS_CPU_H
#define FAGEN_RUNS_CPU_H

#include "device/mask_cpu.h"
#include "device/parts_cpu.h"

// How the keys of one sequence are cut, and where its sums of dq begin if they are cut at all.
struct Split {
  int runs, run_keys;
  int64_t weight, sums;
};

// Score elements of keys [begin, end), as a kernel sees them that walks chunks of them.
inline int64_t weight_of(const Pattern &pattern, int begin, int end) {
  int64_t sum = 0;
  for (int c0 = begin; c0 < end; c0 = end - c0 > BLOCK_KV ? c0 + BLOCK_KV : end) {
    const int c1 = end - c0 > BLOCK_KV ? c0 + BLOCK_KV : end;
    const int rows = end_of_queries(pattern, c0, c1) - pattern.next_query(c0, c1, 0);
    sum += (int64_t)(c1 - c0) * max_of(rows, 0);
  }
  return sum;
}

// How many runs, so that the team has work and ends together: one to four tasks per thread,
// preferably with half a chunk of keys or more. `heads` like this one would make up the call.
inline int runs_per_head(int64_t heads, int threads, int seqlen_kv) {
  if (threads <= 1 || heads % threads == 0 || heads >= 4 * threads) return 1;
  const int least = (int)((threads + heads - 1) / heads);
  const int most = (int)((4 * threads + heads - 1) / heads);
  const int wanted = min_of(max_of(seqlen_kv / (BLOCK_KV / 2), least), most);
  return max_of(1, min_of(wanted, seqlen_kv / (2 * BLOCK_N)));
}

// fp32 dq of the query heads that share a key/value head, in floats.
inline int64_t dq_floats(const fagen_params &p, int seqlen_q) {
  return (int64_t)(p.heads / p.kv_heads) * seqlen_q * HEAD_DIM;
}

struct KeyRuns {
  Split *split;       // by sequence
  int64_t count = 0;  // runs, of all sequences
  int64_t whole = 0;  // floats of dq: the most of a sequence that is not cut, which a thread keeps
  int64_t apart = 0;  // and those of all runs of sequences that are cut

  KeyRuns(const fagen_params &p, int threads)
      : split((Split *)scratch_memory(sizeof(Split) * p.batch)) {
    int64_t all = 0;
    for (int b = 0; split && b < p.batch; ++b) {
      const Sequence in(p, b);
      all += split[b].weight = weight_of(in.pattern<Pattern>(0), 0, in.seqlen_kv());
    }
    for (int b = 0; split && b < p.batch; ++b)
      cut(p, Sequence(p, b), threads, all, split[b]);
  }
  KeyRuns(const KeyRuns &) = delete;
  ~KeyRuns() { free(split); }

  // Where the sums of one run and head begin, among those that are apart.
  int64_t sums(const fagen_params &p, int batch, int run, int kv_head) const {
    const int64_t floats = dq_floats(p, Sequence(p, batch).seqlen_q());
    return split[batch].sums + ((int64_t)run * p.kv_heads + kv_head) * floats;
  }

  // A sequence without keys is a run too: its dq is zero.
  void add_to(Parts &parts, const fagen_params &p) const {
    for (int b = 0; b < p.batch; ++b) {
      const Sequence in(p, b);
      const Pattern pattern = in.pattern<Pattern>(0);
      for (int i = 0; i < split[b].runs; ++i) {
        const int begin = i * split[b].run_keys;
        const int end = i + 1 < split[b].runs ? begin + split[b].run_keys : in.seqlen_kv();
        parts.add({b, begin, end, weight_of(pattern, begin, end)});
      }
    }
    parts.sort();
  }

 private:
  void cut(const fagen_params &p, const Sequence &in, int threads, int64_t all, Split &s) {
    const int64_t heads = p.kv_heads * (s.weight > 0 ? all / s.weight : (int64_t)p.batch);
    const int tiles = (in.seqlen_kv() + BLOCK_N - 1) / BLOCK_N;
    const int64_t floats = dq_floats(p, in.seqlen_q());
    s.runs = runs_per_head(heads, threads, in.seqlen_kv());
    const int run_tiles = max_of(1, (tiles + s.runs - 1) / s.runs);
    s.runs = max_of(1, (tiles + run_tiles - 1) / run_tiles);
    s.run_keys = run_tiles * BLOCK_N;
    s.sums = apart;
    count += s.runs;
    if (s.runs > 1) apart += floats * p.kv_heads * s.runs;
    else if (floats > whole) whole = floats;
  }
};

#endif
