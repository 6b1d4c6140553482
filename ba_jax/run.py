"""Policy of the training loop: when metrics and checkpoints are written, and what stops a run.

`ba_jax.train` holds the loop; `Run` decides what happens around a step. It checks the metrics of a
step while the devices work on the next one, saves checkpoints, answers signals, and saves the last
good state before an error ends the run.
"""

from __future__ import annotations

import collections
import contextlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from ba_jax import distributed, resume, sharding
from ba_jax.checkpoints.layout import DONE_FILE, CheckpointError, complete_steps
from ba_jax.checkpoints.manager import Checkpoints
from ba_jax.config import ConfigError
from ba_jax.data.hash import batch_hash, row_digests
from ba_jax.data.loader import BatchError, Batches
from ba_jax.files import first_line
from ba_jax.metrics.chips import peak_flops
from ba_jax.metrics.throughput import Throughput
from ba_jax.metrics.writers import ProgressBar, Writers
from ba_jax.run_config import TrainSettings
from ba_jax.train_state import TrainLayout, TrainState, from_checkpoint, to_checkpoint

_LEAST_SPREAD = 1e-3
"""Least standard deviation of the spike check, relative to the mean."""

Evaluate = Callable[[TrainState, Callable[[str], None]], tuple[dict[str, float], dict[str, Any]]]
"""(state, report of progress) -> (metrics, pictures as `Stage.pictures` returns them)."""


class TrainError(RuntimeError):
    """A run that stopped: what happened, at which step, and the checkpoint to resume from."""


class _SpikeError(TrainError):
    """The loss spiked: the state after it is not saved."""


class _StepResult(NamedTuple):
    """A step whose metrics the devices may still compute; amounts and FLOPs are this host's."""

    step: int
    metrics: dict[str, jax.Array]
    amounts: dict[str, float]
    flops: float


