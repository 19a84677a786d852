"""How long the sequences of a packed batch are: the same long-tailed lengths every time.

Drawn as real batches are: many short sequences and few long ones. The longest has exactly the
length that was asked for and all together the number of rows; with few to share, some are empty.
"""

from __future__ import annotations

_SPREAD = 1.0  # of the logarithm of a length


def draw(count: int, longest: int, total: int, seed: str) -> tuple[int, ...]:
    """``longest <= total <= count * longest`` rows over ``count`` sequences."""
    import random
    from statistics import NormalDist  # takes long to import, and is seldom needed

    source, normal = random.Random(f"{count} {longest} {total} {seed}"), NormalDist()
    at = source.randrange(count)
    shares = [normal.inv_cdf(0.001 + 0.998 * source.random()) for _ in range(count)]
    lengths = _share(total - longest, [2.718281828 ** (_SPREAD * s) for s in shares[1:]], longest)
    return (*lengths[:at], longest, *lengths[at:])


def _share(total: int, shares: list[float], most: int) -> list[int]:
    """Whole numbers in proportion to the shares, none above ``most``."""
    lengths, passed, before = [], 0.0, 0
    whole = sum(shares) or 1.0
    for share in shares:
        passed += share
        end = min(total, round(total * passed / whole))
        lengths.append(min(most, end - before))
        before = end
    missing = total - sum(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):  # what was cut off the longest
        more = min(missing, most - lengths[i])
        lengths[i] += more
        missing -= more
    return lengths
