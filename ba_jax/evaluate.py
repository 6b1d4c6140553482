"""Evaluates a model on a dataset's held-out part.

    python -m ba_jax.evaluate --config=configs/eval.py:nano --out=DIR \
        --checkpoint=runs/tokenizer,runs/flow,runs/stage2 --suite=asr,qa_s2t,qa_s2s,tts

Each checkpoint is a run's WORKDIR, one of its checkpoints, or a folder that `ba_jax.convert` wrote;
a component comes from the last one that holds it. Suites: asr, s2tt, qa_s2t, qa_t2t (a text model
alone will do), qa_s2s, tts, reconstruction, and codec, its part that needs no flow.

OUT gets, of all suites: figures.json (figures, their 95 % intervals, and how they were made),
report.md, index.html (with players), items.jsonl (what was expected and what came) and failed.jsonl
(items that failed, which stage of theirs, and why; they count as wrong); of each suite:

    generations/SUITE.jsonl     what the model made: text, codes
    judge_inputs/SUITE.jsonl    what the judge was given; its waves are in audio/
    judged/SUITE.jsonl          what it answered
    suites/SUITE.json           the scores

The same command goes on where one stopped, inside a suite too. `--stage=score` scores what is saved
again, `--stage=judge` asks the judge again, both without a model; `--stage=generate` begins anew.
On several hosts each runs the command with `--distributed`, see `ba_jax.distributed`, OUT is a
folder that all of them see. Host H takes items H, H + hosts, ... on a mesh of its own devices
(`--config.mesh.fsdp=4`); with `--config.hosts=together` one mesh has the devices of all hosts, for
a model larger than one host's memory: all of them work on every item, and the first one writes.
Exit codes are those of `ba_jax.train`.
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

import numpy as np
from absl import app, flags, logging

from ba_jax.files import write_whole

# JAX and all that stands on it is imported by functions: the judge's processes import this module.


_JUDGED_BY = ("judge", "verdict")
_PRESENTED_BY = ("synthesis",)


def made_with(config: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, str]:
    """Stage -> a hash of the settings and checkpoints it depends on, by which lines are known.

    What is generated does not depend on how it is synthesised or judged.
    """
    from ba_jax.checkpoints.layout import stamp

    stamps = {name: (folder, stamp(folder)) for name, folder in sorted(sources.items())}
    settings = json.loads(json.dumps(config["eval"]))
    # How many processes listen, and how often lines are saved, changes nothing in them.
    settings.get("judge", {}).pop("processes", None)
    settings.pop("save_every", None)
    later = {key: settings.pop(key, None) for key in (*_PRESENTED_BY, *_JUDGED_BY)}
    base = [config["model"], settings, stamps]
    parts = {
        "generate": base,
        "present": [*base, [later[key] for key in _PRESENTED_BY]],
        "judge": [*base, later],
    }
    return {
        stage: hashlib.sha256(json.dumps(part, sort_keys=True, default=str).encode()).hexdigest()
        for stage, part in parts.items()
    }


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


def _done(path: Path, made: Mapping[str, str]) -> dict[str, Any] | None:
    """A suite's results, if they are there and were made with this."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if found.get("made_with") == made else None


def _hosts(together: bool):
    """This process among those of `jax.distributed`, with a name for this run that all agree on."""
    import jax

    from ba_jax.evals.runner import Hosts

    if jax.process_count() == 1:
        return Hosts()
    from jax.experimental import multihost_utils

    token = int.from_bytes(os.urandom(3), "big")
    token = int(multihost_utils.broadcast_one_to_all(np.asarray(token, np.int32)))
    return Hosts(jax.process_index(), jax.process_count(), f"{token:06x}", together)