class Run:
    """A run in its folder; use it in a `with`, and `begin` it once it has a state.

    An error in the loop leaves the `with` as a `TrainError` that names the checkpoint to resume
    from. If another host was lost, the process ends with `distributed.LOST`.

    Args:
      workdir: folder of the run, which all hosts see.
      layout: see `train_state.make_layout`.
      batches: training data, to name the examples of a bad batch.
      command: command line that resumes the run.

    Attributes:
      checkpoints: the run's checkpoints.
      step: number of steps done.
      state: the state after them.
    """

    def __init__(self, workdir: Path, layout: TrainLayout, batches: Batches, command: str):
        self.workdir, self.layout, self.batches = workdir, layout, batches
        self.config, self.settings = layout.config, layout.config.train
        self._command = command
        self._stack = contextlib.ExitStack()
        self._signals = distributed.Signals()
        self._watchdog = distributed.Watchdog(self.settings.step_timeout_seconds, command)
        self._spikes = SpikeDetector(
            self.settings.spike_standard_deviations, self.settings.spike_window_steps
        )
        self._is_writer = jax.process_index() == 0
        self._pending: _StepResult | None = None
        self._eval_metrics: dict[str, float] = {}
        self._saved_step = self._evaluated_step = -1

    def __enter__(self) -> Run:
        self.checkpoints = self._stack.enter_context(
            Checkpoints(self.workdir, self.config.checkpoint)
        )
        self._stack.enter_context(self._signals)
        return self

    def __exit__(self, *error) -> bool | None:
        return self._stack.__exit__(*error)

    # --- start --------------------------------------------------------------------------------

    def restore_latest(self) -> TrainState | None:
        """The state of the run's latest checkpoint; None for a new run.

        Raises:
          ConfigError: the checkpoint is beyond `train.steps`.
          CheckpointError: a checkpoint of another stage or model, or a damaged one.
        """
        step = self.checkpoints.latest()
        if step is None:
            return None
        if step > self.settings.steps:
            raise ConfigError(
                f"{self.workdir} is at step {step}, train.steps = {self.settings.steps}: expected "
                f"at least {step}"
            )
        shapes, stage = self.layout.state_shapes, self.layout.stage.name
        weights, train, note = self.checkpoints.restore(step, *to_checkpoint(shapes))
        if note.get("stage") != stage:
            raise CheckpointError(
                f"{self.checkpoints.folder / str(step)}: of stage {note.get('stage')!r}, expected "
                f"{stage!r}"
            )
        logging.info("%s: resumes at step %d of %d", self.workdir, step, self.settings.steps)
        return from_checkpoint(shapes, weights, train)

    def begin(self, state: TrainState) -> int:
        """Open the run's files and start its clocks; returns the number of steps done."""
        enter, settings = self._stack.enter_context, self.settings
        self.state = state
        self.step = self._first_step = int(state.step)
        resume_step = self.step or None
        self._saved_step = self.step or -1
        if self._is_writer:
            resume.write(self.workdir, self.config, self.step)
        if self.step < settings.steps:
            self._mark_done(False)
        writers = Writers(self.workdir, resume_step, is_writer=self._is_writer)
        self._writers = enter(contextlib.closing(writers))
        enter(self._watchdog)
        bar = ProgressBar(settings.steps, self.step, shown=self._is_writer)
        self._bar = enter(contextlib.closing(bar))
        self._throughput = Throughput(
            jax.device_count(),
            settings.peak_flops_per_device or peak_flops(jax.devices()[0]),
            processes=sharding.row_share(self.layout.mesh)[1],
        )
        self._stack.push(self._handle_error)
        self._hashes = None
        if settings.record_batch_hashes:
            self._hashes = enter(contextlib.closing(BatchHashes(self.workdir, self.step)))
        trace = ProfilerTrace(self.workdir / "profile", settings, self._signals)
        self._trace = enter(contextlib.closing(trace))
        self._throughput.start()
        return self.step

    # --- in the loop --------------------------------------------------------------------------

    def before_step(self, batch: Any) -> None:
        """Start a profiler trace if one is due, and record the batch's hash."""
        self._trace.before(self.step)
        if self._hashes:
            self._hashes.add(self.step, batch)

    def after_step(
        self, state: TrainState, metrics: dict[str, jax.Array], arrays: Mapping[str, Any]
    ) -> None:
        """Take over the step's results, and check and log those of the step before.

        Raises:
          TrainError: the loss of the step before is not finite, or spiked.
        """
        stage = self.layout.stage
        self.state, previous = state, self._pending
        self.step += 1
        flops = stage.flops(arrays, self.layout.trained_components)
        self._pending = _StepResult(self.step, metrics, stage.amounts(arrays), flops)
        self._log(previous)
        self._trace.after(self.step, state)

    def is_due(self, every: int) -> bool:
        """Whether something that happens every N steps (0: never) is due; not at the last step."""
        return bool(every) and self.step % every == 0 and self.step < self.settings.steps

    def evaluate(self, evaluate: Evaluate) -> None:
        """Evaluate the state and write metrics and pictures."""
        self._log_pending()
        self._eval_metrics, pictures = evaluate(self.state, self._watchdog.beat)
        self._evaluated_step = self.step
        self._writers.write(self.step, self._eval_metrics)
        for path, value in pictures.items():
            kind, name = path.split("/", 1)
            if kind == "mel":
                self._writers.picture(self.step, name, np.asarray(value))
            else:
                wave_S, rate = value
                self._writers.audio(self.step, name, np.asarray(wave_S), rate)
        self._throughput.start()

    def save(self) -> None:
        """Start to save the state, unless this step is already saved."""
        self._log_pending()
        self._save()

    def stop_requested(self) -> bool:
        """Whether a signal asked to stop before the last step. All hosts call it each step."""
        return self._signals.stop_requested() and self.step < self.settings.steps

    def stop(self) -> None:
        """Stop before the last step: save, and wait until the checkpoint is written."""
        self.save()
        self.checkpoints.wait()
        logging.info("stopped at step %d; rerun the same command to resume", self.step)

    def finish(self, evaluate: Evaluate | None) -> None:
        """After the last step: evaluate, save, and write `done`."""
        self._log_pending()
        if evaluate and self.step > self._first_step and self._evaluated_step != self.step:
            self.evaluate(evaluate)
        self._save()
        self.checkpoints.wait()
        if self.step == self.settings.steps:
            self._mark_done(True)

    # --- details ------------------------------------------------------------------------------

    def _log_pending(self) -> None:
        pending, self._pending = self._pending, None
        self._log(pending)

    def _log(self, result: _StepResult | None) -> None:
        """Wait for a step's metrics, check them and write them."""
        if result is None:
            return
        step = result.step
        values = {name: float(value) for name, value in jax.device_get(result.metrics).items()}
        if not values.pop("finite"):
            bad = sorted(name for name, value in values.items() if not np.isfinite(value))
            raise TrainError(
                f"step {step}: {', '.join(bad) or 'new values'} not finite, the step changed "
                f"nothing; {self._report_batch('not_finite', step, values)}"
            )
        if spike := self._spikes.check(values["loss"]):
            raise _SpikeError(
                f"step {step}: {spike}. Its update and the following ones are discarded; a resumed "
                "run reaches the same batch again: change the data, the optimizer or "
                f"train.spike_standard_deviations; {self._report_batch('spike', step, values)}"
            )
        self._watchdog.beat(f"what follows step {step}")
        self._throughput.step(result.amounts, result.flops)
        self._bar.update(step, {"loss": values["loss"]})
        if step % self.settings.log_every == 0 or step in (1, self.settings.steps):
            self._writers.write(step, values, self._throughput.report())

    def _report_batch(self, problem: str, step: int, values: Mapping[str, float]) -> str:
        """Write the metrics of a step and the ids of its batch; returns a sentence about them."""
        path = self.workdir / f"{problem}-step{step}.json"
        ids = self.batches.ids(step - 1)
        report = {"step": step, "metrics": {k: repr(v) for k, v in values.items()}, "rows": ids}
        if self._is_writer:
            path.write_text(json.dumps(report, indent=1, ensure_ascii=False))
        first_ids = [name for row in ids for name in row][:4]
        return f"its batch holds {first_ids}, ...: all ids are in {path}"

    def _save(self) -> None:
        if self._saved_step == self.step:
            return
        weights, train = to_checkpoint(self.state)
        note = {"stage": self.layout.stage.name, "seed": self.config.seed}
        metrics = self._eval_metrics if self._evaluated_step == self.step else None
        self._watchdog.beat(f"the checkpoint of step {self.step}, or the one before,")
        self.checkpoints.save(self.step, weights, train, note, metrics)
        self._saved_step = self.step
        self._watchdog.beat(f"what follows the checkpoint of step {self.step}")

    def _mark_done(self, done: bool) -> None:
        """Write or remove WORKDIR/done; all hosts call it and see the result when it returns."""
        path = self.workdir / DONE_FILE
        if self._is_writer and done:
            path.write_text(f"{self.step}\n")
        elif self._is_writer:
            path.unlink(missing_ok=True)
        multihost_utils.sync_global_devices(f"{DONE_FILE} {done}")

    def _handle_error(self, kind: type | None, error: BaseException | None, _) -> bool:
        """Exit of the `with` on an error in the loop; returns whether the error is handled."""
        if not isinstance(error, Exception):
            return False
        if distributed.is_host_loss(error):
            # Closing anything below would wait for the lost host.
            reason = f"after step {self.step}: {first_line(error)}; {self._saved()}"
            distributed.exit_host_lost(self._command, reason)
        if isinstance(error, CheckpointError):
            return False  # the message names the complete checkpoints
        if isinstance(error, BatchError) and self._signals.stop and jax.process_count() == 1:
            # The signal ended the loader's workers too.
            self.stop()
            return True
        self._rescue(error)
        text = f"after step {self.step}: {error}; {self._saved()}"
        if isinstance(error, BatchError | ValueError | OSError | TrainError):
            raise TrainError(text) from error
        logging.error("after step %d: %s; %s", self.step, type(error).__name__, self._saved())
        return False

    def _rescue(self, error: Exception) -> None:
        """Save the state before an error ends the run, where that is possible and wanted."""
        # On several hosts the others may know of no error, and would never join the checkpoint.
        alone = jax.process_count() > 1 and not isinstance(error, TrainError)
        # A step that failed on the device has used up its state, which it donates.
        deleted = any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state))
        if alone:
            return
        if (
            not deleted
            and not isinstance(error, _SpikeError)
            and self.step > max(self._saved_step, 0)
        ):
            try:
                self._log_pending()
            except (TrainError, ValueError, OSError) as second_error:
                logging.warning("%s", second_error)
            self._save()
        self.checkpoints.wait()

    def _saved(self) -> str:
        steps = complete_steps(self.checkpoints.folder)
        return f"saved at step {steps[-1]}" if steps else "nothing was saved"


