"""A family whose times are a formula, and a pool that plays it back with noise: no compiler, no
device. Run as a program it tunes once, so that a test can kill it."""

from __future__ import annotations

import hashlib
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from fagen.families.base import Family, Kernel, Rule, Space, knob
from fagen.families.plan import Plan, Step, product
from fagen.model import Binary, Candidate, Failure, Measurement, Problem, Source
from fagen.neighbours import Conditions
from fagen.target import Target
from fagen.workload import Workload

TARGET = Target("synthetic", "cuda", (9, 0), 132, 227 << 10, l2_bytes=50 << 20, memory_gb_s=4800.0)
PROBLEM = Problem.parse("fwd-bf16-d128-causal")
WORKLOAD = Workload(4, 32, 8, 8192, 8192)


@dataclass(frozen=True)
class Config:
    block_m: int = knob(64, 128, 192, 256, default=64, says="query rows")
    block_n: int = knob(32, 64, 80, 96, 128, 176, default=64, says="keys")
    stages: int = knob(1, 2, 3, 4, default=2, says="tiles in flight")
    warps: int = knob(4, 8, 12, 16, default=4, says="warps")
    unroll: int = knob(1, 2, 4, default=1, says="unrolling")
    pingpong: bool = knob(False, True, default=False, says="two groups take turns")


def _shared(c: Candidate) -> int:
    d = c.problem.head_dim
    return 2 * d * (c.config.block_m + 2 * c.config.stages * c.config.block_n)


RULES = (
    Rule("the tiles fit in shared memory", lambda c: _shared(c) <= c.target.shared_bytes),
    Rule("a warp has at least 16 rows", lambda c: c.config.block_m >= 16 * c.config.warps),
    Rule("turns need 8 warps", lambda c: not c.config.pingpong or c.config.warps >= 8),
)


def _family(name: str, default: Config, rules: tuple[Rule, ...] = RULES) -> Family:
    kernel = Kernel(
        "none", Config, rules,
        lambda c: Plan((Step("s", (product(), product(), product()), 128, _shared(c)),)),
        lambda problem, target: default, lambda c, w: 3 * w.min_bytes(c.problem),
    )
    return Family(name, "made for tests", "nvcc", {"fwd": kernel, "bwd": kernel},
                  lambda t: t.kind == "cuda", lambda t: "sm_90a")


FAMILY = _family("synthetic", Config())
SLOWER = _family("slower", Config(block_m=128, warps=8))


def limited(*rules: Rule) -> Family:
    """A smaller space."""
    return _family("synthetic", Config(block_m=128, block_n=80, unroll=2), (*RULES, *rules))


def space(problem: Problem = PROBLEM, family: Family = FAMILY) -> list[Candidate]:
    return list(Space(problem, TARGET, family).legal())


def true_us(c: Candidate, workload: Workload = WORKLOAD) -> float:
    """Knobs interact, the surface is a little rough, and the best is far from the default."""
    k = c.config
    size = workload.flops(c.problem) / 1e9
    tile = abs(math.log2(k.block_m * k.block_n / (128 * 128))) * 0.12
    balance = abs(k.warps - k.block_m / 16) * 0.03
    latency = 0.35 / k.stages + (0.05 * (k.stages - 2) if k.stages > 2 else 0)
    overlap = -0.12 if k.pingpong and k.block_m >= 128 else 0.03 * k.pingpong
    unroll = {1: 0.05, 2: 0.0, 4: 0.02 if k.block_n <= 96 else 0.09}[k.unroll]
    rough = 0.015 * _hash(str(c.config))
    lag = 1.4 if c.family.name == "slower" else 1.0
    return size * lag * (1 + tile + balance + latency + overlap + unroll + rough)


def _hash(text: str) -> float:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


@dataclass(frozen=True)
class Built:
    binary: Binary


class FakeRenderer:
    version = "1"

    def render(self, candidate: Candidate) -> Source:
        text = f"{self.version} {candidate}"
        return Source(text, hashlib.sha256(text.encode()).hexdigest(), "cuda")


