"""Reference weights into an Orbax checkpoint, tensor by tensor.

The output folder:

    weights/              the Orbax checkpoint
    config.json           the model's config, copied
    vocoder_config.json   the vocoder's sizes, if there is a vocoder
    source/               what export needs to lay the files out as they were
    report.md, .json      what was stored and what was left out
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import tqdm

from ba_jax.checkpoints import arrays, layout
from ba_jax.convert import engine, report, sources
from ba_jax.convert.engine import ConversionError
from ba_jax.convert.safetensors_io import INDEX_FILE, SafetensorsFile, SafetensorsFolder
from ba_jax.convert.torch_pickle import PickleFile, VocoderSource
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
    """Imports a source folder or file; returns the report.

    Everything that headers can tell is checked before any data is read, and `out` appears only
    when it is complete.

    Args:
      source, kind, vocoder: as in `sources.open_source`.
      out: the folder to write.
      dtype: parameters are cast to it; None keeps every tensor bit by bit.
      overwrite: replace `out` if it holds something.
      progress: show a progress bar on a terminal.

    Raises:
      ConversionError: a source that is missing, damaged, or does not fit the model.
      CheckpointError: `out` cannot be written.
    """
    started = time.monotonic()
    source, out = Path(source), Path(out)
    _check_apart(source, out, vocoder)
    with arrays.new_folder(out, overwrite) as folder:
        opened = sources.open_source(source, kind, vocoder)
        plans = _plan(opened, dtype)
        for plan in plans:
            engine.check_zeros(plan)
        with tqdm.tqdm(
            total=sum(plan.nbytes for plan in plans),
            desc=f"import {source.name}",
            unit="B",
            unit_scale=True,
            disable=None if progress else True,
        ) as bar:
            tree: dict[str, Any] = {}
            for plan in plans:
                tree |= flatten(engine.lazy_variables(plan, bar.update))
            arrays.save_streamed(folder / layout.WEIGHTS_FOLDER, unflatten(tree))
        for name, data in opened.files.items():
            (folder / name).write_bytes(data)
        _write_manifest(folder / SOURCE_FOLDER, opened)
        summary = report.summarize(opened.kind, str(source), plans, time.monotonic() - started)
        (folder / f"{REPORT_FILE}.json").write_text(json.dumps(summary, indent=2) + "\n")
        (folder / f"{REPORT_FILE}.md").write_text(report.to_markdown(summary))
    return summary


def _check_apart(source: Path, out: Path, vocoder: Path | None) -> None:
    """`--overwrite` must not be able to delete what is being read."""
    for path in (source, vocoder):
        if path is None:
            continue
        inner, outer = path.resolve(), out.resolve()
        if inner == outer or outer in inner.parents:
            raise ConversionError(f"{out}: holds the source {path}, expected another folder")


def _plan(opened: sources.Source, dtype: Any) -> list[engine.Plan]:
    plans, problems = [], []
    for part in opened.parts:
        shapes = variable_shapes(part.config)
        try:
            plans.append(engine.make_plan(part.rows, part.source, shapes, part.left_out, dtype))
        except ConversionError as error:
            problems.append(str(error))
    if problems:
        raise ConversionError("\n".join(problems))
    return plans


def _write_manifest(folder: Path, opened: sources.Source) -> None:
    """Names, order and headers of the source files; bytes that JSON could change are kept as is."""
    folder.mkdir()
    manifest: dict[str, Any] = {"kind": opened.kind}
    for part in opened.parts:
        if isinstance(part.source, SafetensorsFolder):
            manifest["files"] = list(part.source.files)
            for name, file in part.source.files.items():
                (folder / f"{name}.header").write_bytes(file.header)
            if part.source.index is not None:
                (folder / INDEX_FILE).write_bytes(part.source.index)
        elif isinstance(part.source, VocoderSource):
            file = part.source.source
            name = Path(file.label).name
            manifest["vocoder"] = {"file": name, "names": part.source.original}
            if isinstance(file, PickleFile):
                manifest["vocoder"]["metadata"] = file.metadata
            if isinstance(file, SafetensorsFile):
                (folder / f"{name}.header").write_bytes(file.header)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n")
