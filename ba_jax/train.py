"""Train one stage of the model.

    python -m ba_jax.train --config=configs/tokenizer.py:nano --workdir=runs/tokenizer
    python -m ba_jax.train --config=configs/lm_stage2.py:nano --workdir=runs/stage2 \
        --config.init.llm=runs/stage1 --config.optimizer.learning_rate=1e-3

The same command resumes a stopped run: after a crash, after SIGTERM or Ctrl-C (which save first and
exit with 0), or with a larger `--config.train.steps`. On several hosts, start it on each with
`--distributed` (see `ba_jax.distributed`); WORKDIR is a folder that all of them see. It holds
checkpoints/, metrics.csv, TensorBoard's files, pictures/ of a fixed set of examples, config.json,
and `done` once the run is at its last step. SIGUSR1 writes a trace of the next steps for
TensorBoard's profiler into profile/.

Exit codes:

    0    If WORKDIR/done exists, the run is at its last step. Otherwise a signal stopped it and it
         saved a checkpoint: run the same command to resume.
    1    A person has to act: the data, a checkpoint, a full disk, or a loss that is
         not finite or that spiked. The last line, `ba_jax.train: ...`, says which.
    2    The command line or the config is wrong, or makes another model or other data than those
         that the run in WORKDIR was trained with (`--accept_changes` resumes it all the same).
    75   Another host was lost, or a step took longer than `train.step_timeout_seconds`. Start the
         command again on all hosts; it resumes from the last checkpoint.
    129 and above, as a shell reports it: killed by a signal (137: SIGKILL, 134: JAX ended the
         process). Treat it like 75.

All hosts exit with the same code, except that a host with an error of its own (an unreadable file)
exits with 1 and the hosts that lose it with 75: if any host exits with 1, end all. A host waits
600 s for the others to start and then exits with 75.

So a restart loop runs the command again while it exits with 0 without WORKDIR/done, with 75 or with
more than 128, and ends otherwise. WORKDIR/done is removed when a run with steps to go starts, and
written before the first host exits.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from ba_jax import cli, distributed, resume, sharding
from ba_jax.checkpoints import components
from ba_jax.config import local_path
from ba_jax.data.batches import open_batches
from ba_jax.data.loader import Batches, Loader, host_rows
from ba_jax.run import Run, TrainError
from ba_jax.run_config import TrainSettings, parse_config
from ba_jax.train_state import TrainLayout, TrainState, init_state, make_layout, make_step


def train(
    config: Mapping[str, Any],
    workdir: str | os.PathLike,
    command: str = "python -m ba_jax.train",
    accept_changes: bool = False,
) -> TrainState:
    """Train a stage to its last step, resuming the run in `workdir` if there is one.

    If another host is lost, or nothing happens for `train.step_timeout_seconds`, the process ends
    with code `distributed.LOST`.

    Args:
      config: config of the run.
      workdir: folder of the run, which all hosts see.
      command: command line that resumes the run, for messages.
      accept_changes: resume with settings of another model or other data, see `resume`.

    Returns:
      The last state: after the last step, or when a signal stopped the run.

    Raises:
      ChangedSettingsError: the run in `workdir` has another model or other data.
      ConfigError, OptimError, StageError, ShardingError, CheckpointError, RecordError: something
        is wrong from the start; nothing was trained.
      TrainError: the run stopped; the last good state is saved.
      OSError: a folder that cannot be written to.
    """
    config = parse_config(config)
    settings = config.train
    workdir = Path(local_path(os.fspath(workdir)))
    workdir.mkdir(parents=True, exist_ok=True)
    resume.check(workdir, config, accept_changes)

    # Mesh and model: the stage, its trained parameters, and where everything lies.
    mesh = sharding.make_mesh(config.mesh)
    layout = make_layout(config, mesh)
    stage = layout.stage
    for name, (total, training) in layout.counts.items():
        logging.info("%s: %s: %d parameters, %d trained", stage.name, name, total, training)
    trains = {path.split("/")[0] for path, rate in layout.multipliers.items() if rate}
    sources = components.initial_sources(config.init, stage.components, trains)

    # Data: a batch is a pure function of its step, so the position in the data is the step alone.
    batches = _open_batches(config.data, config.model)
    host, hosts = sharding.row_share(mesh)
    evaluate = None
    if config.eval_data:
        evaluate = Evaluator(layout, _open_batches(config.eval_data, config.model))
    elif settings.evaluate_every or config.checkpoint.keep_best:
        logging.warning("eval_data is empty: no evaluation, and no best checkpoints to keep")

    # On exit, `run` saves the last good state if there was an error, and closes everything.
    with Run(workdir, layout, batches, command) as run:
        # Restore, in this order:
        # 1. the run's latest checkpoint: the whole state, and the data resume at its step;
        # 2. `config.init`: checkpoints of components; optimizer and data start anew;
        # 3. random values.
        state = run.restore_latest()
        if state is None:
            variables = components.initialize(
                layout.shapes,
                sources,
                layout.variable_shardings,
                stage.init,
                layout.init_key,
                stage.derive,
                stage.companions,
            )
            fresh = [name for name in stage.components if name not in sources]
            first_batches = _batches_on_devices(batches, layout)
            variables = stage.from_data(variables, first_batches, layout.data_key, fresh)
            state = init_state(layout, variables)
        first = run.begin(state)

        train_step = make_step(layout)
        shares = {"start": first, "stop": settings.steps, "host": host, "hosts": hosts}
        with Loader(batches, config.loader, **shares) as loader:
            for _, batch in loader:
                run.before_step(batch)
                arrays = stage.arrays(batch)
                placed = sharding.to_devices(arrays, mesh)
                state, metrics = train_step(state, placed, layout.step_key)
                # Checks and logs the step before, while the devices work on this one.
                run.after_step(state, metrics, arrays)
                if evaluate and run.is_due(settings.evaluate_every):
                    run.evaluate(evaluate)
                if run.is_due(config.checkpoint.every):
                    run.save()
                if run.stop_requested():
                    run.stop()
                    return state
        run.finish(evaluate)
    return run.state


def _open_batches(data: Mapping[str, Any], model: Mapping[str, Any]) -> Batches:
    """Open the data; hosts that share a cache of record counts count once."""

    def log_count(counted: int) -> None:
        logging.log_every_n_seconds(logging.INFO, "counting records: %d more", 5, counted)

    shared = data.get("index_cache")
    with distributed.first_process_first("counting") if shared else contextlib.nullcontext():
        return open_batches(data, model, log_count)


def _batches_on_devices(batches: Batches, layout: TrainLayout) -> Iterator[Any]:
    """The run's batches from the first step on, built when they are asked for."""
    host, hosts = sharding.row_share(layout.mesh)
    for step in itertools.count():
        rows = host_rows(batches.global_rows(step), host, hosts)
        arrays = layout.stage.arrays(batches.build(step, rows))
        yield sharding.to_devices(arrays, layout.mesh)


