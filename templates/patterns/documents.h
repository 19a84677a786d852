// Every query keeps one run of keys that is given at run time: packed documents, or anything else
// whose runs begin and end no earlier than those of the query before. Then the queries of a key are
// one run too, and the runs of a tile's first and last rows say all of the tile. A query that keeps
// nothing has an empty run between those of its neighbours. What is causal about a mask is in the
// runs already.
//
// Keys that lie between the runs of two rows of one tile, and that neither of them keeps, are
// visited: documents without keys, or gaps between them.
#ifndef FAGEN_PATTERN_DOCUMENTS_H
#define FAGEN_PATTERN_DOCUMENTS_H

#include "patterns/contract.h"

struct Documents : Runs<Documents> {
  const fagen_mask &mask;
  int entry;  // of the batch; 0 where all have the same runs

  FAGEN_HD Documents(const fagen_params &p, int batch, int)
      : Runs<Documents>(Lengths{p.seqlen_q, p.seqlen_kv}), mask(p.mask),
        entry(p.mask.batches > 1 ? batch : 0) {}

  FAGEN_HD Range keys(int q0, int q1) const { return some(of_query(), q0, q1, seqlen_q); }
  FAGEN_HD Range full_keys(int q0, int q1) const { return all(of_query(), q0, q1, seqlen_q); }
  FAGEN_HD Range queries(int k0, int k1) const { return some(of_key(), k0, k1, seqlen_kv); }
  FAGEN_HD Range full_queries(int k0, int k1) const { return all(of_key(), k0, k1, seqlen_kv); }

 private:
  // Made where they are used: an address takes two registers.
  FAGEN_HD const fagen_run *of_query() const {
    return mask.queries + static_cast<int64_t>(entry) * seqlen_q;
  }
  FAGEN_HD const fagen_run *of_key() const {
    return mask.keys + static_cast<int64_t>(entry) * seqlen_kv;
  }
  // Kernels may ask for rows past the end, and ignore the answer.
  FAGEN_HD static Range some(const fagen_run *runs, int begin, int end, int count) {
    return Range{runs[min_of(begin, count - 1)].begin, runs[min_of(end, count) - 1].end};
  }
  FAGEN_HD static Range all(const fagen_run *runs, int begin, int end, int count) {
    return Range{runs[min_of(end, count) - 1].begin, runs[min_of(begin, count - 1)].end};
  }
};

#endif
