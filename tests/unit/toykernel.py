"""A family made for tests: textbook attention on the host in fp32, right and slow.

It uses what a real family uses: a plan with scratch memory, the team of threads, the pattern
header. Sources are made here rather than rendered, so that these tests need no kernel template.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from fagen import paths
from fagen.build import Builder, Cache
from fagen.families.base import Family, Kernel, knob
from fagen.families.plan import Plan, Region, product
from fagen.link import Part
from fagen.model import Candidate, Problem, Source
from fagen.render import symbol
from fagen.target import Target
from fagen.workload import Workload

BEFORE = """
#include <math.h>
constexpr bool VARLEN = %s;
"""
BODY = r"""
constexpr int D = %(head_dim)d, DV = %(head_dim_v)d;
using Pattern = %(pattern)s;

static float dot(const float *x, const float *y, int n) {
  float sum = 0;
  for (int i = 0; i < n; i++) sum += x[i] * y[i];
  return sum;
}

// One head's rows of a tensor.
struct Head {
  float *first;
  int64_t stride;
  float *operator[](int row) const { return first + row * stride; }
};

static Head q_rows(const Sequence &s, const fagen_view &t, int h) {
  return {s.q_rows<float>(t, h), t.row_stride};
}
static Head kv_rows(const Sequence &s, const fagen_view &t, int h) {
  return {s.kv_rows<float>(t, h), t.row_stride};
}

static void forward(const fagen_params *p, const Sequence &s, int h) {
  const int hk = h / (p->heads / p->kv_heads);
  const Pattern pattern = s.pattern<Pattern>(h);
  const Head q = q_rows(s, p->q, h), o = q_rows(s, p->o, h);
  const Head k = kv_rows(s, p->k, hk), v = kv_rows(s, p->v, hk);
  for (int i = 0; i < s.seqlen_q(); i++) {
    // The scratch row arrives as zeros: the running sum of the exponentials.
    float *sum = (float *)p->work[0] + s.q_block(1, h, i);
    float top = -INFINITY, *out = o[i];
    for (int j = 0; j < s.seqlen_kv(); j++)
      if (pattern.keep(i, j)) top = fmaxf(top, p->scale * dot(q[i], k[j], D));
    for (int d = 0; d < DV; d++) out[d] = 0;
    for (int j = 0; j < s.seqlen_kv(); j++) {
      if (!pattern.keep(i, j)) continue;
      const float e = expf(p->scale * dot(q[i], k[j], D) - top);
      *sum += e;
      for (int d = 0; d < DV; d++) out[d] += e * v[j][d];
    }
    for (int d = 0; d < DV; d++) out[d] /= *sum > 0 ? *sum : 1;
    p->lse[s.lse_row(h) + i] = *sum > 0 ? top + logf(*sum) : -INFINITY;
  }
}

static void backward(const fagen_params *p, const Sequence &s, int hk) {
  const int group = p->heads / p->kv_heads;
  const Head k = kv_rows(s, p->k, hk), v = kv_rows(s, p->v, hk);
  const Head dk = kv_rows(s, p->dk, hk), dv = kv_rows(s, p->dv, hk);
  for (int j = 0; j < s.seqlen_kv(); j++) {
    for (int d = 0; d < D; d++) dk[j][d] = 0;
    for (int d = 0; d < DV; d++) dv[j][d] = 0;
  }
  for (int h = hk * group; h < (hk + 1) * group; h++) {
    const Pattern pattern = s.pattern<Pattern>(h);
    const Head q = q_rows(s, p->q, h), o = q_rows(s, p->o, h);
    const Head dout = q_rows(s, p->dout, h), dq = q_rows(s, p->dq, h);
    for (int i = 0; i < s.seqlen_q(); i++) {
      const int64_t at = s.lse_row(h) + i;
      const float delta = dot(o[i], dout[i], DV) - (p->dlse ? p->dlse[at] : 0);
      for (int d = 0; d < D; d++) dq[i][d] = 0;
      for (int j = 0; j < s.seqlen_kv(); j++) {
        if (!pattern.keep(i, j)) continue;
        const float e = expf(p->scale * dot(q[i], k[j], D) - p->lse[at]);
        const float ds = e * (dot(dout[i], v[j], DV) - delta) * p->scale;
        for (int d = 0; d < D; d++) dq[i][d] += ds * k[j][d], dk[j][d] += ds * q[i][d];
        for (int d = 0; d < DV; d++) dv[j][d] += e * dout[i][d];
      }
    }
  }
}

extern "C" __attribute__((visibility("default"))) int %(symbol)s(const fagen_params *p,
                                                                 const fagen_host *host) {
  host->parallel(host->threads, [](void *arg, int32_t thread, int32_t threads) {
    const fagen_params *p = (const fagen_params *)arg;
    const int heads = %(backward)d ? p->kv_heads : p->heads;
    for (int i = thread; i < p->batch * heads; i += threads)
      (%(backward)d ? backward : forward)(p, Sequence(*p, i / heads), i %% heads);
  }, (void *)p);
  return %(answer)d;
}
"""


@dataclass(frozen=True)
class Knobs:
    answer: int = knob(0, 7, default=0, says="what the kernel returns")


def _plan(candidate: Candidate) -> Plan:
    rows = product(batch=1, heads=1, q_padded=1, one=4)
    return Plan(regions=(Region(rows, zero=True),))


_KERNEL = Kernel("none", Knobs, (), _plan, lambda problem, target: Knobs(), lambda c, w: 0)
TOY = Family(
    "toy", "textbook attention", "host", {"fwd": _KERNEL, "bwd": _KERNEL},
    runs_on=lambda target: target.kind == "cpu", arch=lambda target: "x86-64",
)
# No instruction set beyond the base: runs everywhere.
TARGET = Target("anywhere", "cpu", isa=(), cores=2)


def candidate(slug: str, *, target: Target = TARGET, answer: int = 0) -> Candidate:
    return Candidate(Problem.parse(slug), target, TOY, Knobs(answer))


def source(c: Candidate) -> Source:
    """One self-contained text, as the renderer makes them."""
    seen: set[str] = set()

    def text_of(header: str) -> str:
        if header in seen:
            return ""
        seen.add(header)
        text = (paths.templates() / header).read_text()
        return re.sub(r'#include "(.*)"', lambda match: text_of(match[1]), text)

    headers = (*c.problem.pattern.headers, "device/host.h", "device/sequence.h")
    body = BODY % {
        "head_dim": c.problem.head_dim,
        "head_dim_v": c.problem.head_dim_v,
        "pattern": c.problem.pattern.cpp,
        "backward": c.problem.op == "bwd",
        "symbol": symbol(c),
        "answer": c.config.answer,
    }
    before = BEFORE % ("true" if "varlen" in c.problem.features else "false")
    text = before + "\n".join(map(text_of, headers)) + body
    return Source(text, hashlib.sha256(text.encode()).hexdigest(), "cpp")


def part(slug: str, cache: Path, workload: Workload | None = None, *, isa: tuple[str, ...] = (),
         name: str = "anywhere", answer: int = 0) -> Part:
    """A built kernel. ``isa`` only labels it: the code itself stays plain."""
    plain = candidate(slug, answer=answer)
    labelled = candidate(slug, target=replace(TARGET, name=name, isa=isa), answer=answer)
    text = source(labelled)
    return Part(labelled, text, Builder(Cache(cache)).build(plain, text), workload)
