"""Runs suites and writes their results into a folder.

    suites/SUITE.json   a suite's figures, rows of items, failed items, checkpoints and seconds
    figures.json        figures of all suites, with their 95 % intervals and how they were made;
                        `normalisers` names each normalisation with its version
    items.jsonl         each item's reference, hypothesis and score
    failed.jsonl        items that failed, with phase and reason; they count as wrong

A suite whose file was made with the same settings and checkpoints is not run again. One that other
versions of the normalisations scored is scored again, and judged again where a judge's changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import tqdm
from jax.experimental import multihost_utils

from ba_jax import json_lines, sharding
from ba_jax.checkpoints.components import find
from ba_jax.checkpoints.layout import stamp
from ba_jax.config import expected, from_mapping
from ba_jax.evals import runner
from ba_jax.evals.bench import Bench
from ba_jax.evals.items import EvalError
from ba_jax.evals.judges import answers, recogniser, rules
from ba_jax.evals.scoring import bootstrap, text
from ba_jax.evals.settings import EvalSettings
from ba_jax.evals.suite import Suite
from ba_jax.evals.suites import registry
from ba_jax.files import write_json, write_whole
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.sampling.listening import load_listening_model
from ba_jax.sampling.speech_model import SpeechModel, load_speech_model


def normalisers() -> dict[str, str]:
    """Return what texts, answers and replies are normalised by, each with its version."""
    replies = f"replies of a judge of answers; version {answers.VERSION}"
    return {**text.normalisers(), "rules": rules.NAME, "replies": replies}


def hash_inputs(config: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, str]:
    """Hash the settings and checkpoints (component -> folder) that each phase's lines depend on.

    Generation does not depend on the settings of synthesis and judges. Scores depend on the
    `normalisers`, and so do verdicts by rules.
    """
    stamps = {name: (folder, stamp(folder)) for name, folder in sorted(sources.items())}
    settings = json.loads(json.dumps(config["eval"]))
    # These change no line: the number of judging processes, and the size of saved batches.
    settings.get("judge", {}).pop("processes", None)
    settings.pop("save_every", None)
    later = {key: settings.pop(key, None) for key in ("synthesis", "judge", "verdict")}
    base = [config["model"], settings, stamps]
    inputs = {
        "generate": base,
        "present": [*base, [later["synthesis"]]],
        "judge": [*base, later, rules.VERSION, answers.VERSION],
        "score": [normalisers()],
    }
    return {
        phase: hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
        for phase, value in inputs.items()
    }


def evaluate(
    config: Mapping[str, Any],
    checkpoints: Sequence[str],
    out: str | os.PathLike,
    suites: Sequence[str],
    *,
    start: str = runner.STARTS[0],
) -> dict[str, Any]:
    """Run suites and write their results; returns the figures of all.

    Args:
      config: with `model`, `eval` and perhaps `mesh` and `hosts`, as `configs/eval.py` makes it.
      checkpoints: runs' WORKDIRs or checkpoints; a component comes from the last one that holds it.
        With start "judge" or "score" none is needed.
      suites: names of `ba_jax.evals.suites.registry.SUITES`.
      start: first phase, an entry of `ba_jax.evals.runner.STARTS`.

    Returns:
      The content of figures.json; {} on hosts other than the first.

    Raises:
      ConfigError, CheckpointError, EvalError, RecordError, ShardingError: a wrong config,
        checkpoint, suite, dataset or mesh.
    """
    if start not in runner.STARTS:
        raise EvalError(f"stage {expected(start, runner.STARTS[1:])}")
    model = from_mapping(BaichuanAudioConfig, config["model"])
    settings = from_mapping(EvalSettings, config["eval"], "eval")
    mesh_settings = from_mapping(sharding.MeshSettings, config.get("mesh", {}), "mesh")
    sharing = sharding.check_hosts(config.get("hosts", sharding.HOSTS[0]))
    choices = settings.synthesis.vocoder, settings.hears
    needed = registry.components(suites, *choices)
    needs_model = start not in ("judge", "score")
    sources = find(checkpoints, model, needed) if needs_model else {}
    out = Path(out)
    (out / "suites").mkdir(parents=True, exist_ok=True)
    hosts = runner.Hosts(
        jax.process_index(),
        jax.process_count(),
        sharing == "together",
        multihost_utils.sync_global_devices,
    )
    plans = []
    for name in suites:
        parts = registry.components([name], *choices) if sources else ()
        used = {part: sources[part] for part in parts}
        path = out / "suites" / f"{name}.json"
        plans.append(_SuitePlan(registry.SUITES[name], used, hash_inputs(config, used), path))
    # Hosts agree on the first one's view of the folder.
    is_done = [start == "resume" and plan.is_done() for plan in plans]
    is_done = sharding.broadcast_from_first(is_done)
    for plan, done in zip(plans, is_done, strict=True):
        if not done:
            plan.suite.require()

    progress = _Progress()
    results: dict[str, dict] = {}
    with recogniser.SpeechJudge(settings.judge) as judge:
        if not all(is_done):
            if needs_model:
                speech_model = load_model(
                    model, sources, settings, mesh_settings, sharing, run=judge.map
                )
            else:
                speech_model = SpeechModel(model, {}, settings)
            bench = Bench(speech_model, settings, out, judge, progress, hosts.writes)
        for number, (plan, done) in enumerate(zip(plans, is_done, strict=True), 1):
            progress.suite = f"{number}/{len(plans)} {plan.suite.name}"
            if done:
                result = results[plan.suite.name] = plan.read_saved()
                failed = len(result.get("failed", ()))
                suffix = f", {failed} items failed" if failed else ""
                print(f"{progress.suite}: done before{suffix}", flush=True)
                continue
            if plan.is_outdated():
                print(f"{progress.suite}: other normalisers scored it: scored again", flush=True)
            started = time.monotonic()
            result = runner.run(plan.suite, bench, plan.made_with, hosts, start)
            progress.close()
            seconds = round(time.monotonic() - started, 1)
            print(f"{progress.suite}: {seconds} s", flush=True)
            if result is not None:
                # Scored or judged again, a suite keeps the origin of its generations.
                saved = {} if needs_model else plan.read_saved()
                result["checkpoints"] = saved.get("checkpoints", plan.sources)
                result["seconds"] = saved.get("seconds", seconds)
                results[plan.suite.name] = result
                write_json(plan.path, result)
                _print_failed(progress.suite, result["failed"], len(result["items"]))
    return {} if hosts.index else _write_results(out, results)


def load_model(
    config: BaichuanAudioConfig,
    sources: Mapping[str, str],
    settings: EvalSettings,
    *mesh: Any,
    **options: Any,
) -> SpeechModel:
    """Load the model that hears as the settings say, see `load_speech_model`."""
    if settings.hears == "codes":
        return load_speech_model(config, sources, settings, *mesh, **options)
    quantized = settings.hears == "quantized"
    return load_listening_model(config, sources, settings, *mesh, quantized=quantized, **options)


@dataclasses.dataclass(frozen=True)
class _SuitePlan:
    """A suite to run: its components' checkpoints, the hashes of its inputs, its results' file."""

    suite: Suite
    sources: Mapping[str, str]
    made_with: Mapping[str, str]
    path: Path

    def read_saved(self) -> dict[str, Any]:
        """Read the saved results; {} if there are none, or the file is damaged."""
        try:
            saved = json.loads(self.path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return saved if isinstance(saved, dict) else {}

    def is_outdated(self) -> bool:
        """The saved results were scored by other versions of the normalisers."""
        saved = self.read_saved()
        return bool(saved) and saved.get("made_with", {}).get("score") != self.made_with["score"]

    def is_done(self) -> bool:
        """The saved results were made with the same inputs."""
        return self.read_saved().get("made_with") == self.made_with


class _Progress:
    """A bar on a terminal, else a line when a task is done."""

    def __init__(self):
        self.suite = self._task = ""
        self._bar = None

    def __call__(self, task: str, done: int, total: int) -> None:
        if self._bar is None or task != self._task:
            self.close()
            self._task, title = task, f"{self.suite} {task}"
            # disable=None: on a terminal alone.
            self._bar = tqdm.tqdm(total=total, desc=title, file=sys.stdout, disable=None)
        self._bar.update(done - self._bar.n)
        if done >= total:
            if self._bar.disable:
                print(f"{self.suite} {task}: {total}", flush=True)
            self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _print_failed(suite: str, failed: Sequence[Mapping[str, str]], total: int) -> None:
    """Print the number of failed items, and the reasons of the first three."""
    if failed:
        print(f"{suite}: {len(failed)} of {total} items failed", flush=True)
    for item in failed[:3]:
        print(f"  {item['id']}: {item['stage']}: {item['reason']:.200}", flush=True)


def _write_results(out: Path, results: Mapping[str, dict]) -> dict[str, Any]:
    """Write figures.json, items.jsonl and failed.jsonl; returns the figures."""
    figures: dict[str, Any] = {}
    lines: dict[str, list[dict]] = {"items": [], "failed": []}
    for name, result in results.items():
        figures |= result["figures"]
        for key in lines:
            lines[key] += [{"suite": name, **line} for line in result[key]]
    figures["ci95"] = bootstrap.DECLARED
    figures["normalisers"] = normalisers()
    figures["seconds"] = {name: result["seconds"] for name, result in results.items()}
    figures["checkpoints"] = {
        part: folder
        for result in results.values()
        for part, folder in result["checkpoints"].items()
    }
    for key, values in lines.items():
        write_whole(out / f"{key}.jsonl", b"".join(map(json_lines.encode, values)))
    write_json(out / "figures.json", figures)
    return figures
