"""The figures of the main job: their sources and targets.

Shares (word error rates, accuracies) are fractions: 0.1 is 10 %.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ba_jax.report.runs import JobRuns, ReportError

# Key of summary.json -> (checkpoints, of which the first with the figure counts; the figure).
SOURCES: Mapping[str, tuple[tuple[str, ...], str]] = {
    **{
        key: (("stage2",), key)
        for key in ("asr_wer", "qa_s2t", "qa_s2s", "tts_judge_wer", "judge_wer_on_reference")
    },
    "mel_mae_by_codebooks": (("tokenizer", "flow", "stage2"), "mel_mae_by_codebooks"),
    "t2t_before": (("text_lm",), "qa_t2t"),
    "t2t_after": (("stage2",), "qa_t2t"),
    "t2t_after_single_stage": (("single",), "qa_t2t"),
}
MINUTES = "minutes"
TOTAL = "total"  # key of the whole job in minutes.json

OTHER_VERSION = " (scored by another version)"
"""Mark of an origin whose figure must not be compared with that of stage 2."""

Summary = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Target:
    """A figure and the bound that it must reach.

    Attributes:
      label: the measurement in words.
      measure: computes the figure from the summary; None if it was not measured.
      at_most: whether smaller is better.
      bound: the bound, inclusive.
      asked: the bound as text.
      show: formats the figure.
      keys: keys of the summary that the figure depends on.
    """

    label: str
    measure: Callable[[Summary], float | None]
    at_most: bool
    bound: float
    asked: str
    show: Callable[[float], str]
    keys: tuple[str, ...]


def percent(value: float | None) -> str:
    """Format a share: 0.1234 -> `12.3 %`."""
    if value is None:
        return "not measured"
    return f"{100 * value:.1f} %" if math.isfinite(value) else "not a number"


def total_minutes(minutes: Mapping[str, float]) -> float:
    """Return the stated total (stages may run in parallel), or else the sum."""
    stages = [value for name, value in minutes.items() if name != TOTAL]
    return minutes.get(TOTAL, sum(stages))


def codebook_gain(summary: Summary) -> float | None:
    """Mel error with the most codebooks relative to that with a single codebook."""
    errors = summary["mel_mae_by_codebooks"] or {}
    counts = sorted(int(count) for count in errors)
    if len(counts) < 2 or counts[0] != 1 or errors["1"] is None:
        return None
    last = errors[str(counts[-1])]
    return None if last is None else last / errors["1"] if errors["1"] else math.nan


def text_change(summary: Summary) -> float | None:
    """Change of text-to-text accuracy from before stage 1 to after stage 2."""
    before, after = summary["t2t_before"], summary["t2t_after"]
    return None if before is None or after is None else after - before


def _share_target(
    label: str, key: str, *, at_most: int | None = None, at_least: int | None = None
) -> Target:
    """Make the target of a share that the summary holds; bounds are in percent."""
    bound = at_least if at_most is None else at_most
    asked = f"{'at least' if at_most is None else 'at most'} {bound} %"
    measure = operator.itemgetter(key)
    return Target(label, measure, at_most is not None, bound / 100, asked, percent, (key,))


# Two bounds were given only in words ("clearly better", "kept"): read as 10 % and 5 points.
TARGETS = (
    _share_target(
        "Speech recognition, closed-vocabulary sentences: word error rate", "asr_wer", at_most=10
    ),
    _share_target("Spoken question, written answer: accuracy", "qa_s2t", at_least=80),
    _share_target("Spoken question, spoken answer: accuracy", "qa_s2s", at_least=70),
    _share_target(
        "Speech generated from text, independent recogniser: word error rate",
        "tts_judge_wer",
        at_most=30,
    ),
    Target(
        "Reconstruction: mel error with all codebooks against that with one",
        codebook_gain,
        True,
        0.90,
        "at most 90 %",
        percent,
        ("mel_mae_by_codebooks",),
    ),
    Target(
        "Text side kept: change of text-to-text accuracy over stages 1 and 2",
        text_change,
        False,
        -0.05,
        "at least -5 points",
        lambda change: f"{100 * change:+.1f} points",
        ("t2t_before", "t2t_after"),
    ),
    Target(
        "Time of the whole job",
        operator.itemgetter(MINUTES),
        True,
        25.0,
        "at most 25 min",
        lambda minutes: f"{minutes:.1f} min",
        (MINUTES,),
    ),
)


@dataclasses.dataclass(frozen=True)
class HeadlineRow:
    """A row of the headline table; `verdict` is pass, fail, not measured or not comparable."""

    label: str
    reached: str
    asked: str
    verdict: str
    source: str


def summarise(runs: JobRuns) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the content of summary.json, and the source of each measured key.

    Figures may be NaN; `summary_json` makes them null.

    Raises:
      ReportError: a share below 0, an accuracy above 1, or numbers of codebooks that are no counts.
    """
    summary: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, (names, figure) in SOURCES.items():
        summary[key] = None
        for name in names:
            evaluation = runs.evaluations.get(name)
            figures = (evaluation.figures if evaluation else None) or {}
            where = f"{runs.folder / 'eval' / name / 'figures.json'}: {figure}"
            value = _by_codebooks(figures, where) if "codebooks" in key else figures.get(figure)
            if value is not None:
                _check(key, value, where)
                summary[key], origin[key] = value, f"eval/{name}"
                main = runs.evaluations.get("stage2", evaluation)
                if key.startswith("t2t_") and evaluation.normalisers != main.normalisers:
                    origin[key] += OTHER_VERSION
                break
    summary[MINUTES] = None
    if runs.minutes is not None:
        summary[MINUTES], origin[MINUTES] = total_minutes(runs.minutes), "minutes.json"
    return summary, origin


