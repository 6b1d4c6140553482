"""The components that separate runs trained, in one checkpoint folder that `export` takes.

What the model is comes from the runs themselves: the config.json in a WORKDIR of `ba_jax.train`,
or the config files that the importer leaves.
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
import tqdm

from ba_jax.checkpoints import arrays, layout
from ba_jax.config import ConfigError, from_mapping, to_mapping
from ba_jax.convert import sources
from ba_jax.convert.engine import FLOAT_DTYPES, ConversionError, report_problems
from ba_jax.convert.hf_config import write_model_config
from ba_jax.convert.importer import MANIFEST_FILE, SOURCE_FOLDER
from ba_jax.convert.sources import CONFIG_FILE, VOCODER_CONFIG_FILE
from ba_jax.models.baichuan_audio import BaichuanAudioConfig, variable_shapes
from ba_jax.models.lora import merge_lora
from ba_jax.tree import flatten, unflatten
from ba_jax.vocab import COMPONENTS, LANGUAGE_MODEL


# The tokenizer's text loss may go through another language model than the one that is built on it
# (paper 3.1): of these, and the tokens, only the runs that give them must agree.
@dataclasses.dataclass(frozen=True)
class _Run:
    """A checkpoint and what it holds.

    Attributes:
      label: the path, as given.
      config: of the model that it was part of; what an import does not describe is None.
      reader: its arrays.
      components: those of the model that it holds.
      helpers: other modules in it.
    """

    label: str
    config: BaichuanAudioConfig
    reader: arrays.Reader
    components: tuple[str, ...]
    helpers: tuple[str, ...]

    @property
    def plain(self) -> BaichuanAudioConfig:
        """`config` of the same model as the release has it: no adapters, q, k and v packed."""
        llm = self.config.llm
        if llm is None:
            return self.config
        fields = dataclasses.fields(llm)
        defaults = {f.name: f.default for f in fields if f.name.startswith("lora_")}
        llm = dataclasses.replace(llm, **defaults, qkv_packed=True)
        return dataclasses.replace(self.config, llm=llm)

    def holds(self, path: str, components: Sequence[str]) -> bool:
        """Whether a variable is one of these components'."""
        return path.split("/")[1:2] in [[name] for name in components]


@dataclasses.dataclass(frozen=True)
class Joined:
    """What was written.

    Attributes:
      sources: component -> the run that gave it.
      missing: components that no run holds.
      left_out: run -> its modules that only served its training.
      merged: runs whose adapters were merged.
    """

    sources: Mapping[str, str]
    missing: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]
    merged: tuple[str, ...]

    def lines(self) -> list[str]:
        """The same for people."""
        lines = [f"{name:14s} from {run}" for name, run in self.sources.items()]
        lines += [f"{name:14s} missing" for name in self.missing]
        lines += [f"left out of {run}: {', '.join(n)}" for run, n in self.left_out.items()]
        return lines + [f"merged the adapters of {run} into its matrices" for run in self.merged]


def join_checkpoints(
    runs: Sequence[str | Path],
    out: Path,
    *,
    partial: bool = False,
    dtype: Any = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Joined:
    """Writes a checkpoint folder with each component from the last run that holds it.

    Arrays go through memory in pieces of `checkpoint.MAX_CHUNK_BYTES`, or of a stored chunk where
    that is larger (a run writes what lies on one device as one chunk).

    Args:
      runs: WORKDIRs of `ba_jax.train` (the latest checkpoint) or checkpoints of them, folders that
        `ba_jax.convert` wrote.
      out: the folder to write.
      partial: components may be missing.
      dtype: parameters are cast to it; None keeps them as stored.
      overwrite: replace `out` if it holds something.
      progress: show a progress bar on a terminal.

    Raises:
      ConversionError: a run without a config or with another one than the others, a component that
        is missing, a model that the release's config cannot describe.
      CheckpointError: a run without weights or with weights of other sizes than its config's, or
        `out` cannot be written.
    """
    out = Path(out)
    opened = [_open(str(run), out) for run in runs]
    givers = {c: run for run in opened for c in run.components}  # the last one stays
    givers = {c: givers[c] for c in COMPONENTS if c in givers}
    missing = tuple(c for c in COMPONENTS if c not in givers)
    if not givers or (missing and not partial):
        hint = "; --partial leaves it out" if givers else ""
        raise ConversionError(
            f"{', '.join(run.label for run in opened)}: none holds {', '.join(missing)}{hint}"
        )
    _check_agreement(opened, givers)
    config = _whole_config(opened, givers)
    lazy: dict[str, arrays.LazyArray] = {}
    with tqdm.tqdm(
        desc=f"join {out.name}", unit="B", unit_scale=True, disable=None if progress else True
    ) as bar:
        for run in dict.fromkeys(givers.values()):
            own = tuple(c for c, giver in givers.items() if giver is run)
            lazy |= _lazy_variables(run, own, dtype, bar.update)
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
        {run.label: run.helpers for run in opened if run.helpers},
        tuple(run.label for c, run in givers.items() if c == "llm" and run.config.llm.lora_rank),
    )


