// Patterns that are the union of simple parts. A part speaks of positions: query q stands at
// i = q + shift among the keys j, the last query at the last key; i is negative where there are
// more queries than keys. With CAUSAL a part keeps only keys up to the query's position.
//
//   keep(i, j), full(i0, i1, j0, j1)     as in the contract; full may say no where it is yes
//   next_key(i0, i1, j), next_query(j0, j1, i)   exact; NONE, or past the end, when there is none
//
// keep uses & and |, not && and ||: without branches it becomes vector code on a CPU.
#ifndef FAGEN_PATTERN_PARTS_H
#define FAGEN_PATTERN_PARTS_H

#include "patterns/contract.h"

constexpr int NONE = 0x7fffffff, FAR = 1 << 30;

template <class... Parts>
struct AnyOf : Parts... {
  static constexpr bool interval = false;
  int seqlen_q, seqlen_kv, shift;

  FAGEN_HD explicit AnyOf(Lengths n)
      : Parts(n)..., seqlen_q(n.seqlen_q), seqlen_kv(n.seqlen_kv), shift(seqlen_kv - seqlen_q) {}

  FAGEN_HD bool keep(int q, int k) const { return (Parts::keep(q + shift, k) | ...); }

  FAGEN_HD int next_key(int q0, int q1, int k) const {
    int first = seqlen_kv;
    ((first = min_of(first, Parts::next_key(q0 + shift, q1 + shift, k))), ...);
    return first;
  }
  FAGEN_HD int next_query(int k0, int k1, int q) const {
    int first = seqlen_q + shift;
    ((first = min_of(first, Parts::next_query(k0, k1, q + shift))), ...);
    return first - shift;
  }

  FAGEN_HD bool full(int q0, int q1, int k0, int k1) const {
    return (Parts::full(q0 + shift, q1 + shift, k0, k1) || ...);
  }
  FAGEN_HD Tile tile(int q0, int q1, int k0, int k1) const {
    if (next_key(q0, q1, k0) >= k1) return Tile::skip;
    return full(q0, q1, k0, k1) ? Tile::full : Tile::partial;
  }
};

// Keys up to BEFORE positions before the query and AFTER past it.
template <int BEFORE, int AFTER>
struct Near {
  FAGEN_HD explicit Near(Lengths) {}
  FAGEN_HD bool keep(int i, int j) const { return (i - j <= BEFORE) & (j - i <= AFTER); }
  FAGEN_HD int next_key(int i0, int i1, int j) const {
    const int first = max_of(j, i0 - BEFORE);
    return first < i1 + AFTER ? first : NONE;
  }
  FAGEN_HD int next_query(int j0, int j1, int i) const {
    const int first = max_of(i, j0 - AFTER);
    return first < j1 + BEFORE ? first : NONE;
  }
  FAGEN_HD bool full(int i0, int i1, int j0, int j1) const {
    return i1 - 1 - j0 <= BEFORE && j1 - 1 - i0 <= AFTER;
  }
};

// Every STEP-th key, counted from the query, as far as BEFORE and AFTER.
template <int STEP, int BEFORE, int AFTER>
struct Steps {
  FAGEN_HD explicit Steps(Lengths) {}
  FAGEN_HD bool keep(int i, int j) const {
    return ((i - j) % STEP == 0) & (i - j <= BEFORE) & (j - i <= AFTER);
  }
  // The longest distance that still reaches j or a later key finds the first one.
  FAGEN_HD int next_key(int i0, int i1, int j) const {
    const int distance = floor_to(min_of(BEFORE, i1 - 1 - j), STEP);
    return distance >= -AFTER ? max_of(j, i0 - distance) : NONE;
  }
  FAGEN_HD int next_query(int j0, int j1, int i) const {
    const int distance = floor_to(max_of(-AFTER, i - j1 + 1) + STEP - 1, STEP);
    return distance <= BEFORE ? max_of(i, j0 + distance) : NONE;
  }
  FAGEN_HD bool full(int i0, int i1, int j0, int j1) const {
    return STEP == 1 && i1 - 1 - j0 <= BEFORE && j1 - 1 - i0 <= AFTER;
  }
};

