// What the sequences of a call are cut into, the heaviest first: the team takes the parts in this
// order, so that nobody begins a long one when the others are about to end.
#ifndef FAGEN_PARTS_CPU_H
#define FAGEN_PARTS_CPU_H

#include <algorithm>

#include "device/sequence.h"
#include "device/team_cpu.h"

// Rows, or keys, [begin, end) of one sequence; for all heads.
struct Part {
  int batch, begin, end;
  int64_t weight;
};

// Between equals the last one first: patterns that do not say what they weigh mostly grow with q.
inline bool goes_first(const Part &a, const Part &b) {
  if (a.weight != b.weight) return a.weight > b.weight;
  return a.begin != b.begin ? a.begin > b.begin : a.batch < b.batch;
}

struct Parts {
  Part *list;
  int64_t count = 0;

  explicit Parts(int64_t most) : list((Part *)scratch_memory(sizeof(Part) * most)) {}
  Parts(const Parts &) = delete;
  ~Parts() { free(list); }

  void add(const Part &part) { list[count++] = part; }
  void sort() { std::sort(list, list + count, goes_first); }
};

// How many tiles of `size` there are at most, in rows of queries or in keys of all sequences.
inline int64_t most_tiles(const fagen_params &p, int size, int seqlen, int total) {
  return VARLEN ? total / size + p.batch : (int64_t)p.batch * ((seqlen + (int64_t)size - 1) / size);
}

#endif