def evaluate(
    config: Mapping[str, Any],
    checkpoints: Sequence[str],
    out: str | os.PathLike,
    suites: Sequence[str],
    *,
    start: str = "go on",
) -> dict[str, Any]:
    """Runs evaluations and returns the figures of all, see the module.

    Args:
      config: with `model`, `eval` and perhaps `mesh` and `hosts`, as `configs/eval.py` makes it.
      checkpoints: as on the command line; with start "judge" or "score" none is needed.
      out: folder for the results.
      suites: names of `ba_jax.evals.suites.registry.SUITES`.
      start: where suites begin, see `ba_jax.evals.runner.run`.

    Returns:
      What figures.json holds; on hosts other than the first nothing.

    Raises:
      ConfigError, CheckpointError, EvalError, LineError, RecordError, ShardingError: see there.
    """
    from ba_jax import sharding
    from ba_jax.checkpoints.components import find
    from ba_jax.config import from_mapping
    from ba_jax.evals import runner
    from ba_jax.evals.base import Bench, EvalSettings
    from ba_jax.evals.judges.recogniser import Judge
    from ba_jax.evals.suite import EvalError
    from ba_jax.evals.suites import registry as suites_lib
    from ba_jax.models.baichuan_audio import BaichuanAudioConfig
    from ba_jax.sampling.speech_model import SpeechModel, load_speech_model
    from ba_jax.sharding import MeshSettings, broadcast_from_first

    if start not in runner.STARTS:
        raise EvalError(f"stage {start!r}, expected one of {runner.STARTS[1:]}")
    model = from_mapping(BaichuanAudioConfig, config["model"])
    settings = from_mapping(EvalSettings, config["eval"], "eval")
    mesh_settings = from_mapping(MeshSettings, config.get("mesh", {}), "mesh")
    sharing = sharding.check_hosts(config.get("hosts", sharding.HOSTS[0]))
    vocoder = settings.synthesis.vocoder
    needed = suites_lib.components(suites, vocoder)
    saved = start in ("judge", "score")
    sources = {} if saved else find(checkpoints, model, needed)
    out = Path(out)
    (out / "suites").mkdir(parents=True, exist_ok=True)
    results: dict[str, dict] = {}
    progress = _Progress()
    hosts = _hosts(sharing == "together")
    own = {
        name: {part: sources[part] for part in suites_lib.components([name], vocoder) if sources}
        for name in suites
    }
    made = {name: made_with(config, parts) for name, parts in own.items()}
    paths = {name: out / "suites" / f"{name}.json" for name in suites}
    found = {name: None if start != "go on" else _done(paths[name], made[name]) for name in suites}
    there = broadcast_from_first([found[name] is not None for name in suites])
    done = dict(zip(suites, there, strict=True))
    for name in suites:
        if not done[name]:
            suites_lib.SUITES[name].require()
    bench = None
    with Judge(settings.judge) as judge:
        for number, name in enumerate(suites):
            progress.suite = f"{number + 1}/{len(suites)} {name}"
            if done[name]:
                results[name] = found[name]
                failed = len((found[name] or {}).get("failed", ()))
                more = f", {failed} items failed" if failed else ""
                print(f"{progress.suite}: done before{more}", flush=True)
                continue
            if bench is None:
                if saved:
                    speech_model = SpeechModel(model, {}, settings)
                else:
                    speech_model = load_speech_model(
                        model, sources, settings, mesh_settings, sharing, run=judge.map
                    )
                bench = Bench(speech_model, settings, out, judge, progress, hosts.writes)
            started = time.monotonic()
            outcome = runner.run(suites_lib.SUITES[name], bench, made[name], hosts, start)
            progress.close()
            seconds = round(time.monotonic() - started, 1)
            print(f"{progress.suite}: {seconds} s", flush=True)
            if outcome is None:
                continue
            before = _earlier(paths[name])
            results[name] = {
                **outcome,
                "checkpoints": before.get("checkpoints", {}) if saved else own[name],
                "seconds": before.get("seconds", seconds) if saved else seconds,
            }
            write_whole(paths[name], json.dumps(results[name], ensure_ascii=False, indent=1))
            _tell_failed(progress.suite, outcome["failed"], len(outcome["items"]))
    return {} if hosts.index else _summarise(out, results)


