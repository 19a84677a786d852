"""Charts as inline SVG: no script, no font, no file beside the page. Colours come from the page's
style sheet, by class. What a mark stands for is in its title, which browsers show on hovering."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 16, 12, 40
_MINOR = 2.0  # decades; a log axis that spans less is marked at 1, 2 and 5


@dataclass(frozen=True)
class Mark:
    """A point: where, what it is, and its class."""

    x: float
    y: float
    says: str = ""
    kind: str = "point"


@dataclass(frozen=True)
class Axis:
    """Values from low to high on pixels from start to end."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (
            map(math.log, (self.low, self.high, value)) if self.log
            else (self.low, self.high, value)
        )
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        if self.log:
            steps = (1, 2, 5) if math.log10(self.high / self.low) < _MINOR else (1,)
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            all_ = [s * 10.0**e for e in range(first, last + 1) for s in steps]
            return [t for t in all_ if self.low <= t <= self.high * 1.0001]
        step = _round_step((self.high - self.low) / 4)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)


def span(values: Sequence[float], start: float, end: float, *, log: bool = False,
         zero: bool = False) -> Axis:
    """An axis that holds all values with some room."""
    low, high = min(values), max(values)
    if log:
        low, high = low / 1.15, high * 1.15
    else:
        room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
        low, high = (0.0 if zero and low >= 0 else low - room), high + room
    return Axis(low, high, start, end, log)


def text(x: float, y: float, says: object, anchor: str = "middle", kind: str = "tick") -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">'
            f"{escape(str(says))}</text>")


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def circle(x: float, y: float, mark: Mark, radius: float = 3.0) -> str:
    return (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{mark.kind}">'
            f"<title>{escape(mark.says)}</title></circle>")


def svg(label: str, width: float, height: float, parts: Sequence[str]) -> str:
    return (f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}">' + "".join(parts) + "</svg>")


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def frame(x: Axis, y: Axis, x_title: str, y_title: str) -> list[str]:
    """Grid lines, ticks and titles."""
    parts = []
    for tick in y.ticks():
        parts += [line(x.start, y.at(tick), x.end, y.at(tick), "grid"),
                  text(x.start - 6, y.at(tick) + 4, number(tick), "end")]
    for tick in x.ticks():
        parts += [line(x.at(tick), y.start, x.at(tick), y.start + 4, "axis"),
                  text(x.at(tick), y.start + 16, number(tick))]
    middle = (y.start + y.end) / 2
    parts += [
        line(x.start, y.start, x.end, y.start, "axis"),
        text((x.start + x.end) / 2, y.start + 33, x_title, kind="title"),
        f'<g transform="translate(13 {middle:.1f}) rotate(-90)">'
        + text(0, 0, y_title, kind="title") + "</g>",
    ]
    return parts


def progress(marks: Sequence[Mark], x_title: str, y_title: str) -> str:
    """Points as they came, and the best so far as a stair."""
    x = span([m.x for m in marks], _LEFT, WIDTH - _RIGHT, zero=True)
    y = span([m.y for m in marks], HEIGHT - _BOTTOM, _TOP, log=True)
    parts = frame(x, y, x_title, y_title)
    stair, best = "", math.inf
    for m in marks:
        if m.y < best:
            start = f"L{x.at(m.x):.1f} {y.at(best):.1f}" if stair else "M"
            stair += f"{start}{'L' if stair else ''}{x.at(m.x):.1f} {y.at(m.y):.1f}"
            best = m.y
    stair += f"L{x.end:.1f} {y.at(best):.1f}"
    parts += [circle(x.at(m.x), y.at(m.y), m) for m in marks]
    parts.append(f'<path d="{stair}" class="best"/>')
    return svg(f"{y_title} over {x_title}", WIDTH, HEIGHT, parts)


def bars(rows: Sequence[tuple[str, float, str]], label: str) -> str:
    """A horizontal bar per row: name, length, and what stands behind the bar."""
    left, room, height = 170, 330, 22
    longest = max((value for _, value, _ in rows), default=0.0) or 1.0
    parts = []
    for place, (name, value, says) in enumerate(rows):
        top = place * height + 4
        parts += [
            text(left - 8, top + 12, name, "end", "label"),
            f'<rect x="{left}" y="{top}" width="{max(1.0, room * value / longest):.1f}" '
            f'height="{height - 7}" class="bar"/>',
            text(left + 8 + room * value / longest, top + 12, says, "start"),
        ]
    return svg(label, WIDTH, len(rows) * height + 8, parts)


