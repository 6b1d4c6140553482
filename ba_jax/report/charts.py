"""Charts of a stage's metrics, drawn by matplotlib as SVG images that the page embeds."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
from collections.abc import Mapping, Sequence

from ba_jax.report.runs import Points

# First match wins; matched against the name without `eval/`.
_UNITS = {
    r"loss": "weighted sum",
    r"text(_\w+_rows)?": "nats per token",
    r"audio/(\d+|\*)": "nats per code",
    r".*accuracy.*": "share correct",
    r".*_l2": "nats squared",
    r"mel.*|coarse.*": "nats (log-mel)",
    r"(throughput/)?tokens_per_second": "tokens/s",
    r"(throughput/)?audio_seconds_per_second": "s of audio/s",
    r"(throughput/)?(\w+)_per_second": "1/s",
    r"(throughput/)?step_seconds": "s per step",
    r"(throughput/)?mfu": "share of peak",
    r"learning_rate.*": "per step",
    r"grad_norm.*": "L2 norm",
    r"codebook/.*/use": "share of codes",
    r"codebook/.*/(perplexity|dead.*)": "codes",
    r"codebook/.*/.*entropy": "share of log size",
    r"replaced": "share of items",
}
_RATES = re.compile(r"throughput/.*|.*_per_second|step_seconds|mfu|learning_rate.*|grad_norm.*")
_MEMBER = re.compile(r"(.*?/)(\d+)((?:/.*)?)")
_LOG_RATIO = 20  # ratio of the largest to the smallest value from which the axis is logarithmic
# Mid-tones, readable on light and dark pages.
_COLOURS = {"train": "#3f82c7", "evaluation": "#d0731f"}
_GREY, _RED = "#808790", "#d9534f"
_STYLE = {
    "svg.fonttype": "none",  # text stays text, in the page's font size
    "svg.hashsalt": "ba_jax",  # equal charts are equal files
    "text.parse_math": False,  # a metric may have any name
    "font.family": "sans-serif",
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color"), _GREY),
    **dict.fromkeys(("xtick.color", "ytick.color"), _GREY),
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "path.simplify_threshold": 0.5,
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """A labelled curve; `markers` draws every point."""

    label: str
    points: Points
    markers: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Attributes:
      title: its caption, the metric's name.
      image: data URI of the SVG; "" without any point.
      labels: labels of its curves.
      note: values that it cannot show.
    """

    title: str
    image: str
    labels: tuple[str, ...]
    note: str


@dataclasses.dataclass(frozen=True)
class CodebookCharts:
    """Metrics of the codebooks: charts over time, and last values.

    Attributes:
      charts: a chart per quantity.
      quantities: columns of `rows`.
      rows: (codebook, last finite value of each quantity or None).
    """

    charts: tuple[Chart, ...]
    quantities: tuple[str, ...]
    rows: tuple[tuple[int, tuple[float | None, ...]], ...]


@dataclasses.dataclass(frozen=True)
class LastValues:
    """Last values of a metric in training and evaluation; None if it was not logged."""

    name: str
    train: float | None
    evaluation: float | None
    step: int


def unit(name: str) -> str:
    """Return the unit of a metric, or its name if the unit is unknown."""
    plain = name.removeprefix("eval/")
    return next((text for rule, text in _UNITS.items() if re.fullmatch(rule, plain)), plain)


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether positive values span so much that a linear axis would hide most of them."""
    return bool(values) and min(values) > 0 and max(values) / min(values) >= _LOG_RATIO


def draw_chart(curves: Sequence[Curve], unit: str) -> str:
    """Draw curves over the training step; return the SVG as a data URI, "" without any point.

    Values that are not finite break their curve and are marked on the lower edge.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    values = [v for curve in curves for _, v in curve.points if math.isfinite(v)]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 2.7), layout="constrained")
        axes = figure.add_subplot()
        axes.set(xlabel="step", ylabel=unit)
        if is_logarithmic(values):
            axes.set(yscale="log", ylabel=f"{unit} (log)")
            wide = max(values) / min(values) >= 100
            axes.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        shades = matplotlib.colormaps["viridis"]
        for number, curve in enumerate(curves):
            shade = shades(0.25 + 0.65 * number / max(len(curves) - 1, 1))
            colour = _COLOURS.get(curve.label, shade)
            steps, heights = zip(*curve.points, strict=True)
            heights = [v if math.isfinite(v) else math.nan for v in heights]
            marker = "o" if curve.markers or len(steps) == 1 else None
            axes.plot(steps, heights, color=colour, label=curve.label, lw=1.3, marker=marker, ms=3)
            broken = [step for step, v in curve.points if not math.isfinite(v)]
            edge = axes.get_xaxis_transform()
            axes.plot(broken, [0.02] * len(broken), "x", color=_RED, ms=5, transform=edge)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if len(curves) > 1 or curves[0].label == "evaluation":
            figure.legend(loc="outside upper left", ncols=4, frameon=False)
        file = io.BytesIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


