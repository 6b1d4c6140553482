"""Join the components that separate runs trained into one checkpoint folder, for `export`.

The model's config comes from the runs: config.json in a WORKDIR of `ba_jax.train`, or the config
files that the importer wrote.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ba_jax.checkpoints import arrays, layout
from ba_jax.checkpoints.layout import CONFIG_FILE
from ba_jax.config import ConfigError, from_mapping, to_mapping
from ba_jax.convert import sources
from ba_jax.convert.engine import FLOAT_DTYPES, ConversionError, report_problems
from ba_jax.convert.hf_config import write_model_config
from ba_jax.convert.importer import MANIFEST_FILE, SOURCE_FOLDER, check_apart, progress_bar
from ba_jax.convert.sources import VOCODER_CONFIG_FILE
from ba_jax.models.baichuan_audio import BaichuanAudioConfig, variable_shapes
from ba_jax.models.lora import merge_lora
from ba_jax.tree import flatten, unflatten
from ba_jax.vocab import COMPONENTS, LANGUAGE_MODEL

Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class JoinedRun:
    """An opened checkpoint that gives components.

    Attributes:
      label: its path.
      config: config of the model that it was trained with; components that an import does not
        describe are None.
      reader: its arrays.
      components: components of the model that it holds.
      helpers: modules that only served its training.
    """

    label: str
    config: BaichuanAudioConfig
    reader: arrays.Reader
    components: tuple[str, ...]
    helpers: tuple[str, ...]

    @property
    def release_config(self) -> BaichuanAudioConfig:
        """`config` in the form of the release: no adapters, q, k and v packed."""
        llm = self.config.llm
        if llm is None:
            return self.config
        fields = dataclasses.fields(llm)
        defaults = {f.name: f.default for f in fields if f.name.startswith("lora_")}
        llm = dataclasses.replace(llm, **defaults, qkv_packed=True)
        return dataclasses.replace(self.config, llm=llm)

    @property
    def describes_whole_model(self) -> bool:
        """Whether its config has all components (but, maybe, the vocoder), tokens and sampling."""
        return set(COMPONENTS) - {"vocoder"} <= set(self.config.components)


@dataclasses.dataclass(frozen=True)
class Joined:
    """Origin of everything in a joined checkpoint.

    Attributes:
      sources: component -> the run that it comes from.
      missing: components that no run holds.
      left_out: run -> modules that only served its training.
      merged: runs whose adapters were merged.
    """

    sources: Mapping[str, str]
    missing: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]
    merged: tuple[str, ...]

    def lines(self) -> list[str]:
        """Format as text."""
        lines = [f"{name:14s} from {run}" for name, run in self.sources.items()]
        lines += [f"{name:14s} missing" for name in self.missing]
        lines += [f"left out of {run}: {', '.join(n)}" for run, n in self.left_out.items()]
        return lines + [f"merged the adapters of {run} into its matrices" for run in self.merged]


def join_checkpoints(
    paths: Sequence[str | Path],
    out: Path,
    *,
    partial: bool = False,
    dtype: Any = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Joined:
    """Write a checkpoint folder with each component from the last run that holds it.

    Arrays pass through memory in pieces of `arrays.MAX_CHUNK_BYTES`, or of a stored chunk if that
    is larger (a run stores each device's shard as one chunk).

    Args:
      paths: WORKDIRs of `ba_jax.train` (the latest checkpoint), checkpoints of them, or folders
        that `ba_jax.convert` wrote.
      out: the folder to write.
      partial: components may be missing.
      dtype: cast parameters to it; None keeps the stored dtypes.
      overwrite: replace `out` if it is not empty.
      progress: show a progress bar on a terminal.

    Raises:
      ConversionError: a run without a config or with a config that contradicts the others, a
        component that is missing, a model that the release's config cannot describe.
      CheckpointError: a run without weights or with weights that do not fit its config, or `out`
        cannot be written.
    """
    out = Path(out)
    runs = [_open_run(str(path), out) for path in paths]
    last = {component: run for run in runs for component in run.components}
    givers = {c: last[c] for c in COMPONENTS if c in last}
    missing = tuple(c for c in COMPONENTS if c not in givers)
    if not givers or (missing and not partial):
        hint = "; --partial leaves it out" if givers else ""
        raise ConversionError(
            f"{', '.join(run.label for run in runs)}: none holds {', '.join(missing)}{hint}"
        )
    _check_agreement(runs, givers)
    config = _join_configs(runs, givers)
    lazy: dict[str, arrays.LazyArray] = {}
    with progress_bar(f"join {out.name}", progress) as bar:
        for run in dict.fromkeys(givers.values()):
            components = tuple(c for c, giver in givers.items() if giver is run)
            lazy |= _lazy_variables(run, components, dtype, bar.update)
        bar.total = sum(array.nbytes for array in lazy.values())
        with arrays.new_folder(out, overwrite) as folder:
            write_model_config(folder, config)
            arrays.save_streamed(folder / layout.WEIGHTS_FOLDER, unflatten(lazy))
            manifest = {"kind": "baichuan", "components": {c: r.label for c, r in givers.items()}}
            (folder / SOURCE_FOLDER).mkdir()
            text = json.dumps(manifest, indent=1) + "\n"
            (folder / SOURCE_FOLDER / MANIFEST_FILE).write_text(text)
    return Joined(
        manifest["components"],
        missing,
        {run.label: run.helpers for run in runs if run.helpers},
        tuple(run.label for c, run in givers.items() if c == "llm" and run.config.llm.lora_rank),
    )


def _open_run(label: str, out: Path) -> JoinedRun:
    folder = layout.weights_folder(label)
    check_apart(out, folder, f"run {label}")
    arrays.check_files(folder)
    reader = arrays.Reader(folder)
    config = _read_config(label, folder)
    modules = dict.fromkeys(path.split("/")[1] for path in reader.arrays if "/" in path)
    components = tuple(c for c in COMPONENTS if c in modules)
    undescribed = [c for c in components if getattr(config, c) is None]
    if undescribed:
        raise ConversionError(f"{label}: holds {undescribed}, which its config does not describe")
    helpers = tuple(name for name in modules if name not in components)
    return JoinedRun(label, config, reader, components, helpers)


def _read_config(label: str, weights: Path) -> BaichuanAudioConfig:
    """Read the model's config from a run's config.json or an import's."""
    folders = [weights.parent]
    if workdir := layout.workdir_of(weights):
        folders.append(workdir)
    for folder in folders:
        path = folder / CONFIG_FILE
        try:
            run = layout.read_run_config(folder) or {}
            if "model" in run:
                return from_mapping(BaichuanAudioConfig, run["model"], f"{path}: model")
        except ConfigError as error:
            raise ConversionError(str(error)) from error
        except ValueError as error:
            raise ConversionError(f"{path}: model: {error}") from error
        if path.is_file() or (folder / VOCODER_CONFIG_FILE).is_file():
            return sources.checkpoint_config(folder)[1]
    raise ConversionError(
        f"{label}: no {CONFIG_FILE} in {' or '.join(map(str, folders))}: expected a WORKDIR of "
        "ba_jax.train, or a folder that ba_jax.convert wrote"
    )


def _check_agreement(runs: Sequence[JoinedRun], givers: Mapping[str, JoinedRun]) -> None:
    """Raise `ConversionError` unless the runs describe the parts that they share alike."""
    # The tokenizer's text loss may use another language model than the one that is built on it
    # (paper 3.1): only the runs that give the language model must agree on it and on the tokens.
    language = [run for run in runs if any(givers.get(c) is run for c in LANGUAGE_MODEL)]
    problems = []
    for name in (*givers, "tokens"):
        if name == "tokens":
            describing = [run for run in language if run.describes_whole_model]
        elif name in LANGUAGE_MODEL:
            describing = language
        else:
            describing = [run for run in runs if name in run.components]
        describing = [run for run in describing if getattr(run.release_config, name) is not None]
        for run, other in zip(describing, describing[1:], strict=False):
            a, b = (to_mapping(getattr(r.release_config, name)) for r in (run, other))
            problems += [
                f"{name}.{key} is {a[key]} in {run.label}, {b[key]} in {other.label}"
                for key in a
                if a[key] != b[key]
            ]
    bridge, embed = givers.get("vq_bridge"), givers.get("audio_embed")
    if bridge is not None and embed is not None:
        a, b = bridge.config.vq_bridge.codebook_sizes, embed.config.audio_embed.codebook_sizes
        if a != b:
            problems.append(
                f"codebook_sizes are {a} in {bridge.label} (vq_bridge), {b} in {embed.label} "
                "(audio_embed)"
            )
    report_problems("the runs are not of one model", problems)


def _join_configs(
    runs: Sequence[JoinedRun], givers: Mapping[str, JoinedRun]
) -> BaichuanAudioConfig:
    """Take each part from the run that gives it, or else from the last that describes it."""
    whole = [run for run in runs if run.describes_whole_model]
    if not whole:
        raise ConversionError(
            f"{', '.join(run.label for run in runs)}: no config.json describes a whole model, "
            "expected at least one WORKDIR of ba_jax.train"
        )

    def describing(component: str) -> JoinedRun:
        run = givers.get(component, whole[-1])
        return run if run.describes_whole_model else whole[-1]

    parts = {c: getattr(givers.get(c, whole[-1]).release_config, c) for c in COMPONENTS}
    if "vocoder" not in givers:
        parts["vocoder"] = None  # it is not part of config.json
    return BaichuanAudioConfig(
        **parts,
        tokens=describing("llm").config.tokens,
        flow_matching=describing("flow_unet").config.flow_matching,
    )


def _lazy_variables(
    run: JoinedRun, components: Sequence[str], dtype: Any, progress: Progress
) -> dict[str, arrays.LazyArray]:
    """Return path -> array to be written, adapters merged; check the run against its config."""
    expected = flatten(variable_shapes(run.config.only(*components)))
    run.reader.check_shapes(expected)
    undescribed = [
        path
        for path in run.reader.arrays
        if path.split("/")[1:2] in [[name] for name in components] and path not in expected
    ]
    report_problems(
        run.label, [f"holds {path}, which its config does not describe" for path in undescribed]
    )
    run.reader.check_chunks(expected)
    return {
        path: _lazy_array(run, path, dtype, progress)
        for path in expected
        if not path.split("/")[-1].startswith("lora_")
    }


def _lazy_array(run: JoinedRun, path: str, dtype: Any, progress: Progress) -> arrays.LazyArray:
    reader, shape = run.reader, run.reader.shape(path)
    out_dtype = reader.dtype(path)
    if dtype is not None and path.startswith("params/") and out_dtype in FLOAT_DTYPES:
        out_dtype = np.dtype(dtype)
    itemsize = max(out_dtype.itemsize, reader.dtype(path).itemsize)
    stored = reader.arrays[path].chunk_layout.read_chunk.shape or shape
    block = read_block(shape, stored, itemsize)
    chunk = write_chunk(block, itemsize)

    def pieces() -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        for start in _starts(shape, block):
            stop = tuple(min(s + b, n) for s, b, n in zip(start, block, shape, strict=True))
            region = tuple(map(slice, start, stop))
            # A stored chunk is read once, however large.
            values, adapter = reader.read(path, region), _read_adapter(run, path, region)
            for inner in _starts(values.shape, chunk):
                piece = values[tuple(slice(i, i + p) for i, p in zip(inner, chunk, strict=True))]
                if adapter is not None:
                    piece = _merge(run.config, piece, adapter, inner)
                progress(piece.size * out_dtype.itemsize)
                offset = tuple(s + i for s, i in zip(start, inner, strict=True))
                yield offset, piece.astype(out_dtype, copy=False)

    return arrays.LazyArray(shape, out_dtype, chunk, pieces)


Adapter = tuple[str, np.ndarray, np.ndarray]  # name of the matrix, A, B


def _read_adapter(run: JoinedRun, path: str, region: tuple[slice, ...]) -> Adapter | None:
    """Read the adapter of a region of a matrix; None if it has none."""
    llm = run.config.llm
    *layers, name, leaf = path.split("/")
    adapted = layers == ["params", "llm", "layers"] and leaf == "kernel"
    if not adapted or not llm.lora_rank or name not in llm.lora_targets:
        return None
    depth, rows, columns = region
    a, b = (f"{'/'.join(layers)}/lora_{name}_{half}" for half in "ab")
    rank = slice(None)
    return name, run.reader.read(a, (depth, rows, rank)), run.reader.read(b, (depth, rank, columns))


def _merge(
    config: BaichuanAudioConfig, piece: np.ndarray, adapter: Adapter, start: Sequence[int]
) -> np.ndarray:
    """Add an adapter's product to a piece of a matrix; `start` is its offset in the region."""
    name, a, b = adapter
    depth, rows, columns = (slice(s, s + n) for s, n in zip(start, piece.shape, strict=True))
    tree = {
        name: {"kernel": jnp.asarray(piece)},
        f"lora_{name}_a": a[depth, rows],
        f"lora_{name}_b": b[depth, :, columns],
    }
    llm = dataclasses.replace(config.llm, lora_targets=(name,))
    variables = {"params": {"llm": {"layers": tree}}}
    _, variables = merge_lora(dataclasses.replace(config, llm=llm), variables)
    return np.asarray(variables["params"]["llm"]["layers"][name]["kernel"])


def read_block(shape: Sequence[int], stored: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Shape to read at once: a stored chunk, or as many as `MAX_CHUNK_BYTES` allows."""
    block = [max(1, min(c, n)) for c, n in zip(stored, shape, strict=True)]
    for axis in reversed(range(len(block))):
        fits = arrays.MAX_CHUNK_BYTES // (math.prod(block) * itemsize)
        block[axis] = max(1, min(shape[axis], block[axis] * max(1, fits)))
    return tuple(block)


def write_chunk(block: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Shape of chunks of at most `MAX_CHUNK_BYTES` that tile a block."""
    chunk = list(block)
    for axis, length in enumerate(block):
        fits = arrays.MAX_CHUNK_BYTES // (math.prod(chunk[axis + 1 :]) * itemsize)
        divisors = (n for n in range(1, min(fits, length) + 1) if length % n == 0)
        chunk[axis] = max(divisors, default=1)
        if fits:
            break
    return tuple(chunk)


def _starts(shape: Sequence[int], step: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the offsets of the blocks of shape `step` that tile `shape`."""
    counts = [-(-n // s) for n, s in zip(shape, step, strict=True)]
    for index in np.ndindex(*counts):
        yield tuple(i * s for i, s in zip(index, step, strict=True))
