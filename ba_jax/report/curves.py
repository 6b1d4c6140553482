"""Which of a stage's metrics go into which chart, and what their axes say."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from ba_jax.report import charts
from ba_jax.report.charts import Line
from ba_jax.report.runs import Points

# First match wins; over the name without `eval/`.
_UNITS = (
    (r"loss", "weighted sum"),
    (r"text(_\w+_rows)?", "nats a token"),
    (r"audio/(\d+|\*)", "nats a code"),
    (r".*accuracy.*", "share right"),
    (r".*_l2", "nats squared"),
    (r"mel.*|second.*", "nats (log-mel)"),
    (r"(throughput/)?tokens_per_second", "tokens/s"),
    (r"(throughput/)?audio_seconds_per_second", "s of audio/s"),
    (r"(throughput/)?(\w+)_per_second", "1/s"),
    (r"(throughput/)?step_seconds", "s a step"),
    (r"(throughput/)?mfu", "share of peak"),
    (r"learning_rate.*", "a step"),
    (r"grad_norm.*", "L2 norm"),
    (r"codebook/.*/use", "share of codes"),
    (r"codebook/.*/perplexity", "codes"),
    (r"codebook/.*/dead.*", "codes"),
    (r"codebook/.*/.*entropy", "share of log size"),
    (r"replaced", "share of items"),
)
_RATES = re.compile(r"throughput/.*|.*_per_second|step_seconds|mfu|learning_rate.*|grad_norm.*")
_MEMBER = re.compile(r"(.*?/)(\d+)((?:/.*)?)")
_SHADES = 8  # classes shade0 ... shade7 of the style


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart of the page: `lines` are (label, style) for its key, `note` what is amiss."""

    title: str
    svg: str
    lines: tuple[tuple[str, str], ...]
    note: str


@dataclasses.dataclass(frozen=True)
class FinalRow:
    """A metric's last values; None where it was not logged."""

    name: str
    train: float | None
    evaluated: float | None
    step: int


@dataclasses.dataclass(frozen=True)
class Codebooks:
    """What was logged of each codebook: charts over time, and the last values.

    Attributes:
      charts: one a quantity.
      quantities: its columns.
      rows: (codebook, last value of each quantity or None).
    """

    charts: tuple[Chart, ...]
    quantities: tuple[str, ...]
    rows: tuple[tuple[int, tuple[float | None, ...]], ...]


def unit(name: str) -> str:
    """The unit of a metric; its name where none is known."""
    plain = name.removeprefix("eval/")
    return next((text for rule, text in _UNITS if re.fullmatch(rule, plain)), plain)


def _families(names: Sequence[str]) -> dict[str, dict[int, str]]:
    """`audio/*` -> index -> name, for what is logged of two codebooks or more."""
    found: dict[str, dict[int, str]] = {}
    for name in names:
        if match := _MEMBER.fullmatch(name):
            found.setdefault(f"{match[1]}*{match[3]}", {})[int(match[2])] = name
    # A codebook's own figures are its family's even if there is but one.
    return {
        family: dict(sorted(members.items()))
        for family, members in found.items()
        if len(members) > 1 or "codebook/" in family
    }


def note(lines: Sequence[Line]) -> str:
    """What a chart cannot show well: values that are not finite, curves without any."""
    said = []
    for line in lines:
        broken = [step for step, value in line.points if not math.isfinite(value)]
        if broken:
            times = "1 value" if len(broken) == 1 else f"{len(broken)} values"
            said.append(f"{line.label}: {times} not finite, the first at step {broken[0]}")
    return "; ".join(said)


def _chart(title: str, name: str, lines: Sequence[Line]) -> Chart:
    svg = charts.line_chart(lines, f"{title} over steps", unit(name))
    return Chart(title, svg, tuple((line.label, line.style) for line in lines), note(lines))


def _family_chart(
    title: str, family: str, members: Mapping[int, str], series: Mapping[str, Points]
) -> Chart:
    most = max(len(members) - 1, 1)
    lines = [
        Line(str(index), series[name], f"shade{round(place * (_SHADES - 1) / most)}")
        for place, (index, name) in enumerate(members.items())
    ]
    return _chart(title, family, lines)


def stage_charts(series: Mapping[str, Points]) -> tuple[list[Chart], list[Chart]]:
    """Charts of losses, "loss" first, and of rates; training and evaluation in one chart."""
    names = [name for name in series if "codebook/" not in name]
    families = _families(names)
    taken = {name for members in families.values() for name in members.values()}
    plain = dict.fromkeys(name.removeprefix("eval/") for name in names if name not in taken)
    made: list[tuple[str, Chart]] = []
    for name in plain:
        lines = []
        for full, label in ((name, "train"), (f"eval/{name}", "evaluation")):
            if full in series and full not in taken:
                dots = label == "evaluation" and len(series[full]) <= 60
                lines.append(Line(label, series[full], label, dots))
        made.append((name, _chart(name, name, lines)))
    for family, members in families.items():
        made.append((family, _family_chart(family, family, members, series)))
    made.sort(key=lambda pair: pair[0] != "loss")
    losses = [chart for name, chart in made if not _RATES.fullmatch(name.removeprefix("eval/"))]
    rates = [chart for name, chart in made if _RATES.fullmatch(name.removeprefix("eval/"))]
    return losses, rates


def codebooks(series: Mapping[str, Points]) -> Codebooks | None:
    """Charts and last values of `codebook/<k>/<quantity>`; None if there are none."""
    families = _families([name for name in series if "codebook/" in name])
    # codebook/*/use -> use
    families = {name.replace("codebook/*/", ""): members for name, members in families.items()}
    if not families:
        return None
    quantities = tuple(families)
    indices = sorted({index for members in families.values() for index in members})
    rows = []
    for index in indices:
        values = []
        for family in quantities:
            name = families[family].get(index)
            points = charts.finite(series[name]) if name else ()
            values.append(points[-1][1] if points else None)
        rows.append((index, tuple(values)))
    return Codebooks(
        charts=tuple(
            _family_chart(f"{quantity} of each codebook", f"codebook/*/{quantity}", members, series)
            for quantity, members in families.items()
        ),
        quantities=quantities,
        rows=tuple(rows),
    )


def final_rows(series: Mapping[str, Points]) -> list[FinalRow]:
    """Each metric's last values in training and evaluation, as logged (NaN too)."""
    rows = []
    for name in dict.fromkeys(name.removeprefix("eval/") for name in series):
        train, evaluated = series.get(name), series.get(f"eval/{name}")
        step = max(points[-1][0] for points in (train, evaluated) if points)
        rows.append(
            FinalRow(
                name,
                train[-1][1] if train else None,
                evaluated[-1][1] if evaluated else None,
                step,
            )
        )
    return rows