class SpikeDetector:
    """Compares each loss with the previous ones.

    Args:
      standard_deviations: limit above the mean of the window; 0 turns the check off.
      window: number of losses in the window; no loss is a spike before it is full.
    """

    def __init__(self, standard_deviations: float, window: int):
        self._limit, self._losses = standard_deviations, collections.deque(maxlen=window)

    def check(self, loss: float) -> str | None:
        """Return a message if the loss is a spike; else add it to the window and return None."""
        losses = self._losses
        if self._limit and len(losses) == losses.maxlen:
            mean, deviation = float(np.mean(losses)), float(np.std(losses))
            # Nearly constant losses must not stop a run at the first that differs a little.
            limit = mean + self._limit * max(deviation, _LEAST_SPREAD * abs(mean))
            if loss > limit:
                return (
                    f"loss {loss:.6g} after {len(losses)} of mean {mean:.6g} and deviation "
                    f"{deviation:.3g}: expected at most {limit:.6g} "
                    f"(train.spike_standard_deviations = {self._limit:g})"
                )
        losses.append(loss)
        return None


class ProfilerTrace:
    """A profiler trace of some steps, from `profile_start_step` on or on SIGUSR1."""

    def __init__(self, folder: Path, settings: TrainSettings, signals: distributed.Signals):
        self._folder, self._settings, self._signals = folder, settings, signals
        self._until: int | None = None

    def before(self, step: int) -> None:
        """Start a trace if one is due."""
        due = step == self._settings.profile_start_step or self._signals.trace
        if self._until is None and due:
            self._signals.trace = False
            jax.profiler.start_trace(str(self._folder))
            self._until = step + self._settings.profile_steps

    def after(self, step: int, state: TrainState) -> None:
        """Stop the trace after its last step."""
        if self._until is not None and step >= self._until:
            jax.block_until_ready(state.step)
            self.close()

    def close(self) -> None:
        """Stop the trace if there is one."""
        if self._until is not None:
            jax.profiler.stop_trace()
            self._until = None
            logging.info("trace in %s", self._folder)


class BatchHashes:
    """batches.csv: the hash of this host's rows of every batch."""

    def __init__(self, workdir: Path, first_step: int):
        host = "" if jax.process_count() == 1 else f"-{jax.process_index()}"
        path = workdir / f"batches{host}.csv"
        kept = []
        if path.exists():
            # The last line of a killed run may be cut off.
            lines = re.findall(r"^(\d+),([0-9a-f]{64})$", path.read_text(), re.MULTILINE)
            kept = [f"{step},{digest}" for step, digest in lines if int(step) < first_step]
        self._file = path.open("w")
        self._file.write("\n".join(["step,hash", *kept]) + "\n")

    def add(self, step: int, batch: Any) -> None:
        """Append the hash of a step's batch."""
        self._file.write(f"{step},{batch_hash(row_digests(batch))}\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
