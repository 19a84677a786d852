/* A user's C program: one causal forward on the host through the emitted library. Prints its inputs
 * and results as JSON, so that the test can compare them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "fagen.h"

enum { HEADS = 2, ROWS = 5, DIM = 8, COUNT = HEADS * ROWS * DIM };

static struct fagen_view dense(float *data) {
  return (struct fagen_view){data, COUNT, ROWS * DIM, DIM};
}

static void print(const char *name, const float *data, int count) {
  printf("\"%s\": [", name);
  for (int i = 0; i < count; i++) printf("%s%.9g", i ? ", " : "", (double)data[i]);
  printf("], ");
}

int main(void) {
  static float q[COUNT], k[COUNT], v[COUNT], o[COUNT], lse[HEADS * ROWS];
  for (int i = 0; i < COUNT; i++) {
    q[i] = sinf((float)i);
    k[i] = cosf((float)(2 * i));
    v[i] = sinf((float)(3 * i));
  }
  struct fagen_params p = {.q = dense(q), .k = dense(k), .v = dense(v), .o = dense(o), .lse = lse,
                           .batch = 1, .heads = HEADS, .kv_heads = HEADS, .seqlen_q = ROWS,
                           .seqlen_kv = ROWS, .scale = 0.25f};
  const int kernel = fagen_select("fwd-fp32-d8-causal", &p, -1);
  const int64_t bytes = kernel < 0 ? -1 : fagen_workspace_bytes(kernel, &p);
  void *workspace = bytes > 0 ? aligned_alloc(256, (size_t)bytes) : NULL;
  if (bytes < 0 || fagen_run(kernel, &p, workspace, NULL, 2)) {
    fprintf(stderr, "%s\n", fagen_last_error());
    return 1;
  }
  free(workspace);
  printf("{");
  print("q", q, COUNT);
  print("k", k, COUNT);
  print("v", v, COUNT);
  print("o", o, COUNT);
  print("lse", lse, HEADS * ROWS);
  fagen_select("fwd-fp64-d8-causal", &p, -1);
  printf("\"refused\": \"%s\"}\n", fagen_last_error());
  return 0;
}
