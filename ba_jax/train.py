"""Trains one stage of the model.

    python -m ba_jax.train --config=configs/tokenizer.py:nano --workdir=runs/tokenizer
    python -m ba_jax.train --config=configs/lm_stage2.py:nano --workdir=runs/stage2 \
        --config.init.llm=runs/stage1 --config.optimizer.learning_rate=1e-3

The same command goes on where a run stopped: after a crash, a SIGTERM or Ctrl-C (which save first
and exit with 0), or with a larger `--config.train.steps`. On several hosts every one runs it with
`--distributed` (see `ba_jax.distributed`); WORKDIR is a folder that all of them see. It holds
checkpoints/, metrics.csv, TensorBoard's files, pictures/ of a fixed set of examples, config.json,
and `done` once the run is at its last step. SIGUSR1 writes a trace of the next steps for
TensorBoard's profiler into profile/.

Exit codes:

    0    WORKDIR/done is there: at the last step. It is not: stopped by a signal, and saved; the
         same command goes on.
    1    somebody has to look: the config, the data, a checkpoint, a full disk, a loss that is not
         finite or that jumped. The last line, `ba_jax.train: ...`, says which.
    2    the command line is wrong.
    75   another host was lost, or a step took longer than `train.step_timeout_seconds`: start it
         again on all hosts; it resumes from the last checkpoint.
    129 and above, as a shell tells it: killed by a signal (137: SIGKILL, 134: JAX ended the
         process): the same as 75.

They are the same on all hosts, but that one with an error of its own (a file that it cannot read)
exits with 1 and those that lose it with 75: where any gives 1, end all. A host that is started
waits 300 s for the others and then exits with 75.

So a loop that restarts runs the command while it exits with 0 and there is no WORKDIR/done, or with
75 or more than 128, and ends otherwise. WORKDIR/done is removed when a run with steps to go starts,
and is written before the first of the hosts exits.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from ba_jax import distributed, sharding
from ba_jax.checkpoints import components
from ba_jax.checkpoints.layout import CONFIG_FILE, CheckpointError, complete_steps
from ba_jax.checkpoints.manager import Checkpoints
from ba_jax.config import ConfigError, to_mapping
from ba_jax.data.batches import open_batches
from ba_jax.data.hash import batch_hash, row_digests
from ba_jax.data.loader import BatchError, Loader, host_rows
from ba_jax.files import first_line, write_whole
from ba_jax.metrics.chips import peak_flops
from ba_jax.metrics.throughput import Throughput
from ba_jax.metrics.writers import ProgressBar, Writers
from ba_jax.run import Losses, Signals, mark_done, report_batch
from ba_jax.run_config import RunConfig, TrainSettings, parse_config
from ba_jax.stages.base import Stage
from ba_jax.stages.update import TrainState
from ba_jax.train_state import Program
from ba_jax.tree import flatten


class TrainError(RuntimeError):
    """A run that stopped: what happened, at which step, and what it left."""


class _SpikeError(TrainError):
    """The loss jumped: what was learnt from it is not worth keeping."""


def _open_batches(data: Mapping[str, Any], model: Mapping[str, Any]):
    """Hosts that keep their counts of records in one folder count once."""
    cached = data.get("index_cache")
    with distributed.first_process_first("counting") if cached else contextlib.nullcontext():
        return open_batches(data, model, _count_records)


def _count_records(counted: int) -> None:
    logging.log_every_n_seconds(logging.INFO, "counting records: %d more", 5, counted)


class _Evaluation:
    """Metrics and pictures of a fixed set of batches."""

    def __init__(self, stage: Stage, batches, mesh, settings: TrainSettings, key: jax.Array):
        self._stage, self._mesh, self._settings, self._key = stage, mesh, settings, key
        self._batches, self._first = batches, None

        def evaluate(variables, arrays, key):
            return stage.evaluate(variables, arrays, stage.totals(arrays), key)

        self._evaluate = jax.jit(sharding.under_mesh(mesh, evaluate))

    def _arrays(self):
        host, hosts = sharding.row_share(self._mesh)
        stop = self._settings.evaluate_batches
        with Loader(self._batches, start=0, stop=stop, host=host, hosts=hosts) as loader:
            for _, batch in loader:
                yield self._stage.arrays(batch)

    def run(self, state: TrainState, deadline: distributed.Watchdog) -> dict[str, float]:
        """`eval/NAME` -> mean over the batches."""
        variables = state.variables(averaged=True)
        found: dict[str, list[float]] = {}
        for number, arrays in enumerate(self._arrays()):
            self._first = arrays if number == 0 else self._first
            placed = sharding.to_devices(arrays, self._mesh)
            metrics = self._evaluate(variables, placed, jax.random.fold_in(self._key, number))
            deadline.beat(f"batch {number + 1} of an evaluation")
            for name, value in jax.device_get(metrics).items():
                found.setdefault(f"eval/{name}", []).append(float(value))
        return {name: float(np.mean(values)) for name, values in found.items()}

    def show(self, state: TrainState, writers: Writers, step: int) -> None:
        """Pictures and audio of the first batch that `run` has seen."""
        if not self._settings.pictures or jax.process_count() > 1:
            return
        shown = self._stage.pictures(state.variables(averaged=True), self._first)
        for name, value in shown.items():
            kind, name = name.split("/", 1)
            if kind == "mel":
                writers.picture(step, name, np.asarray(value))
            else:
                wave, rate = value
                writers.audio(step, name, np.asarray(wave), rate)


class _Trace:
    """A profiler trace of some steps."""

    def __init__(self, folder: Path, settings: TrainSettings, signals: Signals):
        self._folder, self._settings, self._signals = folder, settings, signals
        self._until: int | None = None

    def before(self, step: int) -> None:
        """Called before each step."""
        if self._until is None and (
            step == self._settings.profile_start_step or self._signals.trace
        ):
            self._signals.trace = False
            jax.profiler.start_trace(str(self._folder))
            self._until = step + self._settings.profile_steps

    def after(self, step: int, state: TrainState) -> None:
        """Called after each step."""
        if self._until is not None and step >= self._until:
            jax.block_until_ready(state.step)
            self.close()

    def close(self) -> None:
        """Ends the trace, if there is one."""
        if self._until is not None:
            jax.profiler.stop_trace()
            self._until = None
            logging.info("trace in %s", self._folder)


def train(
    config: Mapping[str, Any], workdir: str | os.PathLike, command: str = "python -m ba_jax.train"
) -> TrainState:
    """Runs a stage to its last step, or from where `workdir` left off; returns the last state.

    If another host is lost, or nothing happens for `train.step_timeout_seconds`, it ends the
    process with `distributed.LOST`, see there.

    Args:
      config: of the run.
      workdir: a folder that all hosts see.
      command: what to run to go on, for messages.

    Raises:
      ConfigError, OptimError, StageError, ShardingError, CheckpointError, RecordError: something
        is wrong from the start; nothing was trained.
      TrainError: the run stopped; the last good state is saved.
      OSError: a folder that cannot be written to.
    """
    config = parse_config(config)
    settings = config.train
    if "://" in str(workdir):
        raise ConfigError(f"workdir {workdir}: expected a folder; mount the bucket that it is in")
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)

    # Mesh, model, step: the stage, which of its parameters train, where everything lies.
    mesh = sharding.make_mesh(config.mesh)
    program = Program(config, mesh)
    stage = program.stage
    training = {path.split("/")[0] for path, rate in program.rates.items() if rate}
    sources = components.initial_sources(config.init, stage.components, training)
    _log_counts(program)

    # Data: a batch is a function of the step, so that the position is the step alone.
    batches = _open_batches(config.data, config.model)
    eval_batches = None
    if config.eval_data:
        eval_batches = _open_batches(config.eval_data, config.model)
    elif settings.evaluate_every or config.checkpoint.keep_best:
        logging.warning("eval_data is empty: nothing is evaluated, and no checkpoint is the best")

    signals = Signals()
    deadline = distributed.Watchdog(settings.step_timeout_seconds, command)
    with Checkpoints(workdir, config.checkpoint) as checkpoints, signals:
        # Restore, in this order:
        # 1. the run's own latest checkpoint: everything, and the data go on at its step;
        # 2. `config.init`: a checkpoint for each component, optimiser and data from the start;
        # 3. at random.
        latest = checkpoints.latest()
        if latest is not None:
            if latest > settings.steps:
                raise ConfigError(
                    f"{workdir} is at step {latest}, train.steps = {settings.steps}: expected at "
                    "least as many"
                )
            state = _restore(checkpoints, latest, program)
            logging.info("%s: goes on at step %d of %d", workdir, latest, settings.steps)
        else:
            variables = components.initialize(
                program.shapes,
                sources,
                program.variable_placement,
                stage.init,
                program.init_key,
                stage.derive,
            )
            fresh = [name for name in stage.components if name not in sources]
            variables = stage.from_data(
                variables, _first_batches(batches, stage, mesh), program.init_key, fresh
            )
            state = program.begin(variables)
        _write_config(workdir, config)
        first = latest or 0
        if first < settings.steps:
            mark_done(workdir, None)

        # Evaluations.
        evaluation = None
        if eval_batches is not None:
            evaluation = _Evaluation(stage, eval_batches, mesh, settings, program.eval_key)

        # Loop.
        writers = Writers(workdir, latest, is_writer=jax.process_index() == 0)
        with contextlib.closing(writers), deadline.watch():
            loop = _Loop(
                config, program, workdir, mesh, batches, checkpoints, writers, signals, deadline
            )
            try:
                state = loop.run(state, first, program.step(), evaluation, program.seed_key)
                if loop.done == settings.steps:
                    mark_done(workdir, loop.done)
            except Exception as error:
                if distributed.is_host_loss(error):
                    # What closes from here on would wait for the others.
                    reason = f"{first_line(error)}; {loop.saved_steps()}"
                    distributed.exit_host_lost(command, f"after step {loop.done}: {reason}")
                raise
            return state


def _first_batches(batches, stage: Stage, mesh: jax.sharding.Mesh) -> Iterator[Any]:
    """The run's batches from its first step on, as arrays on the devices, built when asked for."""
    host, hosts = sharding.row_share(mesh)
    for step in itertools.count():
        rows = host_rows(batches.global_rows(step), host, hosts)
        yield sharding.to_devices(stage.arrays(batches.build(step, rows)), mesh)


