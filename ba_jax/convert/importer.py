"""Import reference weights into an Orbax checkpoint, tensor by tensor.

The output folder:

    weights/              the Orbax checkpoint
    config.json           the model's config, copied
    vocoder_config.json   the vocoder's sizes, if there is a vocoder
    source/               manifest and headers, with which export restores the files' layout
    report.md, .json      tensors stored and left out, seconds, peak memory
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tqdm

from ba_jax.checkpoints import arrays, layout
from ba_jax.convert import engine, sources
from ba_jax.convert.engine import ConversionError, ImportPlan
from ba_jax.convert.names import RenamedSource
from ba_jax.convert.safetensors_io import INDEX_FILE, SafetensorsFile, SafetensorsFolder
from ba_jax.convert.tables import llm
from ba_jax.convert.torch_pickle import PickleFile
from ba_jax.files import first_line
from ba_jax.models.baichuan_audio import variable_shapes
from ba_jax.tree import flatten, unflatten

SOURCE_FOLDER = "source"
MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report"


def import_checkpoint(
    source: Path,
    out: Path,
    *,
    kind: str | None = None,
    vocoder: Path | None = None,
    dtype: Any = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Import a source folder or file; return the report.

    All headers are checked before any data is read, and `out` appears only when it is complete.

    Args:
      source, kind, vocoder: see `sources.open_source`.
      out: the folder to write.
      dtype: cast parameters to it; None keeps every tensor bit by bit.
      overwrite: replace `out` if it is not empty.
      progress: show a progress bar on a terminal.

    Raises:
      ConversionError: a source that is missing, damaged, or does not fit the model.
      CheckpointError: `out` cannot be written.
    """
    started = time.monotonic()
    source, out = Path(source), Path(out)
    for path in (source, vocoder):
        if path is not None:
            check_apart(out, path, f"source {path}")
    with arrays.new_folder(out, overwrite) as folder:
        opened = sources.open_source(source, kind, vocoder)
        plans = _make_plans(opened, dtype)
        for plan in plans:
            engine.check_zeros(plan)
            if llm.HEAD in plan.left_out:
                engine.check_copy(plan.source, llm.HEAD, llm.EMBEDDING)
        with progress_bar(f"import {source.name}", progress) as bar:
            bar.total = sum(plan.nbytes for plan in plans)
            variables: dict[str, Any] = {}
            for plan in plans:
                variables |= flatten(engine.lazy_variables(plan, bar.update))
            arrays.save_streamed(folder / layout.WEIGHTS_FOLDER, unflatten(variables))
        for name, data in opened.files.items():
            (folder / name).write_bytes(data)
        _write_manifest(folder / SOURCE_FOLDER, opened)
        report = summarize(opened.kind, str(source), plans, time.monotonic() - started)
        (folder / f"{REPORT_FILE}.json").write_text(json.dumps(report, indent=2) + "\n")
        (folder / f"{REPORT_FILE}.md").write_text(format_report(report))
    return report


def check_apart(out: Path, path: Path, name: str) -> None:
    """Raise `ConversionError` if writing `out` could delete `path`; `name` is for the message."""
    inner, outer = path.resolve(), out.resolve()
    if inner == outer or outer in inner.parents:
        raise ConversionError(f"{out}: holds the {name}, expected another folder")


def progress_bar(title: str, shown: bool) -> tqdm.tqdm:
    """Make a progress bar that counts bytes; off a terminal or if not `shown` it is silent."""
    return tqdm.tqdm(desc=title, unit="B", unit_scale=True, disable=None if shown else True)


def _make_plans(opened: sources.WeightSource, dtype: Any) -> list[ImportPlan]:
    plans, problems = [], []
    for part in opened.parts:
        try:
            shapes = variable_shapes(part.config)
        except (ValueError, TypeError, ArithmeticError) as error:
            fault = f"sizes in its config do not fit together: {first_line(error)}"
            raise ConversionError(f"{part.source.label}: {fault}") from error
        try:
            plans.append(engine.make_plan(part.rows, part.source, shapes, part.left_out, dtype))
        except ConversionError as error:
            problems.append(str(error))
    if problems:
        raise ConversionError("\n".join(problems))
    return plans


