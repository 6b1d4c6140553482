"""`python -m ba_jax.train` as a process to which something happens at a step.

python -m tests.integration.train_driver CONFIG.json WORKDIR EVENT STEP [FLAG ...]
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from absl import app
from ml_collections import ConfigDict, config_flags

from ba_jax import train

ROOT = pathlib.Path(__file__).resolve().parents[2]


def full_disk() -> None:
    """From here on no file grows beyond 16 KiB, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, 1 << 14))


EVENTS = {
    "none": lambda: None,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
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
    """Runs it and waits."""
    return start(config, workdir, event, step, *flags, **environment)()


def start(config, workdir, event="none", step=0, *flags: str, **environment: str):
    """Starts it; what is returned waits for it."""
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
    )

    def wait() -> subprocess.CompletedProcess:
        try:
            out, err = process.communicate(timeout=240)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return wait


def _main(file: str, workdir: str, event: str, step: str, *flags: str) -> None:
    config = ConfigDict(json.loads(pathlib.Path(file).read_text()))
    add = train._Hashes.add

    def add_and_more(self, number, batch):
        add(self, number, batch)
        if number == int(step):
            EVENTS[event]()

    train._Hashes.add = add_and_more

    # The config is given, not read from a Python file.
    config_flags.DEFINE_config_file = lambda name, *_: config_flags.DEFINE_config_dict(name, config)
    train.define_flags()
    app.run(train.main, [sys.argv[0], f"--workdir={workdir}", *flags])


if __name__ == "__main__":
    _main(*sys.argv[1:])