class FakePool:
    """Noise is a few per mille for a long measurement, and drifts slowly for all alike."""

    def __init__(
        self, seed: int = 0, noise: float = 0.004,
        times: Callable[[Candidate, Workload], float] = true_us,
        fails: Callable[[Candidate], str] = lambda c: "",
    ) -> None:
        self.renderer = FakeRenderer()
        self.lap_samples: dict[Candidate, list[float]] = {}
        self.prepared: list[Candidate] = []
        self.measured: list[Candidate] = []
        self.lapped: list[Candidate] = []
        self.pause_s = 0.0
        self.rivals: dict[str, float] = {}  # other implementations: microseconds
        self.storms = 0.0  # share of the rounds of a lap in which another process has the device
        self.conditions = Conditions()
        self._random = random.Random(seed)
        self._looks = random.Random(seed)  # whether and when a reference is timed changes nothing
        self._noise, self._times, self._fails = noise, times, fails

    def prepare(self, candidates: Iterable[Candidate]) -> None:
        self.prepared += candidates

    def build(self, candidate: Candidate) -> Built | Failure:
        digest = self.renderer.render(candidate).digest
        registers = 64 + int(100 * _hash(str(candidate)))
        return Built(Binary("k.cubin", digest, "nvcc 13.0.88", "sm_90a", registers))

    def measure(
        self, candidate: Candidate, workload: Workload, seconds: float
    ) -> Measurement | Failure:
        if self.pause_s:
            time.sleep(self.pause_s)
        self.measured.append(candidate)
        if self._fails(candidate):
            return Failure("run", self._fails(candidate), "it fell", f"fagen verify {candidate}")
        samples = [self._sample(candidate, workload) for _ in range(max(3, round(100 * seconds)))]
        return _measurement(candidate, workload, samples)

    def reference(
        self, candidate: Candidate, workload: Workload, seconds: float
    ) -> float | Failure:
        return self._times(candidate, workload) * math.exp(self._looks.gauss(0, self._noise))

    def lap(
        self, candidates: Sequence[Candidate], workload: Workload, rounds: int
    ) -> list[Measurement | Failure]:
        self.lapped += candidates
        self.lap_samples = {c: [] for c in candidates}
        for _ in range(rounds):
            drift = 1 + 0.02 * self._random.random()
            storm = self._random.random() < self.storms
            for c in candidates:
                slower = 1 + storm * self._random.uniform(0.3, 0.9)
                self.lap_samples[c].append(drift * slower * self._sample(c, workload))
        return [_measurement(c, workload, self.lap_samples[c]) for c in candidates]

    def contest(
        self, candidate: Candidate, workload: Workload, rounds: int
    ) -> dict[str, list[float]]:
        ours = [self._sample(candidate, workload) for _ in range(rounds)]
        return {"": ours, **{
            name: [us * math.exp(self._random.gauss(0, self._noise)) for _ in range(rounds)]
            for name, us in self.rivals.items()
        }}

    def _sample(self, candidate: Candidate, workload: Workload) -> float:
        spread = self._random.gauss(0, self._noise) + abs(self._random.gauss(0, self._noise))
        return self._times(candidate, workload) * math.exp(spread)


def _measurement(c: Candidate, workload: Workload, samples: list[float]) -> Measurement:
    middle = median(samples)
    return Measurement(
        middle, min(samples), max(samples), len(samples), 0.4, "o", 1980.0,
        workload.flops(c.problem) / middle / 1e6,
    )


class Stopping(FakePool):
    """Waits for ever once so many candidates were measured."""

    def __init__(self, seed: int, most: int) -> None:
        super().__init__(seed)
        self.most = most

    def measure(
        self, candidate: Candidate, workload: Workload, seconds: float
    ) -> Measurement | Failure:
        while candidate not in self.measured and len(set(self.measured)) >= self.most:
            time.sleep(1.0)
        return super().measure(candidate, workload, seconds)


def main(folder: Path, seed: int, pause_s: float, most: int) -> None:
    from fagen.search import Budget, tune
    from fagen.store import Store

    pool = Stopping(seed, most)
    pool.pause_s = pause_s
    print(os.getpid(), flush=True)
    entry = tune(
        PROBLEM, [WORKLOAD], TARGET, [FAMILY], pool, Store([], folder / "tuned"),
        folder / "journals",
        Budget(trials=60, seed=seed), lambda event: print(event.kind, event.done, flush=True),
    )
    print(asdict(entry.measurement), len(pool.measured))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