// The first COUNT keys, for every query.
template <int COUNT, bool CAUSAL>
struct FirstKeys {
  FAGEN_HD explicit FirstKeys(Lengths) {}
  FAGEN_HD bool keep(int i, int j) const { return (j < COUNT) & (!CAUSAL | (j <= i)); }
  FAGEN_HD int next_key(int, int i1, int j) const {
    return j < (CAUSAL ? min_of(COUNT, i1) : COUNT) ? j : NONE;
  }
  FAGEN_HD int next_query(int j0, int, int i) const {
    return j0 >= COUNT ? NONE : CAUSAL ? max_of(i, j0) : i;
  }
  FAGEN_HD bool full(int i0, int, int, int j1) const {
    return j1 <= COUNT && (!CAUSAL || j1 - 1 <= i0);
  }
};

// Every key, for the queries at the first COUNT positions.
template <int COUNT>
struct FirstQueries {
  FAGEN_HD explicit FirstQueries(Lengths) {}
  FAGEN_HD bool keep(int i, int) const { return (0 <= i) & (i < COUNT); }
  FAGEN_HD int next_key(int i0, int i1, int j) const {
    return max_of(i0, 0) < min_of(i1, COUNT) ? j : NONE;
  }
  FAGEN_HD int next_query(int, int, int i) const {
    const int first = max_of(i, 0);
    return first < COUNT ? first : NONE;
  }
  FAGEN_HD bool full(int i0, int i1, int, int) const { return 0 <= i0 && i1 <= COUNT; }
};

// The query's own block of SIZE positions.
template <int SIZE, bool CAUSAL>
struct OwnBlock {
  FAGEN_HD explicit OwnBlock(Lengths) {}
  FAGEN_HD bool keep(int i, int j) const {
    return (floor_div(i, SIZE) == j / SIZE) & (!CAUSAL | (j <= i));
  }
  FAGEN_HD int next_key(int i0, int i1, int j) const {
    const int first = max_of(j, floor_to(i0, SIZE));
    return first < (CAUSAL ? i1 : floor_to(i1 - 1, SIZE) + SIZE) ? first : NONE;
  }
  FAGEN_HD int next_query(int j0, int j1, int i) const {
    const int first = max_of(i, CAUSAL ? j0 : floor_to(j0, SIZE));
    return first < floor_to(j1 - 1, SIZE) + SIZE ? first : NONE;
  }
  FAGEN_HD bool full(int i0, int i1, int j0, int j1) const {
    const int block = j0 / SIZE;
    return (j1 - 1) / SIZE == block && floor_div(i0, SIZE) == block &&
           floor_div(i1 - 1, SIZE) == block && (!CAUSAL || j1 - 1 <= i0);
  }
};

// The last COUNT keys of every block of SIZE.
template <int SIZE, int COUNT, bool CAUSAL>
struct BlockEnds {
  FAGEN_HD explicit BlockEnds(Lengths) {}
  FAGEN_HD bool keep(int i, int j) const {
    return (j % SIZE >= SIZE - COUNT) & (!CAUSAL | (j <= i));
  }
  FAGEN_HD int next_key(int, int i1, int j) const {
    const int first = first_from(j);
    return !CAUSAL || first < i1 ? first : NONE;
  }
  FAGEN_HD int next_query(int j0, int j1, int i) const {
    const int first = first_from(j0);
    return first >= j1 ? NONE : CAUSAL ? max_of(i, first) : i;
  }
  FAGEN_HD bool full(int i0, int, int j0, int j1) const {
    return first_from(j0) == j0 && j0 % SIZE + j1 - j0 <= SIZE && (!CAUSAL || j1 - 1 <= i0);
  }

 private:
  FAGEN_HD static int first_from(int j) { return j + max_of(0, SIZE - COUNT - j % SIZE); }
};

#endif
