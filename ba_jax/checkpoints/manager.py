"""The checkpoints of a training run: all it needs to resume, and weights that others can read.

WORKDIR/checkpoints/STEP holds two Orbax trees and a note:
  weights/  the variables, laid out like a converted checkpoint's: other stages, `ba_jax.evaluate`
            and `ba_jax.convert export` read them. With an EMA it is the average.
  train/    what only the run itself needs: optimiser state, parameters as trained (if `weights`
            holds their average), the stage's extra state.
  note/     step, stage, metrics. The step is also the data's position: batches are a pure function
            of it, and so are the random keys.
Checkpoints are written in the background. A folder gets its name when it is complete, with the
checksums of its files in checksums.json. They are compared before a run resumes from it, by all
hosts together, and before `weights` is read.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from ba_jax import sharding
from ba_jax.checkpoints import arrays, checksums
from ba_jax.checkpoints.layout import (
    CHECKPOINTS_FOLDER,
    CheckpointError,
    complete_steps,
    named_steps,
)
from ba_jax.files import first_line, unused
from ba_jax.tree import flatten

DAMAGED = "damaged"
_METRICS = "metrics"  # Orbax's own name
_OTHER_METADATA = ("_CHECKPOINT_METADATA", "metrics/metrics", "*/array_metadatas/process_*")
_MESSAGE_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """When to save a checkpoint and which ones to keep.

    Attributes:
      every: save every N steps; 0 saves only at the end.
      keep_last: keep this many of the latest checkpoints. With 1 there is no fallback if a file of
        it is damaged.
      keep_best: also keep this many of the checkpoints with the lowest `best_metric`; 0: none.
      best_metric: a metric of the evaluation.
    """

    every: int = 0
    keep_last: int = 1
    keep_best: int = 0
    best_metric: str = "eval/loss"

    def __post_init__(self):
        if self.every < 0 or self.keep_last < 1 or self.keep_best < 0:
            raise ValueError(f"{self}: expected every >= 0, keep_last >= 1, keep_best >= 0")


class _StepFolder(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A step's folder while it is written: it gets its checksums, then its name."""

    async def finalize(self) -> None:
        # Orbax takes this class for weights/, train/, ... too.
        if self.get_final().name.isdecimal():
            await asyncio.to_thread(checksums.write, self.get())
        await super().finalize()


class Checkpoints:
    """The checkpoints of a run; close it, or use it in a `with`.

    The last step is compared with its checksums; all its arrays are read if checksums.json is
    missing. If it is damaged, empty or no folder, it is moved to damaged-STEP, and the one before
    becomes the last. All hosts construct it together: each checks its share of the files, and all
    get the same answer.

    Args:
      workdir: folder of the run.
      settings: when to save, and which checkpoints to keep.

    Raises:
      CheckpointError: there are damaged ones alone; they stay in their place.
    """

    def __init__(
        self, workdir: str | os.PathLike, settings: CheckpointSettings = CheckpointSettings()
    ):
        self.folder = Path(workdir).absolute() / CHECKPOINTS_FOLDER
        self.settings = settings
        _set_damaged_aside(self.folder)
        policies = [LatestN(settings.keep_last)]
        if settings.keep_best:
            policies.append(
                BestN(
                    get_metric_fn=lambda metrics: metrics.get(settings.best_metric, np.inf),
                    reverse=True,
                    n=settings.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                best_fn=(lambda metrics: metrics.get(settings.best_metric, np.inf))
                if settings.keep_best
                else None,
                best_mode="min",
                cleanup_tmp_directories=True,
                temporary_path_class=_StepFolder,
            ),
            item_names=("weights", "train", "note"),
        )

    def latest(self) -> int | None:
        """The last complete step, None without one."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        weights: Mapping[str, Any],
        train: Mapping[str, Any],
        note: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Start to write a checkpoint, once the one before is complete.

        Raises:
          CheckpointError: this one or the one before could not be written (a full disk); complete
            ones stay. Or the evaluation has no `settings.best_metric`; this one is saved.
        """
        if step in self._manager.all_steps():
            return
        best = self.settings.best_metric
        unknown = bool(self.settings.keep_best and metrics and best not in metrics)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    weights=ocp.args.StandardSave(dict(weights)),
                    train=ocp.args.StandardSave(dict(train)),
                    note=ocp.args.JsonSave({**note, "step": step}),
                ),
                metrics=dict(metrics) if metrics and not unknown else None,
                force=True,
            )
        except Exception as error:  # Orbax and TensorStore raise many kinds
            failed = f"checkpoint {step}, or the one before,"
            raise self._write_error(failed, error) from error
        if unknown:
            self.wait()
            raise CheckpointError(
                f"{self.folder}: checkpoint.best_metric = {best!r}: expected a metric of the "
                f"evaluation, one of {sorted(metrics)}; saved at step {step}"
            )

    def wait(self) -> None:
        """Wait until all checkpoints are written.

        Raises:
          CheckpointError: the last one could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._write_error("the last checkpoint", error) from error

    def _write_error(self, failed: str, error: Exception) -> CheckpointError:
        complete = complete_steps(self.folder) or "none"
        return CheckpointError(
            f"{self.folder}: {failed} could not be written: {first_line(error)}. Complete ones: "
            f"{complete}"
        )

    def restore(
        self, step: int, weights: Mapping[str, Any], train: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """(weights, train, note) of a step.

        Args:
          step: a complete one.
          weights, train: trees of ShapeDtypeStructs with shardings.

        Raises:
          CheckpointError: a checkpoint of another model or stage, or a damaged one.
        """
        folder = self.folder / str(step)
        for item, tree in (("weights", weights), ("train", train)):
            _check_names(folder / item, flatten(ocp.tree.to_flat_dict(tree, sep="/")))
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    weights=ocp.args.StandardRestore(dict(weights)),
                    train=ocp.args.StandardRestore(dict(train)),
                    note=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:
            raise CheckpointError(f"{folder}: cannot be restored: {first_line(error)}") from error
        return restored["weights"], restored["train"], restored["note"]

    def close(self) -> None:
        """Wait for pending writes, then close."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.close()
            return
        try:
            self._manager.close()
        except Exception as error:  # the exception that is on its way names the cause
            logging.warning("%s: %s", self.folder, error)


