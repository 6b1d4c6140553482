"""The report of a run: the records written, and the rejections with their reasons."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ba_jax.corpora.shards import STATE
from ba_jax.corpora.sources.base import INFO, Notice, Rejection

REPORT_JSON, REPORT_MD = "report.json", "report.md"
REJECTED, WARNINGS = "rejected.jsonl", "warnings.jsonl"
WRITTEN = (WARNINGS, REJECTED, REPORT_MD, REPORT_JSON, "features.json", INFO, STATE)
"""Files of a dataset's folder beside its shards, in the order of removing them.

The state goes last: a run killed while it removes them is still recognised as a run.
"""
_SHOWN = 10  # rows of speakers, and rejected items of each reason, in report.md


def summarise(
    name: str,
    sides: Mapping[str, Sequence[Mapping[str, Any]]],
    listed: Sequence[Rejection],
    notices: Sequence[Notice] = (),
) -> dict[str, Any]:
    """The content of report.json, from the side files of each split's shards."""
    splits, speakers = {}, {}
    languages, kinds = _Totals(), _Totals()
    for split, shards in sides.items():
        split_total, split_speakers = _Totals(), _Totals()
        for shard in shards:
            for key, (count, seconds) in shard["counts"].items():
                language, kind = key.split()
                languages.add(language, count, seconds)
                kinds.add(kind, count, seconds)
                split_total.add(split, count, seconds)
            for speaker, (count, seconds) in shard["speakers"].items():
                split_speakers.add(speaker, count, seconds)
        splits[split] = _row(*split_total[split]) | {
            "speakers": len(split_speakers),
            "shards": len(shards),
            "bytes": sum(shard["size"] for shard in shards),
        }
        speakers[split] = split_speakers.rows()
    rejections = all_rejections(sides, listed)
    reasons = _Totals()
    for rejection in rejections:
        reasons.add(rejection["reason"], 1, rejection["seconds"])
    warned = collections.Counter(warning["reason"] for warning in all_warnings(sides, notices))
    asides: collections.Counter = collections.Counter()
    for side in (side for shards in sides.values() for side in shards):
        asides.update({name: shard["records"] for name, shard in side.get("asides", {}).items()})
    total = [sum(split[key] for split in splits.values()) for key in ("records", "seconds")]
    return {
        "name": name,
        **_row(*total),
        "splits": splits,
        "languages": languages.rows(),
        "kinds": kinds.rows(),
        "rejected": _row(len(rejections), sum(row["seconds"] for row in rejections)),
        "reasons": reasons.rows(lambda reason: (-reasons[reason][0], reason)),
        "warnings": dict(sorted(warned.items())),
        "asides": dict(asides),
        "speakers": speakers,
    }


class _Totals(collections.defaultdict):
    """Key -> [count, seconds]."""

    def __init__(self):
        super().__init__(lambda: [0, 0.0])

    def add(self, key: str, count: int, seconds: float) -> None:
        self[key][0] += count
        self[key][1] += seconds

    def rows(self, order: Callable[[str], Any] | None = None) -> dict[str, dict[str, float]]:
        return {key: _row(*self[key]) for key in sorted(self, key=order)}


def all_rejections(sides, listed: Iterable[Rejection]) -> list[dict[str, Any]]:
    """All rejections: of the listing, then shard by shard."""
    first = [vars(rejection) for rejection in listed]
    return first + [row for shards in sides.values() for side in shards for row in side["rejected"]]


def all_warnings(sides, notices: Iterable[Notice] = ()) -> list[dict[str, str]]:
    """All warnings: of the listing, then shard by shard."""
    first = [vars(notice) for notice in notices]
    return first + [row for shards in sides.values() for side in shards for row in side["warnings"]]


def write_report(
    directory: Path, report: Mapping[str, Any], sides, listed, notices: Sequence[Notice] = ()
) -> None:
    """Write report.json, report.md, rejected.jsonl and, if there are any, warnings.jsonl."""
    rejections, warnings = all_rejections(sides, listed), all_warnings(sides, notices)
    text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
    (directory / REPORT_JSON).write_text(text, encoding="utf-8")
    _write_lines(directory / REJECTED, rejections)
    if warnings:
        _write_lines(directory / WARNINGS, warnings)
    text = to_markdown(report, rejections, warnings)
    # File names may hold bytes that are no Unicode.
    (directory / REPORT_MD).write_text(text, encoding="utf-8", errors="backslashreplace")


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def to_markdown(
    report: Mapping[str, Any],
    rejections: Sequence[Mapping[str, Any]],
    warnings: Sequence[Mapping[str, str]] = (),
) -> str:
    """The content of report.md."""
    lines = [f"# {report['name']}: {report['records']} records, {report['hours']:.3f} h", ""]
    rows = [
        [split, row["records"], f"{row['hours']:.3f}", row["speakers"], row["shards"], row["bytes"]]
        for split, row in report["splits"].items()
    ]
    lines += _table(("split", "records", "hours", "speakers", "shards", "bytes"), rows)
    for title, key in (("language", "languages"), ("kind", "kinds")):
        rows = [[k, row["records"], f"{row['hours']:.3f}"] for k, row in report[key].items()]
        lines += _table((title, "records", "hours"), rows)
    lines += _table(("dataset of its own", "records"), list(report["asides"].items()))
    rows = []
    for split, speakers in report["speakers"].items():
        ranked = sorted(speakers.items(), key=lambda pair: (-pair[1]["seconds"], pair[0]))
        for speaker, row in ranked[:_SHOWN]:
            rows.append([split, speaker, row["records"], f"{row['hours']:.3f}"])
        if len(ranked) > _SHOWN:
            rows.append([split, f"and {len(ranked) - _SHOWN} more, see {REPORT_JSON}", "", ""])
    lines += _table(("split", "speaker", "parts", "hours"), rows)
    lines += rejection_lines(report["rejected"], report["reasons"], rejections)
    if warnings:
        lines += [f"{len(warnings)} warnings, all of them in {WARNINGS}:", ""]
        lines += [f"- {row['where']}: {row['reason']}: {row['detail']}" for row in warnings[:20]]
        lines.append("")
    return "\n".join(lines)


def rejection_lines(
    total, reasons, rejections: Sequence[Mapping[str, Any]], full: str = f", see {REJECTED}"
) -> list[str]:
    """Counts of rejected items by reason, and the first items of each with their files and lines.

    `full` names the place of the complete list.
    """
    if not rejections:
        return ["Nothing was rejected.", ""]
    lines = [f"{total['records']} rejected ({total['hours']:.3f} h known):", ""]
    rows = [[reason, row["records"], f"{row['hours']:.3f}"] for reason, row in reasons.items()]
    lines += _table(("reason", "rejected", "hours"), rows)
    by_reason = collections.defaultdict(list)
    for row in rejections:
        by_reason[row["reason"]].append(row)
    for reason in reasons:
        rows = by_reason[reason]
        lines += [f"- {row['where']}: {reason}: {row['detail']}" for row in rows[:_SHOWN]]
        if len(rows) > _SHOWN:
            lines.append(f"- and {len(rows) - _SHOWN} more of {reason!r}{full}")
    return [*lines, ""]


def _row(records: int, seconds: float) -> dict[str, float]:
    return {"records": records, "seconds": round(seconds, 3), "hours": round(seconds / 3600, 4)}


def _table(head: Sequence[str], rows: Sequence[Sequence]) -> list[str]:
    if not rows:
        return []
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = []
    for number, row in enumerate(cells):
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("| " + " | ".join(padded) + " |")
        if number == 0:
            lines.append("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return [*lines, ""]