def note(curves: Sequence[Curve]) -> str:
    """Describe the values of curves that are not finite."""
    notes = []
    for curve in curves:
        broken = [step for step, value in curve.points if not math.isfinite(value)]
        if broken:
            count = "1 value" if len(broken) == 1 else f"{len(broken)} values"
            notes.append(f"{curve.label}: {count} not finite, the first at step {broken[0]}")
    return "; ".join(notes)


def _chart(name: str, curves: Sequence[Curve], title: str = "") -> Chart:
    labels = tuple(curve.label for curve in curves)
    return Chart(title or name, draw_chart(curves, unit(name)), labels, note(curves))


def _families(names: Sequence[str]) -> dict[str, dict[int, str]]:
    """Group metrics of several codebooks: `audio/*` -> index -> name."""
    groups: dict[str, dict[int, str]] = {}
    for name in names:
        if match := _MEMBER.fullmatch(name):
            groups.setdefault(f"{match[1]}*{match[3]}", {})[int(match[2])] = name
    # Metrics of a codebook are a family even of a single member.
    return {
        family: dict(sorted(members.items()))
        for family, members in groups.items()
        if len(members) > 1 or "codebook/" in family
    }


def stage_charts(series: Mapping[str, Points]) -> tuple[list[Chart], list[Chart]]:
    """Chart losses, "loss" first, and rates; training and evaluation share a chart."""
    names = [name for name in series if "codebook/" not in name]
    families = _families(names)
    members = {name for family in families.values() for name in family.values()}
    charts = []
    for name in dict.fromkeys(n.removeprefix("eval/") for n in names if n not in members):
        curves = []
        for full, label in ((name, "train"), (f"eval/{name}", "evaluation")):
            if full in series and full not in members:
                markers = label == "evaluation" and len(series[full]) <= 60
                curves.append(Curve(label, series[full], markers))
        charts.append(_chart(name, curves))
    for family, indices in families.items():
        curves = [Curve(str(index), series[name]) for index, name in indices.items()]
        charts.append(_chart(family, curves))
    losses, rates = [], []
    for chart in charts:
        is_rate = _RATES.fullmatch(chart.title.removeprefix("eval/"))
        (rates if is_rate else losses).append(chart)
    return sorted(losses, key=lambda chart: chart.title != "loss"), rates


def codebook_charts(series: Mapping[str, Points]) -> CodebookCharts | None:
    """Chart `codebook/<k>/<quantity>`; None if there are none."""
    families = _families([name for name in series if "codebook/" in name])
    if not families:
        return None
    rows = []
    for index in sorted({index for members in families.values() for index in members}):
        last = []
        for members in families.values():
            points = series[members[index]] if index in members else ()
            values = [value for _, value in points if math.isfinite(value)]
            last.append(values[-1] if values else None)
        rows.append((index, tuple(last)))
    # codebook/*/use -> use
    quantities = tuple(name.replace("codebook/*/", "") for name in families)
    charts = [
        _chart(
            f"codebook/*/{quantity}",
            [Curve(str(index), series[name]) for index, name in members.items()],
            f"{quantity} of each codebook",
        )
        for quantity, members in zip(quantities, families.values(), strict=True)
    ]
    return CodebookCharts(tuple(charts), quantities, tuple(rows))


def last_values(series: Mapping[str, Points]) -> list[LastValues]:
    """List each metric's last values in training and evaluation, as logged (NaN too)."""
    rows = []
    for name in dict.fromkeys(name.removeprefix("eval/") for name in series):
        train, evaluation = (series.get(key) or () for key in (name, f"eval/{name}"))
        step = max(points[-1][0] for points in (train, evaluation) if points)
        last = (points[-1][1] if points else None for points in (train, evaluation))
        rows.append(LastValues(name, *last, step))
    return rows