def _by_codebooks(figures: Mapping[str, float | None], where: str) -> dict[str, float] | None:
    prefix = "mel_mae_by_codebooks/"
    errors = {k.removeprefix(prefix): v for k, v in figures.items() if k.startswith(prefix)}
    for count in errors:
        if not count.isdecimal() or int(count) < 1:
            raise ReportError(f"{where}: {count!r}: expected a number of codebooks")
    return {count: errors[count] for count in sorted(errors, key=int)} or None


def _check(key: str, value: Any, where: str) -> None:
    accuracy = key.startswith(("qa_", "t2t_"))
    for number in value.values() if isinstance(value, dict) else (value,):
        if number is not None and (number < 0 or (accuracy and number > 1)):
            wanted = "a share from 0 to 1" if accuracy else "0 or more"
            raise ReportError(f"{where} = {number!r}: expected {wanted}")


def summary_json(summary: Summary) -> dict[str, Any]:
    """Replace numbers that are not finite by None, for JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return value if value is not None and math.isfinite(value) else None

    return {key: plain(value) for key, value in summary.items()}


def headline(summary: Summary, origin: Mapping[str, str]) -> list[HeadlineRow]:
    """Return the rows of the headline table, one per target."""
    rows = []
    for target in TARGETS:
        value = target.measure(summary)
        reached, verdict = "", "not measured"
        if value is not None:
            reached = target.show(value) if math.isfinite(value) else "not a number"
            met = value <= target.bound if target.at_most else value >= target.bound
            verdict = "pass" if met else "fail"
            if any(origin.get(key, "").endswith(OTHER_VERSION) for key in target.keys):
                verdict = "not comparable"
        sources = ", ".join(dict.fromkeys(origin[key] for key in target.keys if key in origin))
        rows.append(HeadlineRow(target.label, reached, target.asked, verdict, sources))
    return rows


def text_table(rows: Sequence[HeadlineRow], summary: Summary) -> str:
    """Format the headline table and the text side's figures as plain text."""
    heads = ("target", "reached", "asked for", "verdict")
    cells = [(row.label, row.reached or "-", row.asked, row.verdict) for row in rows]
    widths = [max(len(line[i]) for line in (heads, *cells)) for i in range(4)]
    lines = []
    for label, reached, asked, verdict in (heads, tuple("-" * width for width in widths), *cells):
        line = f"{label:<{widths[0]}}  {reached:>{widths[1]}}  {asked:<{widths[2]}}  {verdict}"
        lines.append(line.rstrip())
    shown = {key: percent(summary[key]) for key in SOURCES if key.startswith("t2t_")}
    lines += [
        "",
        "text-to-text accuracy: "
        f"before stage 1 {shown['t2t_before']}, after stage 2 {shown['t2t_after']}, "
        f"after the single stage {shown['t2t_after_single_stage']}",
        f"judge on reference speech: word error rate {percent(summary['judge_wer_on_reference'])}",
    ]
    return "\n".join(lines)
