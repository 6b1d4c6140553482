"""Run `python -m ba_jax.train` as a process with an event at a step.

python -m tests.integration.train_driver CONFIG.json WORKDIR EVENT STEP [FLAG ...]

With READS=FILE in the environment, FILE gets a line for each batch: its step, its rows, and the
number of records read for it. The first line is the number of records read before.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from absl import app
from ml_collections import ConfigDict, config_flags

from ba_jax import cli, train
from ba_jax.data.packed import PackedBatches
from ba_jax.data.record import RecordSource
from ba_jax.run import BatchHashes
from tests.processes import PATIENCE, ROOT, free_port


def full_disk() -> None:
    """Limit the size of all files to 16 KiB from now on, like a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, 1 << 14))


EVENTS = {
    "none": lambda: None,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "group": lambda: os.killpg(0, signal.SIGTERM),
    "hang": lambda: time.sleep(1000),
    "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
    "full": full_disk,
}


def run(
    config: Mapping[str, Any],
    workdir: pathlib.Path,
    event: str = "none",
    step: int = 0,
    *flags: str,
    **environment: str,
) -> subprocess.CompletedProcess:
    """Run it and wait."""
    return start(config, workdir, event, step, *flags, **environment)()


def start(config, workdir, event="none", step=0, *flags: str, **environment: str):
    """Start it; returns a function that waits for it."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    file = workdir.parent / (workdir.name + ".json")
    file.write_text(json.dumps(config))
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.integration.train_driver",
            str(file),
            str(workdir),
            event,
            str(step),
            *flags,
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def wait() -> subprocess.CompletedProcess:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return wait


def together(
    config: Mapping[str, Any],
    workdir: pathlib.Path,
    processes: int,
    events: Mapping[int, tuple[str, int]] = {},
    *flags: str,
) -> list[subprocess.CompletedProcess]:
    """Run the processes of one run together; `events`: process -> (event, step)."""
    shared = ("--distributed", f"--coordinator=127.0.0.1:{free_port()}", f"--processes={processes}")
    waits = [
        start(
            config,
            workdir,
            *events.get(number, ("none", 0)),
            *shared,
            f"--process={number}",
            *flags,
            READS=f"{workdir}-reads-{number}.jsonl",
        )
        for number in range(processes)
    ]
    return [wait() for wait in waits]


def _record_reads(file: pathlib.Path) -> None:
    reads: list[int] = []
    get, build = RecordSource.__getitem__, PackedBatches.build

    def get_and_count(self, index):
        reads.append(index)
        return get(self, index)

    def build_and_log(self, step, rows=None):
        with file.open("a") as stream:
            if not stream.tell():
                stream.write(f"{len(reads)}\n")
            reads.clear()
            batch = build(self, step, rows)
            stream.write(json.dumps([step, list(rows), len(reads)]) + "\n")
        return batch

    RecordSource.__getitem__, PackedBatches.build = get_and_count, build_and_log


def _main(file: str, workdir: str, event: str, step: str, *flags: str) -> None:
    config = ConfigDict(json.loads(pathlib.Path(file).read_text()))
    add = BatchHashes.add

    def add_and_act(self, number, batch):
        add(self, number, batch)
        if number == int(step):
            EVENTS[event]()

    BatchHashes.add = add_and_act
    if reads := os.environ.get("READS"):
        _record_reads(pathlib.Path(reads))

    # The config is passed as a dict, not as a Python file.
    cli.define_config = lambda *_: config_flags.DEFINE_config_dict("config", config)
    train.define_flags()
    app.run(train.main, [sys.argv[0], f"--workdir={workdir}", *flags])


if __name__ == "__main__":
    _main(*sys.argv[1:])
