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

from ba_jax.checkpoints import arrays, checksums
from ba_jax.checkpoints.layout import CHECKPOINTS_FOLDER, CheckpointError, complete_steps
from ba_jax.files import first_line
from ba_jax.tree import flatten

DAMAGED = "damaged"
_METRICS = "metrics"  # Orbax's own name
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

    The last complete step is compared with its checksums. If it is damaged, it is moved to
    damaged-STEP, and the one before becomes the last. All hosts construct it together: each checks
    its share of the files, and all get the same answer.

    Args:
      workdir: folder of the run.
      settings: when to save, and which checkpoints to keep.

    Raises:
      CheckpointError: all are damaged; they stay in their place.
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
                    get_metric_fn=lambda metrics: metrics[settings.best_metric],
                    reverse=True,
                    n=settings.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                best_fn=(lambda metrics: metrics[settings.best_metric])
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
    for step in reversed(complete_steps(folder)):
        problem = shared_damage(folder / str(step), "" if good is None else _METRICS)
        if problem is not None:
            damaged[step] = problem
        elif good is None:
            good = step
    if damaged and good is None:
        raise CheckpointError(
            f"{next(iter(damaged.values()))}; every checkpoint is damaged, steps "
            f"{sorted(damaged)}: expected a good one. Copy one back, or use a new workdir"
        )
    sync = multihost_utils.sync_global_devices
    for step, problem in damaged.items():
        aside, number = folder / f"{DAMAGED}-{step}", 1
        while aside.exists():
            number += 1
            aside = folder / f"{DAMAGED}-{step}-{number}"
        logging.warning("%s; moved to %s, step %d is the last good one", problem, aside, good)
        sync(f"ba_jax damaged {step}")  # no process looks for a name while another takes it
        if jax.process_index() == 0:
            (folder / str(step)).rename(aside)
    if damaged:
        sync("ba_jax moved aside")


def shared_damage(folder: Path, within: str = "") -> str | None:
    """`checksums.damage` with the files divided among the hosts; all get the same answer."""
    hosts = jax.process_count()
    problem = checksums.damage(folder, within, jax.process_index(), hosts)
    if hosts == 1:
        return problem
    message = np.zeros(_MESSAGE_BYTES, np.uint8)
    encoded = (problem or "").encode()[:_MESSAGE_BYTES]
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
    arrays.refuse_damage(shared_damage(folder.parent, folder.name))


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