def slices(name: str, choices: Sequence[object], marks: Sequence[Mark], y_title: str) -> str:
    """One knob: the points at each of its choices. ``Mark.x`` is the choice's place."""
    width, height, left = 300, 190, 58
    y = span([m.y for m in marks], height - _BOTTOM, _TOP, log=True)
    x = Axis(-0.5, len(choices) - 0.5, left, width - 8)
    parts = [p for tick in y.ticks() for p in (
        line(left, y.at(tick), x.end, y.at(tick), "grid"),
        text(left - 6, y.at(tick) + 4, number(tick), "end"))]
    for place, choice in enumerate(choices):
        parts.append(text(x.at(place), y.start + 16, str(choice).lower()))
        here = [m.y for m in marks if m.x == place]
        if here:
            at = y.at(min(here))
            parts.append(line(x.at(place - 0.3), at, x.at(place + 0.3), at, "best"))
    parts += [circle(x.at(m.x), y.at(m.y), m, 2.4) for m in marks]
    parts += [line(left, y.start, x.end, y.start, "axis"),
              text((left + x.end) / 2, height - 6, name, kind="title")]
    return svg(f"{y_title} by {name}", width, height, parts)


def intervals(rows: Sequence[tuple[str, float, float, float, str]], label: str) -> str:
    """A row per finalist: name, low, middle, high in percent, and its class."""
    left, height = 300, 20
    x = span([v for _, low, mid, high, _ in rows for v in (low, mid, high, 0.0)], left, WIDTH - 20)
    bottom = len(rows) * height + 8
    parts = [p for tick in x.ticks() for p in (
        line(x.at(tick), 4, x.at(tick), bottom, "grid"),
        text(x.at(tick), bottom + 14, f"{tick:+.3g}%"))]
    parts.append(line(x.at(0), 4, x.at(0), bottom, "axis"))
    for place, (name, low, mid, high, kind) in enumerate(rows):
        y = place * height + 14
        says = f"{name}: {mid:+.2f}% ({low:+.2f}% to {high:+.2f}%)"
        parts += [text(left - 10, y + 4, name, "end", "label"),
                  line(x.at(low), y, x.at(high), y, f"range {kind}"),
                  circle(x.at(mid), y, Mark(mid, 0, says, kind), 4)]
    return svg(label, WIDTH, bottom + 22, parts)


def roofline(marks: Sequence[Mark], flops: float, bandwidth: float) -> str:
    """TFLOP/s over flops per byte, both logarithmic, under the ceilings that are known (0: not):
    ``flops`` in TFLOP/s, ``bandwidth`` in GB/s."""
    ridge = flops * 1e3 / bandwidth if flops and bandwidth else 0.0
    xs = [m.x for m in marks] + ([ridge] if ridge else [])
    x = span([min(xs) / 2, max(xs) * 2], _LEFT, WIDTH - _RIGHT, log=True)
    ys = [m.y for m in marks] + ([flops] if flops else [])
    y = span([min(ys) / 2, max(ys) * 1.3], HEIGHT - _BOTTOM, _TOP, log=True)
    parts = frame(x, y, "flops per byte moved", "TFLOP/s")
    if bandwidth:
        low = max(x.low, y.low * 1e3 / bandwidth)
        end = min(ridge or x.high, x.high)
        if low < end:
            top = end * bandwidth * 1e-3
            if top > y.high:
                end, top = y.high * 1e3 / bandwidth, y.high
            parts.append(line(x.at(low), y.at(low * bandwidth * 1e-3), x.at(end), y.at(top),
                              "ceiling"))
    if flops:
        says = f"matrix product {number(flops)} TFLOP/s"
        parts += [line(x.at(max(ridge, x.low)), y.at(flops), x.end, y.at(flops), "ceiling"),
                  text(x.end - 4, y.at(flops) - 5, says, "end")]
    parts += [circle(x.at(m.x), y.at(m.y), m, 4.5) for m in marks]
    return svg("roofline", WIDTH, HEIGHT, parts)