def _earlier(path: Path) -> dict[str, Any]:
    """What a suite's file says before it is written again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def _tell_failed(suite: str, failed: Sequence[Mapping[str, str]], of: int) -> None:
    """Says how many items failed, and why the first few did."""
    if failed:
        print(f"{suite}: {len(failed)} of {of} items failed", flush=True)
    for one in failed[:3]:
        print(f"  {one['id']}: {one['stage']}: {one['reason']:.200}", flush=True)


def _summarise(out: Path, results: Mapping[str, dict]) -> dict[str, Any]:
    """Writes figures.json, items.jsonl, failed.jsonl, report.md and index.html of these suites."""
    from ba_jax.evals.scoring import bootstrap
    from ba_jax.report import evaluation

    figures: dict[str, Any] = {}
    items, failed = [], []
    for name, found in results.items():
        figures |= found["figures"]
        items += [{"suite": name, **item} for item in found["items"]]
        failed += [{"suite": name, **one} for one in found["failed"]]
    figures["ci95"] = bootstrap.DECLARED
    figures["seconds"] = {name: found["seconds"] for name, found in results.items()}
    figures["checkpoints"] = {}
    for found in results.values():
        figures["checkpoints"] |= found["checkpoints"]
    for name, lines in (("items", items), ("failed", failed)):
        text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
        write_whole(out / f"{name}.jsonl", text)
    write_whole(out / "figures.json", json.dumps(figures, ensure_ascii=False, indent=1) + "\n")
    evaluation.write(out)
    return figures


def define_flags() -> None:
    """The command line's."""
    from ml_collections import config_flags

    from ba_jax import distributed

    config_flags.DEFINE_config_file("config", None, "A config with `model` and `eval`.")
    flags.DEFINE_list("checkpoint", None, "WORKDIRs or checkpoints; the last that holds a part.")
    flags.DEFINE_string("out", None, "Folder for the results.")
    flags.DEFINE_list(
        "suite", "asr,s2tt,qa_s2t,qa_t2t,qa_s2s,tts,reconstruction", "What to run, in this order."
    )
    flags.DEFINE_enum(
        "stage",
        None,
        ["generate", "judge", "score"],
        "Begin anew, with the saved judge inputs, or with all that is saved; default: go on.",
    )
    flags.DEFINE_bool("overwrite", False, "The same as --stage=generate.")
    distributed.define_flags()
    for name in ("config", "out"):
        flags.mark_flag_as_required(name)


def main(argv: list[str]) -> None:
    """Evaluates and prints the figures."""
    from ba_jax import distributed
    from ba_jax.distributed import use_compilation_cache

    values = flags.FLAGS
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # Orbax and TFDS tell at length what goes well
    config = values.config.to_dict()
    use_compilation_cache(config.get("compilation_cache", ""))
    start = values.stage or ("generate" if values.overwrite else "go on")
    command = distributed.command_line("ba_jax.evaluate")
    try:
        joined = distributed.initialize_from_flags(command)
        if joined:
            print(joined, flush=True)
        figures = evaluate(config, values.checkpoint or (), values.out, values.suite, start=start)
    except (ValueError, RuntimeError, OSError) as error:
        distributed.exit_with_error(command, error)
    for name, value in figures.items():
        interval = figures.get(f"{name}_ci95")
        around = "" if interval is None else f"  [{interval[0]:.4f}, {interval[1]:.4f}]"
        if isinstance(value, (int, float)):
            shown = f"{value:.4f}" if isinstance(value, float) else f"{value}"
            print(f"{name:44s} {shown}{around}")
        elif isinstance(value, dict) and name.startswith("mel_mae"):
            print(f"{name:44s} " + "  ".join(f"{k}: {v:.4f}" for k, v in value.items()))
        elif name.endswith(("_judge", "_scored", "_signature")):
            print(f"{name:44s} {value}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