class _Loop:
    """The loop's parts that do not change while it runs."""

    def __init__(
        self, config, program, workdir, mesh, batches, checkpoints, writers, signals, deadline
    ):
        self.config, self.settings, self.stage = config, config.train, program.stage
        self.trained_components = program.trained_components
        self.workdir, self.mesh, self.batches = workdir, mesh, batches
        self.checkpoints, self.writers, self.signals = checkpoints, writers, signals
        self.deadline = deadline
        self.losses = Losses(
            self.settings.spike_standard_deviations, self.settings.spike_window_steps
        )
        self.saved = self.evaluated = -1
        self.done = 0
        self.pending = None  # the last step's metrics, which the device may not have yet
        self.throughput = Throughput(
            jax.device_count(),
            config.train.peak_flops_per_device or peak_flops(jax.devices()[0]),
            processes=sharding.row_share(mesh)[1],
        )
        self.metrics: dict[str, float] = {}
        self.is_first = jax.process_index() == 0

    def run(self, state, first, step_function, evaluation, seed_key) -> TrainState:
        """From step `first` to the last."""
        settings = self.settings
        host, hosts = sharding.row_share(self.mesh)
        trace = _Trace(self.workdir / "profile", settings, self.signals)
        hashes = _Hashes(self.workdir, first) if settings.record_batch_hashes else None
        self.saved = first if first else -1
        self.done = first
        bar = ProgressBar(settings.steps, first, shown=self.is_first)
        loader = Loader(
            self.batches,
            self.config.loader,
            start=first,
            stop=settings.steps,
            host=host,
            hosts=hosts,
        )
        self.throughput.start()
        with contextlib.closing(bar), loader:
            try:
                for step, batch in loader:
                    trace.before(step)
                    if hashes:
                        hashes.add(step, batch)
                    arrays = self.stage.arrays(batch)
                    amounts = self.stage.amounts(arrays)
                    flops = self.stage.flops(arrays, self.trained_components)
                    placed = sharding.to_devices(arrays, self.mesh)
                    state, metrics = step_function(state, placed, seed_key)
                    self.done = done = step + 1
                    before, self.pending = self.pending, (done, metrics, amounts, flops)
                    # While the device works on this step, the one before is looked at.
                    self._finish(before, bar)
                    trace.after(done, state)
                    if self._is_due(settings.evaluate_every, done) and evaluation:
                        self._finish_last(bar)
                        self._evaluate(state, done, evaluation)
                    if self._is_due(self.config.checkpoint.every, done):
                        self._finish_last(bar)
                        self._save(state, done)
                    if self.signals.agreed_stop() and done < settings.steps:
                        self._stop(state, done, bar)
                        return state
                self._finish_last(bar)
                if evaluation and self.done > first and self.evaluated != self.done:
                    self._evaluate(state, self.done, evaluation)
            except CheckpointError:
                raise  # it names what there is to go on from
            except Exception as error:
                done = self.done
                if distributed.is_host_loss(error):
                    raise
                if isinstance(error, BatchError) and self.signals.stop and jax.process_count() == 1:
                    # The signal went to the workers too.
                    self._stop(state, done, bar)
                    return state
                # What was learnt so far is worth more than what went wrong.
                left = self._rescue(state, done, bar, error)
                if isinstance(error, BatchError | ValueError | OSError | TrainError):
                    raise TrainError(f"after step {done}: {error}; {left}") from error
                logging.error("after step %d: %s; %s", done, type(error).__name__, left)
                raise
            finally:
                trace.close()
                if hashes:
                    hashes.close()
        self._save(state, self.done)
        self.checkpoints.wait()
        return state

    def _stop(self, state: TrainState, done: int, bar) -> None:
        self._finish_last(bar)
        self._save(state, done)
        self.checkpoints.wait()
        logging.info("stopped at step %d; the same command goes on there", done)

    def _rescue(self, state: TrainState, done: int, bar, error: Exception) -> str:
        """Saves what was learnt before an error; says what there is to go on from."""
        # A step that failed on the device has used its state up. On several hosts the others, which
        # may know of no error, would be waited for without end.
        lost = any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
        alone = jax.process_count() > 1 and not isinstance(error, TrainError)
        spoilt = isinstance(error, _SpikeError)
        if not (lost or alone or spoilt) and done > max(self.saved, 0):
            try:
                self._finish_last(bar)
            except (TrainError, ValueError, OSError) as more:
                logging.warning("%s", more)
            self._save(state, done)
        if not alone:
            self.checkpoints.wait()
        return self.saved_steps()

    def saved_steps(self) -> str:
        """What there is to go on from."""
        steps = complete_steps(self.checkpoints.folder)
        return f"saved at step {steps[-1]}" if steps else "nothing was saved"

    def _is_due(self, every: int, done: int) -> bool:
        return bool(every) and done % every == 0 and done < self.settings.steps

    def _finish_last(self, bar) -> None:
        pending, self.pending = self.pending, None
        self._finish(pending, bar)

    def _finish(self, pending, bar) -> None:
        """Checks a step's metrics, once it is done, and writes them."""
        if pending is None:
            return
        done, metrics, amounts, flops = pending
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not values.pop("finite"):
            self._not_finite(done, values)
        if jump := self.losses.jump(values["loss"]):
            self._spike(done, values, jump)
        self.deadline.beat(f"what follows step {done}")
        self.throughput.step(amounts, flops)
        bar.update(done, {"loss": values["loss"]})
        if done % self.settings.log_every == 0 or done in (1, self.settings.steps):
            self.writers.write(done, values, self.throughput.report())

    def _not_finite(self, done: int, values: Mapping[str, float]) -> None:
        """Stops, and leaves the batch's ids; the step has changed nothing."""
        bad = sorted(name for name, value in values.items() if not np.isfinite(value))
        path = self.workdir / f"not_finite-step{done}.json"
        batch = report_batch(path, done, values, self.batches.ids(done - 1))
        raise TrainError(
            f"step {done}: {', '.join(bad) or 'new values'} not finite, the step changed nothing; "
            f"{batch}"
        )

    def _spike(self, done: int, values: Mapping[str, float], jump: str) -> None:
        """Stops, and leaves the batch's ids; the step has been taken, and its state is not kept."""
        path = self.workdir / f"spike-step{done}.json"
        batch = report_batch(path, done, values, self.batches.ids(done - 1))
        raise _SpikeError(
            f"step {done}: {jump}. Its update and what came after are given up; from what was "
            "saved before the run comes to the same batch again: change the data, the optimizer "
            f"or train.spike_standard_deviations; {batch}"
        )

    def _evaluate(self, state: TrainState, done: int, evaluation: _Evaluation) -> None:
        self.metrics = evaluation.run(state, self.deadline)
        self.evaluated = done
        self.writers.write(done, self.metrics)
        evaluation.show(state, self.writers, done)
        self.throughput.start()

    def _save(self, state: TrainState, done: int) -> None:
        if self.saved == done:
            return
        metrics = self.metrics if self.evaluated == done else None
        weights, train = _split_state(state)
        note = {"stage": self.stage.name, "seed": self.config.seed}
        self.deadline.beat(f"the checkpoint of step {done}, or the one before,")
        self.checkpoints.save(done, weights, train, note, metrics)
        self.saved = done
        self.deadline.beat(f"what follows the checkpoint of step {done}")


