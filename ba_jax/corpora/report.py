"""The report of a run: what was written, and what was not and why."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ba_jax.corpora.sources.base import Rejection

REPORT_JSON, REPORT_MD = "report.json", "report.md"
REJECTED, WARNINGS = "rejected.jsonl", "warnings.jsonl"
_SHOWN = 10  # speakers, and rejected items of each reason, in the tables


def summarise(
    name: str, sides: Mapping[str, Sequence[Mapping[str, Any]]], listed: Sequence[Rejection]
) -> dict[str, Any]:
    """The content of report.json.

    Args:
      name: of the dataset.
      sides: split -> its shards' side files.
      listed: what was rejected while listing.
    """
    splits, by_kind = {}, collections.defaultdict(lambda: [0, 0.0])
    languages = collections.defaultdict(lambda: [0, 0.0])
    speakers: dict[str, dict[str, list]] = {}
    for split, shards in sides.items():
        records, seconds = 0, 0.0
        own = collections.defaultdict(lambda: [0, 0.0])
        for shard in shards:
            for key, (count, length) in shard["counts"].items():
                language, kind = key.split()
                for row in (languages[language], by_kind[kind]):
                    _add(row, count, length)
                records, seconds = records + count, seconds + length
            for speaker, (count, length) in shard["speakers"].items():
                _add(own[speaker], count, length)
        splits[split] = _row(records, seconds) | {
            "speakers": len(own),
            "shards": len(shards),
            "bytes": sum(shard["size"] for shard in shards),
        }
        speakers[split] = {who: _row(*own[who]) for who in sorted(own)}
    rejections = all_rejections(sides, listed)
    reasons = collections.defaultdict(lambda: [0, 0.0])
    for rejection in rejections:
        _add(reasons[rejection["reason"]], 1, rejection["seconds"])
    warned = collections.Counter(warning["reason"] for warning in all_warnings(sides))
    total = [sum(split[key] for split in splits.values()) for key in ("records", "seconds")]
    return {
        "name": name,
        **_row(*total),
        "splits": splits,
        "languages": {key: _row(*languages[key]) for key in sorted(languages)},
        "kinds": {key: _row(*by_kind[key]) for key in sorted(by_kind)},
        "rejected": _row(len(rejections), sum(row["seconds"] for row in rejections)),
        "reasons": {
            key: _row(*reasons[key])
            for key in sorted(reasons, key=lambda reason: (-reasons[reason][0], reason))
        },
        "warnings": dict(sorted(warned.items())),
        "speakers": speakers,
    }


def all_rejections(sides, listed: Iterable[Rejection]) -> list[dict[str, Any]]:
    """Everything rejected: while listing, then shard by shard."""
    first = [vars(rejection) for rejection in listed]
    return first + [row for shards in sides.values() for side in shards for row in side["rejected"]]


def all_warnings(sides) -> list[dict[str, str]]:
    """All warnings, shard by shard."""
    return [row for shards in sides.values() for side in shards for row in side["warnings"]]


def write_report(directory: Path, report: Mapping[str, Any], sides, listed) -> None:
    """Writes report.json, report.md, rejected.jsonl and, if there are any, warnings.jsonl."""
    rejections, warnings = all_rejections(sides, listed), all_warnings(sides)
    text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
    (directory / REPORT_JSON).write_text(text, encoding="utf-8")
    _write_lines(directory / REJECTED, rejections)
    if warnings:
        _write_lines(directory / WARNINGS, warnings)
    text = to_markdown(report, rejections, warnings)
    # A file's name may hold bytes that are no Unicode.
    (directory / REPORT_MD).write_text(text, encoding="utf-8", errors="backslashreplace")


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def to_markdown(
    report: Mapping[str, Any],
    rejections: Sequence[Mapping[str, Any]],
    warnings: Sequence[Mapping[str, str]] = (),
) -> str:
    """The report for people."""
    lines = [f"# {report['name']}: {report['records']} records, {report['hours']:.3f} h", ""]
    rows = [
        [split, row["records"], f"{row['hours']:.3f}", row["speakers"], row["shards"], row["bytes"]]
        for split, row in report["splits"].items()
    ]
    lines += _table(("split", "records", "hours", "speakers", "shards", "bytes"), rows)
    for title, key in (("language", "languages"), ("kind", "kinds")):
        rows = [[k, row["records"], f"{row['hours']:.3f}"] for k, row in report[key].items()]
        lines += _table((title, "records", "hours"), rows)
    rows = []
    for split, own in report["speakers"].items():
        ranked = sorted(own, key=lambda who: (-own[who]["seconds"], who))
        rows += [
            [split, who, own[who]["records"], f"{own[who]['hours']:.3f}"] for who in ranked[:_SHOWN]
        ]
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
    """Counts of rejected items by reason, and the first of each with their files and lines.

    `full` says where the rest of them is.
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
        own = by_reason[reason]
        lines += [f"- {row['where']}: {reason}: {row['detail']}" for row in own[:_SHOWN]]
        if len(own) > _SHOWN:
            lines.append(f"- and {len(own) - _SHOWN} more of {reason!r}{full}")
    return [*lines, ""]


def count_reasons(rejections: Iterable[Rejection]) -> dict[str, dict[str, float]]:
    """Reason -> its row, the most frequent first."""
    return summarise("", {}, list(rejections))["reasons"]


def _add(row: list, count: int, seconds: float) -> None:
    row[0] += count
    row[1] += seconds


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
