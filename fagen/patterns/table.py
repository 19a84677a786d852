"""The named patterns: how each slug is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from fagen.errors import UsageError
from fagen.patterns import user
from fagen.patterns.base import Pattern, StaticPattern
from fagen.patterns.blocks import BigBird, Butterfly
from fagen.patterns.data import BlockLists, Documents
from fagen.patterns.mix import Mix, Share
from fagen.patterns.parts import Dilated, Fixed, Longformer, Strided
from fagen.patterns.runs import (
    CAUSAL,
    CAUSAL_TOP_LEFT,
    DENSE,
    Band,
    BlockDiagonal,
    PrefixLM,
)

LARGEST_BLOCK = 4096
LARGEST = 1 << 28  # of a distance, so that sums of several stay in 32 bits


@dataclass(frozen=True)
class PatternRow:
    """One line of the table: a slug with its numbers, and what they make."""

    slug: str  # for help texts
    regex: str
    make: Callable[[re.Match[str]], Pattern]
    kind: type[Pattern]
    says: str


def _number(text: str, least: int = 1, most: int = LARGEST) -> int:
    value = int(text)
    if not least <= value <= most:
        raise UsageError(f"{value} in a pattern is not between {least} and {most}")
    return value


def _window(match: re.Match[str]) -> Pattern:
    return Band(int(match[1]), int(match[2] or 0))


def _dilated(match: re.Match[str]) -> Pattern:
    window, step = _number(match[1], 0), _number(match[2])
    if window * step > LARGEST:
        raise UsageError(f"dilated-w{window}-d{step} reaches {window * step} positions",
                         f"at most {LARGEST}")
    return Dilated(window, step, bool(match[3]))


def _fixed(match: re.Match[str]) -> Pattern:
    stride = _number(match[1])
    return Fixed(stride, _number(match[2], most=stride), bool(match[3]))


def _longformer(match: re.Match[str]) -> Pattern:
    return Longformer(_number(match[1], 0), _number(match[2], 0), bool(match[3]))


def _bigbird(match: re.Match[str]) -> Pattern:
    window, globals_ = _number(match[1], 0), _number(match[2], 0)
    block, random, seed = int(match[4] or 64), int(match[3]), int(match[5])
    _number(str(block))
    if random % block or not 1 <= random // block <= 64:
        raise UsageError(f"{random} random keys are not 1 to 64 blocks of {block}",
                         f"for example r{block} or r{2 * block}")
    return BigBird(window, globals_, bool(match[6]), random, block, seed)


def _blocks(match: re.Match[str]) -> Pattern:
    sizes = [int(match[1]), int(match[2] or match[1])]
    for size in sizes:
        if size % 16 or not 16 <= size <= LARGEST_BLOCK:
            raise UsageError(f"blocks of {size} are not served",
                             f"multiples of 16 from 16 to {LARGEST_BLOCK}")
    return BlockLists(bool(match[3]), block_q=sizes[0], block_kv=sizes[1])


def _mix(slug: str) -> Pattern:
    shares, heads = [], 1
    for word in slug.split("_")[1:]:
        if word.isdecimal():
            heads = int(word)
            continue
        pattern = parse_pattern(word)
        if not isinstance(pattern, StaticPattern):
            raise UsageError(f"{word} comes with the call and cannot be mixed",
                             "a mask of the call may differ from head to head by itself")
        shares.append(Share(heads, pattern))
        heads = 1
    return Mix(tuple(shares))


_N, _C = r"(\d{1,9})", "(-causal)?"

PATTERNS: tuple[PatternRow, ...] = (
    PatternRow("dense", "dense", lambda m: DENSE, Band, "every query sees every key"),
    PatternRow("causal", "causal", lambda m: CAUSAL, Band,
               "keys up to the query; the last query sees the last key"),
    PatternRow("causal-topleft", "causal-topleft", lambda m: CAUSAL_TOP_LEFT, Band,
               "keys up to the query; the first query sees the first key"),
    PatternRow("windowL[xR]", f"window{_N}(?:x{_N})?", _window, Band,
               "L keys before the query, itself, and R after; aligned as causal is"),
    PatternRow("prefixN", f"prefix{_N}", lambda m: PrefixLM(_number(m[1])), PrefixLM,
               "causal, but every query sees the first N keys (prefix-LM)"),
    PatternRow("blockdiagN[-causal]", f"blockdiag{_N}{_C}",
               lambda m: BlockDiagonal(_number(m[1]), bool(m[2])), BlockDiagonal,
               "blocks of N positions that see themselves only"),
    PatternRow("dilated-wW-dD[-causal]", f"dilated-w{_N}-d{_N}{_C}", _dilated, Dilated,
               "W keys on either side, D positions apart"),
    PatternRow("strided-sS[-causal]", f"strided-s{_N}{_C}",
               lambda m: Strided(_number(m[1]), bool(m[2])), Strided,
               "the S - 1 keys on either side, and every S-th beyond (Sparse Transformer)"),
    PatternRow("fixed-sS-cC[-causal]", f"fixed-s{_N}-c{_N}{_C}", _fixed, Fixed,
               "the query's block of S, and the last C keys of every block (Sparse Transformer)"),
    PatternRow("longformer-wW-gG[-causal]", f"longformer-w{_N}-g{_N}{_C}", _longformer, Longformer,
               "W keys on either side; the first G positions see all and are seen by all"),
    PatternRow("bigbird-wW-gG-rR[-bB]-seedS[-causal]",
               f"bigbird-w{_N}-g{_N}-r{_N}(?:-b{_N})?-seed{_N}{_C}", _bigbird, BigBird,
               "longformer, and R random keys per query in blocks of B (64)"),
    PatternRow("butterfly-bB[-causal]", f"butterfly-b{_N}{_C}",
               lambda m: Butterfly(_number(m[1]), bool(m[2])), Butterfly,
               "blocks of B that see those whose number differs in at most one bit"),
    PatternRow("blocksB[xBKV][-causal]", f"blocks{_N}(?:x{_N})?{_C}", _blocks, BlockLists,
               "blocks of B queries by BKV keys (B) that each call lists"),
    PatternRow("documents[-causal]", f"documents{_C}", lambda m: Documents(bool(m[1])), Documents,
               "a run of keys per query that each call gives: packed documents"),
    PatternRow("mix_[N_]PATTERN_[N_]PATTERN...", r"mix(?:_(?:[1-9]\d?_)?[a-z][a-z0-9-]*){2,16}",
               lambda m: _mix(m[0]), Mix,
               "heads in turns, round after round: N (1) of the one, N of the next, ..."),
)


def parse_pattern(slug: str) -> Pattern:
    for row in PATTERNS:
        match = re.fullmatch(row.regex, slug, re.ASCII)
        if match:
            return row.make(match)
    if own := user.given().get(slug):
        return own
    raise UsageError(
        f"unknown pattern {slug!r}", "one of: " + ", ".join(row.slug for row in PATTERNS)
    )