class Evaluator:
    """Evaluates a state on the first batches of the eval data, the same each time."""

    def __init__(self, layout: TrainLayout, batches: Batches):
        self._layout, self._batches = layout, batches
        stage = layout.stage

        def evaluate(variables, arrays, key):
            return stage.evaluate(variables, arrays, stage.totals(arrays), key)

        self._evaluate = jax.jit(sharding.under_mesh(layout.mesh, evaluate))

    def __call__(
        self, state: TrainState, beat: Callable[[str], None]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """(`eval/NAME` -> mean over the batches, pictures of the first batch).

        Args:
          state: evaluated with its EMA, if it has one.
          beat: called after each batch with a description of the progress.
        """
        layout, settings = self._layout, self._layout.config.train
        variables = state.variables(averaged=True)
        host, hosts = sharding.row_share(layout.mesh)
        values: dict[str, list[float]] = {}
        pictures: dict[str, Any] = {}
        first = None
        stop = settings.evaluate_batches
        with Loader(self._batches, start=0, stop=stop, host=host, hosts=hosts) as loader:
            for number, batch in loader:
                arrays = layout.stage.arrays(batch)
                first = arrays if first is None else first
                placed = sharding.to_devices(arrays, layout.mesh)
                key = jax.random.fold_in(layout.eval_key, number)
                metrics = jax.device_get(self._evaluate(variables, placed, key))
                beat(f"batch {number + 1} of an evaluation")
                for name, value in metrics.items():
                    values.setdefault(f"eval/{name}", []).append(float(value))
        if settings.pictures and jax.process_count() == 1:
            pictures = layout.stage.pictures(variables, first)
        return {name: float(np.mean(means)) for name, means in values.items()}, pictures


def _filter_logs() -> None:
    """Hide the INFO lines of Orbax and TFDS, and Orbax's errors, which are raised as well."""

    def keep(record) -> bool:
        parts = Path(record.pathname).parts
        if "orbax" in parts:
            return record.levelno == 30
        return record.levelno >= 30 or "tensorflow_datasets" not in parts

    logging.get_absl_handler().addFilter(keep)


def define_flags() -> None:
    """Define the command-line flags."""
    cli.define_config("Config of a stage: configs/STAGE.py:SIZE.")
    cli.define_path("workdir", None, "Folder of the run.")
    flags.DEFINE_bool("accept_changes", False, "Resume with another model or other data.")
    distributed.define_flags()
    flags.mark_flag_as_required("workdir")


def main(argv: list[str]) -> None:
    """Run the command."""
    values, started = flags.FLAGS, time.time()
    config = values.config.to_dict()
    train_section = dict(config.get("train", {}))
    distributed.use_compilation_cache(
        train_section.get("compilation_cache", TrainSettings.compilation_cache)
    )
    logging.set_verbosity(logging.INFO)
    _filter_logs()
    command = distributed.command_line("ba_jax.train")
    resume_line = distributed.resume_line(command)
    try:
        if joined := distributed.initialize_from_flags(command):
            logging.info("%s", joined)
        distributed.reuse_memory_on_cpu()
        state = train(config, values.workdir, command, values.accept_changes)
    except TrainError as error:
        distributed.exit_with_error(command, error, 1, resume_line)
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
        logging.info("%s", resume_line)


if __name__ == "__main__":
    cli.run("ba_jax.train", define_flags, main)
