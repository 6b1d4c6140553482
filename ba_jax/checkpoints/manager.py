"""A training run's checkpoints: everything it needs to go on, and weights that others can read.

WORKDIR/checkpoints/STEP holds two Orbax trees and a note:
  weights/  the variables, laid out like a converted checkpoint's: other stages, `ba_jax.evaluate`,
            `ba_jax.convert export` read them. With a running average it is the average.
  train/    what only the run itself needs: optimiser state, parameters as trained (if `weights`
            holds their average), the stage's extra state.
  note/     step, stage, the data's position (the step: batches are a pure function of it), metrics.
Random keys are a function of the step too. Writing goes on while training does; a folder gets its
name when it is complete, with the checksums of its files in checksums.json. They are compared
before a run goes on from it, by all hosts together, and before `weights` is read.
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
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from ba_jax.checkpoints import arrays, checksums
from ba_jax.checkpoints.arrays import CheckpointError
from ba_jax.files import first_line

FOLDER = "checkpoints"
CONFIG_FILE = "config.json"
DAMAGED = "damaged"
_METRICS = "metrics"  # Orbax's own name
_MESSAGE_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """Which checkpoints stay.

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


class _Folder(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A step's folder while it is written: it gets its checksums, and then its name."""

    async def finalize(self) -> None:
        # Orbax takes this class for weights/, train/, ... too.
        if self.get_final().name.isdecimal():
            await asyncio.to_thread(checksums.write, self.get())
        await super().finalize()


class Checkpoints:
    """The checkpoints of a run; close it, or use it in a `with`.

    The last complete step is compared with its checksums. If it is damaged, it is moved aside, to
    damaged-STEP, and the one before is the last. On several hosts all come here: each looks at its
    share of the files, and all get the same answer.

    Args:
      workdir: of the run.
      settings: which stay.

    Raises:
      CheckpointError: all are damaged; they stay where they are.
    """

    def __init__(
        self, workdir: str | os.PathLike, settings: CheckpointSettings = CheckpointSettings()
    ):
        self.folder = Path(workdir).absolute() / FOLDER
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
                temporary_path_class=_Folder,
            ),
            item_names=("weights", "train", "note"),
        )

    def latest(self) -> int | None:
        """The last complete step, None if there is none."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        weights: Mapping[str, Any],
        train: Mapping[str, Any],
        note: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to write a checkpoint, after the one before is complete.

        Raises:
          CheckpointError: this one or the one before could not be written (a full disk); complete
            ones are left alone. Or the evaluation has no `settings.best_metric`; this one is saved.
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
            raise self._failed(step, error) from error
        if unknown:
            self.wait()
            raise CheckpointError(
                f"{self.folder}: checkpoint.best_metric = {best!r}: expected a metric of the "
                f"evaluation, one of {sorted(metrics)}; saved at step {step}"
            )

    def wait(self) -> None:
        """Until all is written.

        Raises:
          CheckpointError: it could not be.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(None, error) from error

    def _failed(self, step: int | None, error: Exception) -> CheckpointError:
        what = "the last checkpoint" if step is None else f"checkpoint {step}, or the one before,"
        reason = first_line(error)
        kept = complete_steps(self.folder)
        return CheckpointError(
            f"{self.folder}: {what} could not be written: {reason}. Complete ones: {kept or 'none'}"
        )

    def restore(
        self, step: int, weights: Mapping[str, Any], train: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """(weights, train, note) of a step.

        Args:
          weights, train: trees of ShapeDtypeStructs with shardings.

        Raises:
          CheckpointError: a checkpoint of another model or stage, or one that is damaged.
        """
        folder = self.folder / str(step)
        for item, tree in (("weights", weights), ("train", train)):
            expected = arrays.flatten(ocp.tree.to_flat_dict(tree, sep="/"))
            _check_names(folder / item, expected)
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
            reason = first_line(error)
            raise CheckpointError(f"{folder}: cannot be restored: {reason}") from error
        return restored["weights"], restored["train"], restored["note"]

    def close(self) -> None:
        """Waits for what is being written."""
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
        except Exception as error:  # the one under way says what is wrong
            logging.warning("%s: %s", self.folder, error)


def _set_damaged_aside(folder: Path) -> None:
    """Leaves a last step that is good, and no step whose metrics Orbax could not read."""
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
    for step, problem in damaged.items():
        aside, number = folder / f"{DAMAGED}-{step}", 1
        while aside.exists():
            number += 1
            aside = folder / f"{DAMAGED}-{step}-{number}"
        logging.warning("%s; moved to %s, step %d is the last good one", problem, aside, good)
        _sync(f"damaged {step}")  # none looks for a name while another takes it
        if jax.process_index() == 0:
            (folder / str(step)).rename(aside)
    if damaged:
        _sync("moved aside")


def _sync(place: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"ba_jax.checkpoints.manager {place}")


def shared_damage(folder: Path, within: str = "") -> str | None:
    """`checksums.damage`, of which every host does its share; all get the same answer."""
    hosts = jax.process_count()
    found = checksums.damage(folder, within, jax.process_index(), hosts)
    if hosts == 1:
        return found
    from jax.experimental import multihost_utils

    message = np.zeros(_MESSAGE_BYTES, np.uint8)
    told = (found or "").encode()[:_MESSAGE_BYTES]
    message[: len(told)] = np.frombuffer(told, np.uint8)
    for one in multihost_utils.process_allgather(message):
        if one.any():
            return one.tobytes().rstrip(b"\0").decode(errors="replace")
    return None


def check_weights(folder: Path) -> None:
    """What `checkpoint.check_files` does, but that hosts divide the work: all of them call it.

    Raises:
      CheckpointError: a file is damaged; on all hosts.
    """
    arrays.refuse_damage(shared_damage(folder.parent, folder.name))


def _check_names(folder: Path, expected: Mapping[str, Any]) -> None:
    """Raises `CheckpointError` unless the stored arrays are the expected ones, shape by shape."""
    reader = arrays.Reader(folder)
    reader.check_shapes(expected)
    more = sorted(set(reader.arrays) - set(expected))
    if more:
        raise CheckpointError(
            f"{folder}: holds {len(more)} arrays that this run has not, {more[:3]}, ...: it was "
            "made with another config"
        )


def complete_steps(folder: str | os.PathLike) -> list[int]:
    """Steps whose checkpoint is complete, in order."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(int(f.name) for f in folder.iterdir() if f.name.isdecimal() and f.is_dir())


def weights_folder(path: str | os.PathLike) -> Path:
    """The folder of weights that a path means.

    Args:
      path: a run's WORKDIR (its latest checkpoint), one of its checkpoints, or a folder that
        `ba_jax.convert` or Orbax wrote.

    Raises:
      CheckpointError: there is none.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder, expected a checkpoint or a run's workdir")
    if (path / FOLDER).is_dir():
        steps = complete_steps(path / FOLDER)
        if not steps:
            raise CheckpointError(f"{path}: a run without a complete checkpoint")
        path = path / FOLDER / str(steps[-1])
    if (path / arrays.WEIGHTS_FOLDER / arrays.METADATA_FILE).is_file():
        return path / arrays.WEIGHTS_FOLDER
    if (path / arrays.METADATA_FILE).is_file():
        return path
    raise CheckpointError(f"{path}: neither a checkpoint nor a run's workdir")


def abstract(tree: Any) -> Any:
    """Shapes, types and shardings of a tree of arrays."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
