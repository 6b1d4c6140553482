"""The written report of an import: what was stored, what was left out, time and memory."""

from __future__ import annotations

import collections
import math
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ba_jax.convert.engine import Plan


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes."""
    # Linux's ru_maxrss counts what the parent held when it started us; VmHWM does not.
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (s for s in status.read_text().splitlines() if s.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def summarize(kind: str, source: str, plans: Sequence[Plan], seconds: float) -> dict[str, Any]:
    """Everything that the report says, ready for JSON."""
    components: dict[str, dict[str, Any]] = {}
    for plan in plans:
        for path, parts in plan.targets.items():
            collection, component, *_ = path.split("/")
            entry = components.setdefault(
                component,
                {"tensors": set(), "parameters": 0, "statistics": 0, "bytes": 0, "dtypes": set()},
            )
            size = math.prod(plan.shapes[path])
            entry["tensors"] |= {part.source for part in parts}
            entry["parameters" if collection == "params" else "statistics"] += size
            entry["bytes"] += size * plan.dtypes[path].itemsize
            entry["dtypes"].add(plan.dtypes[path].name)
    for entry in components.values():
        entry["tensors"] = len(entry["tensors"])
        entry["dtypes"] = sorted(entry["dtypes"])
    left_out: dict[str, dict[str, int]] = collections.defaultdict(
        lambda: {"tensors": 0, "bytes": 0}
    )
    for plan in plans:
        for name, prefix in plan.left_out.items():
            group = left_out[prefix]
            group["tensors"] += 1
            group["bytes"] += plan.source.tensors[name].nbytes
    return {
        "kind": kind,
        "source": source,
        "components": components,
        "total": {
            key: sum(entry[key] for entry in components.values())
            for key in ("tensors", "parameters", "statistics", "bytes")
        },
        "left_out": dict(left_out),
        "seconds": round(seconds, 2),
        "peak_rss_bytes": peak_rss(),
    }


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page to read."""
    lines = [
        f"# Import of {report['source']}",
        "",
        f"Kind: {report['kind']}. {report['seconds']} s, peak host memory "
        f"{report['peak_rss_bytes'] / 2**20:.0f} MiB.",
        "",
        "| component | tensors | parameters | buffers and statistics | bytes | dtypes |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, entry in report["components"].items():
        lines.append(
            f"| {name} | {entry['tensors']:,} | {entry['parameters']:,} | {entry['statistics']:,} "
            f"| {entry['bytes']:,} | {', '.join(entry['dtypes'])} |"
        )
    total = report["total"]
    lines.append(
        f"| total | {total['tensors']:,} | {total['parameters']:,} | {total['statistics']:,} "
        f"| {total['bytes']:,} | |"
    )
    lines += ["", "## Left out", ""]
    for name, group in report["left_out"].items():
        lines.append(f"- `{name}*`: {group['tensors']:,} tensors, {group['bytes']:,} bytes")
    if not report["left_out"]:
        lines.append("Nothing.")
    return "\n".join(lines) + "\n"
