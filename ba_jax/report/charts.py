"""Line charts as inline SVG; colours come from the page's style, so that they follow its mode."""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from ba_jax.report.runs import Points

WIDTH, HEIGHT = 360, 220  # about what a phone shows of it, so that its text stays readable there
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 22, 38
_LOG_RATIO = 20  # of the largest to the smallest value, from which the axis is logarithmic
_BUCKETS = 300  # along the axis; of each, a line keeps its least and greatest point


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve: its label, points, and class in the style; `dots` marks every point."""

    label: str
    points: Points
    style: str
    dots: bool = False


def finite(points: Points) -> Points:
    """The points whose value is finite."""
    return tuple((step, value) for step, value in points if math.isfinite(value))


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether positive values span so much that a linear axis would hide most of them."""
    return bool(values) and min(values) > 0 and max(values) / min(values) >= _LOG_RATIO


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) in [low, high], at most `most` + 1."""
    if high <= low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [step * i for i in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten in [low, high], with 2 and 5 times them where there is room."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**p for p in powers for f in factors]
        found = [x for x in found if low * (1 - 1e-9) <= x <= high * (1 + 1e-9)]
        if len(found) <= most:
            return found
    return found[:: -(-len(found) // most)]


def number(value: float) -> str:
    """A tick's or a table's number, four digits: 12000 -> `12k`, 0.0001 -> `1e-4`."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    size = abs(value)
    for least, unit, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= least:
            return _minus(f"{value / unit:.4g}{suffix}")
    if 0 < size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return _minus(f"{float(mantissa):g}e{int(exponent)}")
    return _minus(f"{value:.4g}")


def aligned(values: Sequence[float | None]) -> list[str | None]:
    """A column's numbers with the same decimals, four digits of the largest; None stays None."""
    most = max((abs(v) for v in values if v is not None and math.isfinite(v)), default=0.0)
    whole = all(v is None or not math.isfinite(v) or v == int(v) for v in values)
    if most and not (1e-3 <= most < 1e6):
        return [None if v is None else number(v) for v in values]
    decimals = 0 if whole else max(3 - math.floor(math.log10(most)), 0)
    shown: list[str | None] = []
    for value in values:
        if value is None:
            shown.append(None)
        else:
            plain = math.isfinite(value)
            shown.append(_minus(f"{value:.{decimals}f}") if plain else number(value))
    return shown


def _minus(text: str) -> str:
    return text.replace("-", "−") if text.startswith("-") else text


def thin(points: Points) -> Points:
    """At most two points a bucket of the axis, its least and its greatest: peaks stay."""
    if len(points) <= 2 * _BUCKETS:
        return points
    first, last = points[0][0], points[-1][0]
    buckets: dict[int, list[tuple[int, float]]] = {}
    for point in points:
        bucket = (point[0] - first) * _BUCKETS // (last - first + 1)
        buckets.setdefault(bucket, []).append(point)
    kept = []
    for inside in buckets.values():
        ends = {min(inside, key=lambda p: p[1]), max(inside, key=lambda p: p[1])}
        kept += sorted(ends)
    return tuple(kept)


def _runs(points: Points) -> list[Points]:
    """Stretches of finite points: a curve is broken where a value is not finite."""
    stretches: list[list[tuple[int, float]]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            stretches[-1].append(point)
        elif stretches[-1]:
            stretches.append([])
    return [tuple(stretch) for stretch in stretches if stretch]


class _Axes:
    """From (step, value) to the picture's coordinates."""

    def __init__(self, lines: Sequence[Line]):
        points = [point for line in lines for point in line.points]
        values = [value for _, value in points if math.isfinite(value)]
        steps = [step for step, _ in points]
        self.first, self.last = min(steps), max(steps)
        if self.first == self.last:
            self.first, self.last = self.first - 1, self.last + 1
        self.log = is_logarithmic(values)
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if self.log:
            margin = (high / low) ** 0.04
            self.low, self.high = low / margin, high * margin
        else:
            margin = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
            # Nothing that is never negative gets room below zero.
            self.low = max(low - margin, 0.0) if low >= 0 else low - margin
            self.high = high + margin

    def x(self, step: float) -> float:
        share = (step - self.first) / (self.last - self.first)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    def x_ticks(self) -> list[float]:
        return [x for x in ticks(max(self.first, 0), self.last, 4) if x == int(x)]

    def y_ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)


def line_chart(lines: Sequence[Line], title: str, unit: str) -> str:
    """SVG of curves over the training step; "" if there is not one point.

    Values that are not finite break their curve and are marked on the lower edge.

    Args:
      lines: the last is drawn on top.
      title: for those who do not see the picture.
      unit: of the values; the axis' label.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    axes = _Axes(lines)
    svg = ET.Element(
        "svg", {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": title}
    )
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT

    def add(tag: str, text: str = "", parent: ET.Element = svg, **attributes) -> ET.Element:
        named = {k.rstrip("_").replace("_", "-"): _plain(v) for k, v in attributes.items()}
        element = ET.SubElement(parent, tag, named)
        element.text = text or None
        return element

    for value in axes.y_ticks():
        y = axes.y(value)
        add("line", class_="grid", x1=_LEFT, x2=right, y1=y, y2=y)
        add("text", number(value), class_="tick", x=_LEFT - 6, y=y + 4, text_anchor="end")
    for step in axes.x_ticks():
        x = axes.x(step)
        add("line", class_="axis", x1=x, x2=x, y1=bottom, y2=bottom + 4)
        add("text", number(step), class_="tick", x=x, y=bottom + 17, text_anchor="middle")
    add("line", class_="axis", x1=_LEFT, x2=right, y1=bottom, y2=bottom)
    label = f"{unit} (log)" if axes.log else unit
    add("text", label, class_="label", x=2, y=12)
    add("text", "step", class_="label", x=right, y=HEIGHT - 5, text_anchor="end")
    for line in lines:
        group = add("g", class_=line.style)
        for stretch in _runs(line.points):
            stretch = thin(stretch)
            places = [(axes.x(step), axes.y(value)) for step, value in stretch]
            if len(places) > 1:
                path = "M" + "L".join(f"{_plain(x)} {_plain(y)}" for x, y in places)
                add("path", parent=group, d=path)
            if line.dots or len(places) == 1:
                for (step, value), (x, y) in zip(stretch, places, strict=True):
                    dot = add("circle", parent=group, cx=x, cy=y, r=2.5)
                    add("title", f"{line.label}, step {step}: {number(value)}", dot)
        for step, value in line.points:
            if not math.isfinite(value):
                x = axes.x(step)
                cross = f"M{_plain(x - 3)} {bottom - 6}l6 6m0 -6l-6 6"
                mark = add("path", class_="broken", d=cross)
                add("title", f"{line.label}, step {step}: {number(value)}", mark)
    return ET.tostring(svg, encoding="unicode", short_empty_elements=False)


def _plain(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
