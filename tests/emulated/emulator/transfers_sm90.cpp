// TMA and bulk copies: boxes with their swizzle, zero fill and clipping; groups of stores.
#include "inside_sm90.h"

#include <algorithm>

namespace machine {

// Of 16-byte pieces: address bits 7.. turn the bits from 4 on.
uint32_t swizzled(uint32_t address, int swizzle) {
  const uint32_t mask = swizzle == 128 ? 7 : swizzle == 64 ? 3 : swizzle == 32 ? 1 : 0;
  return address ^ (address >> 7 & mask) << 4;
}

static void later_or_now(Block *block, std::function<void()> arrive) {
  if (!mode.late && !mode.seed) return arrive();
  block->loading++;
  arriving.push_back([=, arrive = std::move(arrive)] {
    block->loading--;
    arrive();
  });
}

// Calls visit(offset in the box, address of the 16 bytes in the tensor or null).
template <class Visit>
static void each_piece(const Map &map, const int (&at)[4], Visit visit) {
  const bool inside = at[2] >= 0 && at[2] < map.dims[2] && at[3] >= 0 && at[3] < map.dims[3];
  for (int r = 0; r < map.box_rows; r++)
    for (int c = 0; c < map.box_dim; c += 8) {
      const int64_t row = at[1] + r, dim = at[0] + c;
      const bool real = inside && row >= 0 && row < map.dims[1] && dim >= 0 && dim < map.dims[0];
      visit(2 * (r * map.box_dim + c),
            real ? map.data + 2 * dim + row * map.strides[1] + at[2] * map.strides[2] +
                       at[3] * map.strides[3]
                 : nullptr,
            static_cast<int>(std::min<int64_t>(8, map.dims[0] - dim)) * 2);
    }
}

static void check_box(const Map &map, uint32_t address) {
  if (2 * map.box_dim != map.swizzle) fail("a box row of %d elements, swizzle %d", map.box_dim, map.swizzle);
  if (map.box_rows > 256) fail("a box of %d rows", map.box_rows);
  if (address % 128) fail("a box at %u in shared memory: not on 128 bytes", address);
  shared_at(address, 16);
  shared_at(address + map.box_rows * map.swizzle - 16, 16);
}

void load_box(uint32_t to, const Map &map, const int (&at)[4], uint32_t barrier) {
  check_box(map, to);
  Block *block = self->block;
  const std::array<int, 4> from = {at[0], at[1], at[2], at[3]};
  later_or_now(block, [=] {
    each_piece(map, {from[0], from[1], from[2], from[3]}, [&](int offset, const char *p, int real) {
      char *piece = shared_of(*block, swizzled(to + offset, map.swizzle), 16);
      memset(piece, 0, 16);
      if (p) memcpy(piece, p, real);
    });
    deliver(*block, barrier, map.box_rows * map.box_dim * 2);
  });
}

void load_bytes(uint32_t to, const void *from, int bytes, uint32_t barrier) {
  if (to % 16 || bytes % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    fail("a bulk copy of %d bytes from %p to %u: not multiples of 16", bytes, from, to);
  Block *block = self->block;
  later_or_now(block, [=] {
    for (int i = 0; i < bytes; i += 16)
      memcpy(shared_of(*block, to + i, 16), static_cast<const char *>(from) + i, 16);
    deliver(*block, barrier, bytes);
  });
}

// --- stores and reductions -----------------------------------------------------------------------

static void read_copy(Block &block, Copy &copy) {
  if (!copy.read.empty()) return;
  static const char *const names[] = {"a TMA store", "a bulk store", "a bulk reduction"};
  copy.read.resize(copy.bytes);
  const int swizzle = copy.kind == Copy::BOX ? copy.map.swizzle : 0;
  for (int i = 0; i < copy.bytes; i += 16) {
    const uint32_t at = swizzled(copy.from + i, swizzle);
    if (async_may_read(block, at, names[copy.kind]))
      memcpy(copy.read.data() + i, shared_of(block, at, 16), 16);
    else
      memset(copy.read.data() + i, 0xff, 16);
  }
}

void write_copy(Copy &copy) {
  if (copy.written) return;
  copy.written = true;
  if (copy.kind == Copy::BOX)
    each_piece(copy.map, copy.at, [&](int offset, char *p, int real) {
      if (p) memcpy(p, copy.read.data() + offset, real);
    });
  else if (copy.kind == Copy::STORE)
    memcpy(copy.to, copy.read.data(), copy.bytes);
  else
    for (int i = 0; i < copy.bytes / 4; i++)
      copy.to[i] += reinterpret_cast<const float *>(copy.read.data())[i];
}

static void start(Copy copy) {
  if (!mode.late) {
    read_copy(*self->block, copy);
    write_copy(copy);
  }
  self->copies.back().push_back(std::move(copy));
}

void store_box(const Map &map, const int (&at)[4], uint32_t from) {
  check_box(map, from);
  start({Copy::BOX, map, {at[0], at[1], at[2], at[3]}, nullptr, from, map.box_rows * map.box_dim * 2, {}, false});
}

static void start_bulk(decltype(Copy::kind) kind, void *to, uint32_t from, int bytes) {
  if (from % 16 || bytes % 16 || reinterpret_cast<uintptr_t>(to) % 16)
    fail("a bulk copy of %d bytes from %u to %p: not multiples of 16", bytes, from, to);
  start({kind, {}, {}, static_cast<float *>(to), from, bytes, {}, false});
}
void store_floats(void *to, uint32_t from, int bytes) { start_bulk(Copy::STORE, to, from, bytes); }
void reduce_floats(void *to, uint32_t from, int bytes) { start_bulk(Copy::REDUCE, to, from, bytes); }

void bulk_commit() { self->copies.emplace_back(); }

// Writes land in the opposite order: nothing says that they keep the one they were asked in.
void bulk_wait(int pending, bool only_read) {
  auto &groups = self->copies;
  const int done = std::max<int>(0, groups.size() - 1 - pending);
  for (int g = done - 1; g >= 0; g--)
    for (Copy &copy : groups[g]) {
      read_copy(*self->block, copy);
      if (!only_read) write_copy(copy);
    }
  if (!only_read) groups.erase(groups.begin(), groups.begin() + done);
}

// A thread may end before its stores are seen, but not before they have read shared memory.
void check_end(Thread &thread) {
  if (!thread.chains.empty()) fail("a thread ends with a wgmma in flight");
  for (auto &group : thread.copies)
    for (Copy &copy : group) {
      if (copy.read.empty()) fail("a thread ends while a store of it still reads shared memory");
      thread.block->launch->unfinished.push_back(copy);
    }
}

}  // namespace machine
