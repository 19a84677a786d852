/* The launch plan: what the launcher must know of a kernel, as plain data. Python writes these
 * tables (see fagen/families/base.py, class Plan); launcher.c evaluates them for a workload. */
#ifndef FAGEN_PLAN_H
#define FAGEN_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include "params.h"
#include "host.h"

/* One factor of a product. `arg` divides or pads where the factor says so. The sequences of a packed
 * batch are counted together, as one entry: BATCH is arg, and there are total / arg + batch tiles,
 * which is enough to give every sequence whole ones (templates/device/sequence.h numbers them). */
enum fagen_factor_kind {
  FAGEN_ONE = 0,      /* arg                              */
  FAGEN_BATCH,        /* batch * arg                      */
  FAGEN_HEADS,        /* heads * arg                      */
  FAGEN_KV_HEADS,     /* kv_heads * arg                   */
  FAGEN_Q_TILES,      /* ceil(seqlen_q / arg)             */
  FAGEN_KV_TILES,     /* ceil(seqlen_kv / arg)            */
  FAGEN_Q_PADDED,     /* ceil(seqlen_q / arg) * arg       */
  FAGEN_KV_PADDED     /* ceil(seqlen_kv / arg) * arg      */
};
struct fagen_factor { int32_t kind, arg; };
struct fagen_product { int32_t count; struct fagen_factor factor[5]; };

/* A tensor of fagen_params, as the launcher names it for tensor maps. */
enum fagen_tensor {
  FAGEN_Q = 0, FAGEN_K, FAGEN_V, FAGEN_O, FAGEN_DOUT, FAGEN_DQ, FAGEN_DK, FAGEN_DV
};

/* A TMA tensor map over one tensor, dims (dim, row, head, batch), box (box_dim, box_rows, 1, 1).
 * swizzle is 0, 32, 64 or 128 bytes; l2_fetch, how many bytes a load brings into the L2 cache at
 * once, 0 (as many as it asks for), 64, 128 or 256. Maps follow fagen_params in the kernel's
 * arguments. */
struct fagen_map { int32_t tensor, box_dim, box_rows, swizzle, head_dim, l2_fetch; };

/* One launch. ctas_per_sm != 0 makes it persistent: grid.x is at most SMs * ctas_per_sm.
 * overlap != 0 lets it start before the previous step ends (programmatic dependent launch). */
struct fagen_step {
  const char *symbol;
  struct fagen_product grid[3];
  int32_t block, shared_bytes, ctas_per_sm, overlap, map_count;
  struct fagen_map map[8];
};

/* Scratch memory: bytes as a product; zeroed before the first step when `zero` is not 0. */
struct fagen_region { struct fagen_product bytes; int32_t zero; };

/* The sizes a kernel was tuned for; all 0 when it was not. Packed sequences: their mean lengths. */
struct fagen_sizes { int32_t batch, heads, kv_heads, seqlen_q, seqlen_kv; };

enum fagen_mask_kind { FAGEN_NO_MASK = 0, FAGEN_BLOCKS = 1, FAGEN_RUNS = 2 };

enum fagen_op { FAGEN_FWD = 0, FAGEN_BWD = 1 };

/* One kernel of a package. `entry` for a host kernel, `image` for a cubin. */
struct fagen_kernel {
  const char *problem;   /* the slug, e.g. fwd-bf16-d128-causal */
  const char *family, *config, *target;
  const char *sha256;    /* of the image, lower-case hex */
  fagen_host_kernel entry;
  const unsigned char *image;
  size_t image_bytes;
  const char *isa;       /* host: the instruction sets it needs, a space between them */
  int32_t capability_major, capability_minor;   /* 0, 0 for the host */
  int32_t sm_count;      /* of the GPU it was tuned on; 0 for the host */
  int32_t op, dtype, head_dim, head_dim_v;      /* enum fagen_op, enum fagen_dtype */
  int32_t varlen;        /* 1: sequences are packed, see fagen_params */
  int32_t mask;          /* enum fagen_mask_kind: what it reads of fagen_params.mask */
  struct fagen_sizes tuned;
  int32_t region_count, step_count;
  struct fagen_region region[4];
  struct fagen_step step[4];
};

#endif