def _open(label: str, out: Path) -> _Run:
    folder = layout.weights_folder(label)
    inner, outer = folder.resolve(), out.resolve()
    if inner == outer or outer in inner.parents:
        raise ConversionError(f"{out}: holds the run {label}, expected another folder")
    reader = arrays.Reader(folder)
    arrays.check_files(folder)
    config = _read_config(label, folder)
    held = dict.fromkeys(path.split("/")[1] for path in reader.arrays if "/" in path)
    components = tuple(c for c in COMPONENTS if c in held)
    undescribed = [c for c in components if getattr(config, c) is None]
    if undescribed:
        raise ConversionError(f"{label}: holds {undescribed}, which its config does not describe")
    return _Run(label, config, reader, components, tuple(n for n in held if n not in components))


def _read_config(label: str, weights: Path) -> BaichuanAudioConfig:
    """The model's config, from a run's config.json or an import's."""
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


def _check_agreement(runs: Sequence[_Run], givers: Mapping[str, _Run]) -> None:
    """Raises `ConversionError` unless the runs describe what they share alike."""
    language = [run for run in runs if any(givers.get(c) is run for c in LANGUAGE_MODEL)]
    problems = []
    for name in (*givers, "tokens"):
        if name in (*LANGUAGE_MODEL, "tokens"):
            witnesses = [run for run in language if name in LANGUAGE_MODEL or _is_whole(run)]
        else:
            witnesses = [run for run in runs if name in run.components]
        known = [run for run in witnesses if getattr(run.plain, name) is not None]
        for one, other in zip(known, known[1:], strict=False):
            a, b = (to_mapping(getattr(run.plain, name)) for run in (one, other))
            problems += [
                f"{name}.{key} is {a[key]} in {one.label}, {b[key]} in {other.label}"
                for key in a
                if a[key] != b[key]
            ]
    bridge, embed = (givers[c] if c in givers else None for c in ("vq_bridge", "audio_embed"))
    if bridge is not None and embed is not None:
        a, b = bridge.config.vq_bridge.codebook_sizes, embed.config.audio_embed.codebook_sizes
        if a != b:
            problems.append(
                f"codebook_sizes are {a} in {bridge.label} (vq_bridge), {b} in {embed.label} "
                "(audio_embed)"
            )
    report_problems("the runs are not of one model", problems)


def _is_whole(run: _Run) -> bool:
    """Its config describes all but, maybe, the vocoder, and with that tokens and sampling."""
    return set(COMPONENTS) - {"vocoder"} <= set(run.config.components)


def _whole_config(runs: Sequence[_Run], givers: Mapping[str, _Run]) -> BaichuanAudioConfig:
    """Each part as the run says that gives it, or else the last that describes it."""
    whole = [run for run in runs if _is_whole(run)]
    if not whole:
        raise ConversionError(
            f"{', '.join(run.label for run in runs)}: no config.json describes a whole model, "
            "expected at least one WORKDIR of ba_jax.train"
        )

    def of(name: str, giver: str) -> Any:
        run = givers.get(giver, whole[-1])
        return getattr((run if name in COMPONENTS or _is_whole(run) else whole[-1]).plain, name)

    parts = {c: of(c, c) for c in COMPONENTS}
    if "vocoder" not in givers:
        parts["vocoder"] = None  # it has a config file of its own
    tokens, flow = of("tokens", "llm"), of("flow_matching", "flow_unet")
    return BaichuanAudioConfig(**parts, tokens=tokens, flow_matching=flow)


def _lazy_variables(
    run: _Run, components: Sequence[str], dtype: Any, progress: Callable[[int], None]
) -> dict[str, arrays.LazyArray]:
    """Path -> the array to be written, adapters merged; checks that the run is its config's."""
    expected = flatten(variable_shapes(run.config.only(*components)))
    run.reader.check_shapes(expected)
    stored = [path for path in run.reader.arrays if run.holds(path, components)]
    report_problems(
        run.label,
        [f"holds {path}, which its config does not describe" for path in set(stored) - {*expected}],
    )
    run.reader.check_chunks(expected)
    return {
        path: _lazy_array(run, path, dtype, progress)
        for path in expected
        if not path.split("/")[-1].startswith("lora_")
    }