def _set_damaged_aside(folder: Path) -> None:
    """Move damaged steps away, until the last step is good and Orbax can read all metrics."""
    damaged: dict[int, str] = {}
    good = None
    for step in reversed(json.loads(sharding.text_from_first(json.dumps(named_steps(folder))))):
        check = _step_damage if good is None else _metrics_damage
        problem = _agree(check(folder / str(step), jax.process_index(), jax.process_count()))
        if problem is not None:
            damaged[step] = problem
        elif good is None:
            good = step
    if good is None:
        _refuse_without_good(folder, damaged)
        return
    checksums.warn_if_lost(folder / str(good))
    sync = multihost_utils.sync_global_devices
    for step, problem in damaged.items():
        aside = unused(folder / f"{DAMAGED}-{step}")
        logging.warning("%s; moved to %s, step %d is the last good one", problem, aside, good)
        sync(f"ba_jax damaged {step}")  # no process looks for a name while another takes it
        if jax.process_index() == 0:
            (folder / str(step)).rename(aside)
    if damaged:
        sync("ba_jax moved aside")


def _refuse_without_good(folder: Path, damaged: Mapping[int, str]) -> None:
    """Raise `CheckpointError` if a run has damaged checkpoints alone."""
    advice = "expected a good one. Copy one back, or use a new workdir"
    if damaged:
        raise CheckpointError(
            f"{next(iter(damaged.values()))}; every checkpoint is damaged, steps "
            f"{sorted(damaged)}: {advice}"
        )
    if aside := sorted(path.name for path in folder.glob(f"{DAMAGED}-*")):
        raise CheckpointError(f"{folder}: holds damaged checkpoints alone, {aside}: {advice}")


def _step_damage(folder: Path, share: int, shares: int) -> str | None:
    """`checksums.damage` of all that a run needs to resume; arrays without checksums are read.

    Args:
      folder: a step's.
      share, shares: see `checksums.damage`.
    """
    if not folder.is_dir():
        return f"{folder}: is not a folder"
    if (problem := checksums.damage(folder, "", share, shares)) is not None:
        return problem
    lost = not (folder / checksums.FILE).exists()
    try:
        step = _read_object(folder / "note" / "metadata").get("step")
        if step != int(folder.name):
            return f"{folder}: holds step {step}"
        for item in ("weights", "train"):
            reader = arrays.Reader(folder / item)
            if not reader.arrays:
                return f"{folder / item}: holds no arrays"
            for path in sorted(reader.arrays)[share::shares] if lost else ():
                reader.read(path)
        for pattern in _OTHER_METADATA if lost else ():
            for path in sorted(folder.glob(pattern)):
                _read_object(path)
    except CheckpointError as error:
        return first_line(error)
    return None


def _metrics_damage(folder: Path, share: int, shares: int) -> str | None:
    """`_step_damage` of the metrics alone: Orbax reads those of all steps when it lists them."""
    if not folder.is_dir():
        return f"{folder}: is not a folder"
    problem = checksums.damage(folder, _METRICS, share, shares)
    path = folder / _METRICS / _METRICS
    if problem is None and path.exists():
        try:
            _read_object(path)
        except CheckpointError as error:
            return str(error)
    return problem


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object of Orbax's; anything else is a `CheckpointError`."""
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict):
            return content
        reason = f"{content!r:.40}"
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        reason = first_line(error)
    raise CheckpointError(f"{path}: expected a JSON object ({reason})")


def _agree(problem: str | None) -> str | None:
    """The first problem of any host, on all of them."""
    if jax.process_count() == 1:
        return problem
    message = np.zeros(_MESSAGE_BYTES, np.uint8)
    encoded = (problem or "").encode(errors="replace")[:_MESSAGE_BYTES]
    message[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    for host_message in multihost_utils.process_allgather(message):
        if host_message.any():
            return host_message.tobytes().rstrip(b"\0").decode(errors="replace")
    return None


def check_weights(folder: Path) -> None:
    """`arrays.check_files` with the files divided among the hosts: all of them call it.

    Raises:
      CheckpointError: a file is damaged; on all hosts.
    """
    problem = checksums.damage(folder.parent, folder.name, jax.process_index(), jax.process_count())
    arrays.refuse_damage(_agree(problem))
    checksums.warn_if_lost(folder.parent)


def _check_names(folder: Path, expected: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` unless the stored arrays are the expected ones, shape by shape."""
    reader = arrays.Reader(folder)
    reader.check_shapes(expected)
    more = sorted(set(reader.arrays) - set(expected))
    if more:
        raise CheckpointError(
            f"{folder}: holds {len(more)} arrays that this run has not, {more[:3]}, ...: it was "
            "made with another config"
        )