def _write_manifest(folder: Path, opened: sources.WeightSource) -> None:
    """Record names, order and headers of the source files; headers are stored as raw bytes."""
    folder.mkdir()
    manifest: dict[str, Any] = {"kind": opened.kind}
    for part in opened.parts:
        # A layout under other names is not restored: export writes the release's.
        if isinstance(part.source, SafetensorsFolder):
            manifest["files"] = list(part.source.files)
            for name, file in part.source.files.items():
                (folder / f"{name}.header").write_bytes(file.header)
            if part.source.index is not None:
                (folder / INDEX_FILE).write_bytes(part.source.index)
        elif part.config.vocoder is not None:
            file = part.source.source
            name = Path(file.label).name
            manifest["vocoder"] = {"file": name, "names": part.source.original}
            if isinstance(file, PickleFile):
                manifest["vocoder"]["metadata"] = file.metadata
            if isinstance(file, SafetensorsFile):
                (folder / f"{name}.header").write_bytes(file.header)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n")


# --- the report -----------------------------------------------------------------------------------


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes."""
    # Linux's ru_maxrss starts at the parent's memory when the process is forked; VmHWM does not.
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (s for s in status.read_text().splitlines() if s.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def summarize(
    kind: str, source: str, plans: Sequence[ImportPlan], seconds: float
) -> dict[str, Any]:
    """Return the report's numbers, ready for JSON."""
    components: dict[str, dict[str, Any]] = {}
    left_out: dict[str, dict[str, int]] = {}
    renamed: list[tuple[str, str]] = []
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
        if isinstance(plan.source, RenamedSource):
            renamed += [(old, new) for new, old in plan.source.original.items() if new != old]
        for name, prefix in plan.left_out.items():
            group = left_out.setdefault(prefix, {"tensors": 0, "bytes": 0})
            group["tensors"] += 1
            group["bytes"] += plan.source.tensors[name].nbytes
    for entry in components.values():
        entry["tensors"] = len(entry["tensors"])
        entry["dtypes"] = sorted(entry["dtypes"])
    return {
        "kind": kind,
        "source": source,
        "components": components,
        "total": {
            key: sum(entry[key] for entry in components.values())
            for key in ("tensors", "parameters", "statistics", "bytes")
        },
        "left_out": left_out,
        "renamed": {"tensors": len(renamed), "example": " -> ".join(renamed[0]) if renamed else ""},
        "seconds": round(seconds, 2),
        "peak_rss_bytes": peak_rss(),
    }


def format_report(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [
        f"# Import of {report['source']}",
        "",
        f"Kind: {report['kind']}. {report['seconds']} s, peak host memory "
        f"{report['peak_rss_bytes'] / 2**20:.0f} MiB.",
        "",
        "| component | tensors | parameters | buffers and statistics | bytes | dtypes |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, entry in [*report["components"].items(), ("total", report["total"])]:
        counts = (entry[key] for key in ("tensors", "parameters", "statistics", "bytes"))
        cells = [name, *(f"{count:,}" for count in counts), ", ".join(entry.get("dtypes", ()))]
        lines.append(f"| {' | '.join(cells)} |")
    if count := report["renamed"]["tensors"]:
        lines += ["", f"{count:,} tensors renamed, as `{report['renamed']['example']}`."]
    lines += ["", "## Left out", ""]
    for name, group in report["left_out"].items():
        lines.append(f"- `{name}*`: {group['tensors']:,} tensors, {group['bytes']:,} bytes")
    if not report["left_out"]:
        lines.append("Nothing.")
    return "\n".join(lines) + "\n"
