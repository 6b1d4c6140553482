"""Evaluates a model on a dataset's held-out part.

    python -m ba_jax.evaluate --config=configs/eval.py:nano --out=DIR \
        --checkpoint=runs/tokenizer,runs/flow,runs/stage2 --suite=asr,qa_s2t,qa_s2s,tts

Each checkpoint is a run's WORKDIR, one of its checkpoints, or a folder that `ba_jax.convert` wrote;
a component comes from the last one that holds it. OUT gets figures.json (the figures of all suites
and how they were made), items.jsonl (every item, with what was expected and what came), audio/, and
suites/NAME.json. A suite whose file is there, made with these settings and these checkpoints, is
not run again unless --overwrite; so the same command goes on where one stopped.

Suites: asr, qa_s2t, qa_t2t (a text model alone will do), qa_s2s, tts, reconstruction, and codec,
which is the part of reconstruction that needs no flow.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

# JAX and all that stands on it is imported by functions: the judge's processes import this module.


def find(checkpoints: Sequence[str], config, components: Sequence[str]) -> dict[str, str]:
    """Component -> the folder of weights that it comes from.

    Raises:
      CheckpointError: no checkpoint, or none that holds a component.
      ConfigError: a component that the model's config leaves out.
    """
    from ba_jax.checkpoint import CheckpointError, checkpoint_shapes
    from ba_jax.config import ConfigError
    from ba_jax.run_state import weights_folder

    absent = [name for name in components if getattr(config, name) is None]
    if absent:
        raise ConfigError(f"model: no {absent}, which the evaluation needs")
    folders = [weights_folder(path) for path in checkpoints]
    held = [set(checkpoint_shapes(folder).get("params", {})) for folder in folders]
    sources = {}
    for name in components:
        found = [folder for folder, names in zip(folders, held, strict=True) if name in names]
        if not found:
            raise CheckpointError(
                f"{', '.join(checkpoints)}: none holds {name}, which the evaluation needs"
            )
        sources[name] = str(found[-1])
    return sources


def load(config, sources: Mapping[str, str]) -> dict[str, Any]:
    """Variables of the components that `sources` has folders for.

    Raises:
      CheckpointError: a checkpoint of other sizes, or one that is damaged.
    """
    from ba_jax.checkpoint import load_variables
    from ba_jax.models.baichuan_audio import variable_shapes

    variables: dict[str, Any] = {}
    for folder in dict.fromkeys(sources.values()):
        own = [name for name, source in sources.items() if source == folder]
        shapes = variable_shapes(config.only(*own))
        for collection, tree in load_variables(folder, shapes, components=own).items():
            variables.setdefault(collection, {}).update(tree)
    return variables


def made_with(config: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """A hash of the settings and of the checkpoints' contents, by which results are known again."""
    from ba_jax.checkpoint import METADATA_FILE

    stamps = {
        name: (folder, os.stat(Path(folder) / METADATA_FILE).st_mtime_ns)
        for name, folder in sorted(sources.items())
    }
    # How many processes listen changes nothing in what they hear.
    kept = json.loads(json.dumps({"model": config["model"], "eval": config["eval"]}))
    kept["eval"].get("judge", {}).pop("processes", None)
    text = json.dumps([kept, stamps], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class _Progress:
    """A bar on a terminal, else a line when something is done."""

    def __init__(self, stream=None):
        import tqdm

        self._tqdm, self._stream = tqdm.tqdm, stream or sys.stdout
        self._bar, self._what, self._started = None, "", 0.0
        self.suite = ""

    def __call__(self, what: str, done: int, of: int) -> None:
        if what != self._what:
            self._what, self._started = what, time.monotonic()
            if self._stream.isatty():
                self.close()
                self._bar = self._tqdm(total=of, desc=f"{self.suite} {what}", file=self._stream)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
        if done >= of:
            if self._bar is None:
                print(f"{self.suite} {what}: {of}", file=self._stream, flush=True)
            self.close()
            self._what = ""

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _write(path: Path, text: str) -> None:
    """Writes a file that appears whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _done(path: Path, made: str) -> dict[str, Any] | None:
    """A suite's results, if they are there and were made with this."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if found.get("made_with") == made else None


def evaluate(
    config: Mapping[str, Any],
    checkpoints: Sequence[str],
    out: str | os.PathLike,
    suites: Sequence[str],
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Runs evaluations and returns the figures of all, see the module.

    Args:
      config: with `model` and `eval`, as `configs/eval.py` makes it.
      checkpoints: as on the command line.
      out: folder for the results.
      suites: names of `ba_jax.evals.suites.SUITES`.
      overwrite: run them even where their results are there.

    Raises:
      ConfigError, CheckpointError, EvalError, RecordError, SpeechToolError: see there.
    """
    from ba_jax.config import from_mapping
    from ba_jax.evals import suites as suites_lib
    from ba_jax.evals.base import Bench, EvalSettings
    from ba_jax.evals.judge import Judge
    from ba_jax.models.baichuan_audio import BaichuanAudioConfig

    model = from_mapping(BaichuanAudioConfig, config["model"])
    settings = from_mapping(EvalSettings, config["eval"], "eval")
    vocoder = settings.synthesis.vocoder
    sources = find(checkpoints, model, suites_lib.components(suites, vocoder))
    out = Path(out)
    (out / "suites").mkdir(parents=True, exist_ok=True)
    results: dict[str, dict] = {}
    progress = _Progress()
    bench = None
    with Judge(settings.judge) as judge:
        for number, name in enumerate(suites):
            own = {part: sources[part] for part in suites_lib.components([name], vocoder)}
            made = made_with(config, own)
            path = out / "suites" / f"{name}.json"
            found = None if overwrite else _done(path, made)
            progress.suite = f"{number + 1}/{len(suites)} {name}"
            if found is not None:
                results[name] = found
                print(f"{progress.suite}: done before", flush=True)
                continue
            if bench is None:
                bench = Bench(model, load(model, sources), settings, out, judge, progress)
            started = time.monotonic()
            outcome = suites_lib.SUITES[name].run(bench)
            progress.close()
            results[name] = {
                "made_with": made,
                "checkpoints": own,
                "seconds": round(time.monotonic() - started, 1),
                "figures": outcome.figures,
                "items": outcome.items,
            }
            _write(path, json.dumps(results[name], ensure_ascii=False, indent=1))
            print(f"{progress.suite}: {results[name]['seconds']} s", flush=True)
    return _summarise(out, results)


def _summarise(out: Path, results: Mapping[str, dict]) -> dict[str, Any]:
    """Writes figures.json and items.jsonl of these suites."""
    figures: dict[str, Any] = {}
    lines = []
    for name, found in results.items():
        figures |= found["figures"]
        for item in found["items"]:
            lines.append(json.dumps({"suite": name, **item}, ensure_ascii=False))
    figures["seconds"] = {name: found["seconds"] for name, found in results.items()}
    figures["checkpoints"] = {}
    for found in results.values():
        figures["checkpoints"] |= found["checkpoints"]
    _write(out / "items.jsonl", "".join(f"{line}\n" for line in lines))
    _write(out / "figures.json", json.dumps(figures, ensure_ascii=False, indent=1) + "\n")
    return figures


def define_flags() -> None:
    """The command line's."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", None, "A config with `model` and `eval`.")
    flags.DEFINE_list("checkpoint", None, "WORKDIRs or checkpoints; the last that holds a part.")
    flags.DEFINE_string("out", None, "Folder for the results.")
    flags.DEFINE_list(
        "suite", "asr,qa_s2t,qa_t2t,qa_s2s,tts,reconstruction", "What to run, in this order."
    )
    flags.DEFINE_bool("overwrite", False, "Run suites whose results are there.")
    for name in ("config", "checkpoint", "out"):
        flags.mark_flag_as_required(name)


def main(argv: list[str]) -> None:
    """Evaluates and prints the figures."""
    import jax

    values = flags.FLAGS
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # Orbax and TFDS tell at length what goes well
    config = values.config.to_dict()
    if cache := config.get("compilation_cache", ""):
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    try:
        figures = evaluate(
            config, values.checkpoint, values.out, values.suite, overwrite=values.overwrite
        )
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"ba_jax.evaluate: {error}")
    for name, value in figures.items():
        if isinstance(value, (int, float)):
            print(f"{name:44s} {value:.4f}" if isinstance(value, float) else f"{name:44s} {value}")
        elif isinstance(value, dict) and name.startswith("mel_mae"):
            print(f"{name:44s} " + "  ".join(f"{k}: {v:.4f}" for k, v in value.items()))
        elif name.endswith(("_judge", "_scored")):
            print(f"{name:44s} {value}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