def _lazy_array(run: _Run, path: str, dtype: Any, progress) -> arrays.LazyArray:
    reader, shape = run.reader, run.reader.shape(path)
    out_dtype = reader.dtype(path)
    if dtype is not None and path.startswith("params/") and out_dtype in FLOAT_DTYPES:
        out_dtype = np.dtype(dtype)
    itemsize = max(out_dtype.itemsize, reader.dtype(path).itemsize)
    stored = reader.arrays[path].chunk_layout.read_chunk.shape or shape
    block = _blocks(shape, stored, itemsize)
    part = _parts(block, itemsize)

    def pieces() -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        for start in _starts(shape, block):
            stop = tuple(min(s + b, n) for s, b, n in zip(start, block, shape, strict=True))
            region = tuple(map(slice, start, stop))
            # A stored chunk is read once, however large.
            values, adapter = reader.read(path, region), _adapter(run, path, region)
            for inner in _starts(values.shape, part):
                piece = values[tuple(slice(i, i + p) for i, p in zip(inner, part, strict=True))]
                if adapter is not None:
                    piece = _merged(run.config, piece, adapter, inner)
                progress(piece.size * out_dtype.itemsize)
                offset = tuple(s + i for s, i in zip(start, inner, strict=True))
                yield offset, piece.astype(out_dtype, copy=False)

    return arrays.LazyArray(shape, out_dtype, part, pieces)


def _adapter(
    run: _Run, path: str, region: tuple[slice, ...]
) -> tuple[str, np.ndarray, np.ndarray] | None:
    """(name, A, B) of the adapter of a region of a matrix; None if it has none."""
    llm = run.config.llm
    *layers, name, leaf = path.split("/")
    adapted = layers == ["params", "llm", "layers"] and leaf == "kernel"
    if not adapted or not llm.lora_rank or name not in llm.lora_targets:
        return None
    depth, rows, columns = region
    a, b = (f"{'/'.join(layers)}/lora_{name}_{half}" for half in "ab")
    every = slice(None)
    return (
        name,
        run.reader.read(a, (depth, rows, every)),
        run.reader.read(b, (depth, every, columns)),
    )


def _merged(
    config: BaichuanAudioConfig,
    piece: np.ndarray,
    adapter: tuple[str, np.ndarray, np.ndarray],
    start: Sequence[int],
) -> np.ndarray:
    """A piece of a matrix with its adapter's product added; `start` is its place in the region."""
    name, a, b = adapter
    depth, rows, columns = (slice(s, s + n) for s, n in zip(start, piece.shape, strict=True))
    tree = {
        name: {"kernel": jnp.asarray(piece)},
        f"lora_{name}_a": a[depth, rows],
        f"lora_{name}_b": b[depth, :, columns],
    }
    one = dataclasses.replace(config, llm=dataclasses.replace(config.llm, lora_targets=(name,)))
    _, variables = merge_lora(one, {"params": {"llm": {"layers": tree}}})
    return np.asarray(variables["params"]["llm"]["layers"][name]["kernel"])


def _blocks(shape: Sequence[int], stored: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """What to read at once: one stored chunk, or as many as `MAX_CHUNK_BYTES` allow."""
    block = [max(1, min(c, n)) for c, n in zip(stored, shape, strict=True)]
    for axis in reversed(range(len(block))):
        fits = arrays.MAX_CHUNK_BYTES // (math.prod(block) * itemsize)
        block[axis] = max(1, min(shape[axis], block[axis] * max(1, fits)))
    return tuple(block)


def _parts(block: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Chunks to write: parts of a block of at most `MAX_CHUNK_BYTES`, which tile it."""
    part = list(block)
    for axis, length in enumerate(block):
        fits = arrays.MAX_CHUNK_BYTES // (math.prod(part[axis + 1 :]) * itemsize)
        part[axis] = max((n for n in range(1, min(fits, length) + 1) if length % n == 0), default=1)
        if fits:
            break
    return tuple(part)


def _starts(shape: Sequence[int], step: Sequence[int]) -> Iterator[tuple[int, ...]]:
    counts = [-(-n // s) for n, s in zip(shape, step, strict=True)]
    for index in np.ndindex(*counts):
        yield tuple(i * s for i, s in zip(index, step, strict=True))