class _Hashes:
    """batches.csv: the hash of this host's rows of every batch."""

    def __init__(self, workdir: Path, first: int):
        path = workdir / (
            "batches.csv" if jax.process_count() == 1 else f"batches-{jax.process_index()}.csv"
        )
        kept = []
        if path.exists():
            # The last line may be cut off.
            lines = re.findall(r"^(\d+),([0-9a-f]{64})$", path.read_text(), re.MULTILINE)
            kept = [f"{step},{digest}" for step, digest in lines if int(step) < first]
        self._file = path.open("w")
        self._file.write("\n".join(["step,hash", *kept]) + "\n")

    def add(self, step: int, batch: Any) -> None:
        self._file.write(f"{step},{batch_hash(row_digests(batch))}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _split_state(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """(weights for everybody, the rest for the run)."""
    train = {"step": state.step, "optimizer": state.optimizer, "extra": state.extra}
    if state.average:
        train["trained"] = state.trained
        train["average"] = state.average
    return state.variables(averaged=True), {k: v for k, v in train.items() if jax.tree.leaves(v)}


def _restore(checkpoints: Checkpoints, step: int, program: Program) -> TrainState:
    shapes, stage = program.state_shapes, program.stage.name
    expected = program.placed_shapes()
    weights, train = _split_state(expected)
    weights, train, note = checkpoints.restore(step, weights, train)
    if note.get("stage") != stage:
        raise CheckpointError(
            f"{checkpoints.folder / str(step)}: of stage {note.get('stage')!r}, expected {stage!r}"
        )
    flat = flatten(weights["params"])
    trained = train.get("trained", {name: flat[name] for name in shapes.trained})
    return TrainState(
        train["step"],
        trained,
        {name: flat[name] for name in shapes.frozen},
        weights.get("codebook", {}),
        weights.get("buffers", {}),
        train.get("optimizer", shapes.optimizer),
        train.get("average", {}),
        train.get("extra", shapes.extra),
    )


def _log_counts(program: Program) -> None:
    for name, (total, training) in program.counts.items():
        logging.info("%s: %s %d parameters, %d train", program.stage.name, name, total, training)


def _write_config(workdir: Path, config: RunConfig) -> None:
    if jax.process_index() == 0:
        text = json.dumps(to_mapping(config), indent=1, ensure_ascii=False, default=str)
        write_whole(workdir / CONFIG_FILE, text + "\n")


def _quieten() -> None:
    """Orbax and TFDS tell at length what goes well; Orbax's failures reach us as errors too."""

    def keep(record) -> bool:
        parts = Path(record.pathname).parts
        if "orbax" in parts:
            return record.levelno == 30
        return record.levelno >= 30 or "tensorflow_datasets" not in parts

    logging.get_absl_handler().addFilter(keep)


def define_flags() -> None:
    """The command line's."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", None, "A stage's config: configs/STAGE.py:SIZE.")
    flags.DEFINE_string("workdir", None, "Where the run lives.")
    distributed.define_flags()
    flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    """Trains."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    config = flags.FLAGS.config.to_dict()
    cache = dict(config.get("train", {})).get("compilation_cache", TrainSettings.compilation_cache)
    distributed.use_compilation_cache(cache)
    logging.set_verbosity(logging.INFO)
    _quieten()
    values, started = flags.FLAGS, time.time()
    command = distributed.command_line("ba_jax.train")
    go_on = distributed.resume_line(command)
    try:
        joined = distributed.initialize_from_flags(command)
        if joined:
            logging.info("%s", joined)
        state = train(config, values.workdir, command)
    except TrainError as error:
        distributed.exit_with_error(command, error, 1, go_on)
    except (ValueError, OSError, distributed.HostLostError) as error:
        logging.debug("", exc_info=True)
        distributed.exit_with_error(command, error)
    except Exception as error:
        if not values.distributed:
            raise
        traceback.print_exc()
        distributed.exit_with_error(command, error)
    step, minutes = int(state.step), (time.time() - started) / 60
    logging.info("%s: at step %d after %.1f min", values.workdir, step, minutes)
    if step < config["train"]["steps"]:
        logging.info("%s", go_on)


if __name__ == "__main__":
    define_flags()
    app.run(main)
