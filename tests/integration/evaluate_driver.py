"""`python -m ba_jax.evaluate` with a fake judge, killed after a number of saved batches.

python -m tests.integration.evaluate_driver CONFIG.json KILL_AFTER FLAG ...
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from absl import app
from ml_collections import ConfigDict, config_flags

from ba_jax import cli, evaluate
from ba_jax.evals import lines
from ba_jax.evals.judges import recogniser
from tests.processes import PATIENCE
from tests.unit.evals.small_bench import LengthJudge

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(
    config: Mapping[str, Any], out: pathlib.Path, *flags: str, kill_after: int = 0, **environment
) -> Callable[[], subprocess.CompletedProcess]:
    """Start the command; return a function that waits for its end."""
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.parent / f"{out.name}.json"
    file.write_text(json.dumps(config))
    command = [sys.executable, "-m", "tests.integration.evaluate_driver", str(file)]
    process = subprocess.Popen(
        [*command, str(kill_after), f"--out={out}", *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def wait() -> subprocess.CompletedProcess:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return wait


def _main(file: str, kill_after: str, *flags: str) -> None:
    config = ConfigDict(json.loads(pathlib.Path(file).read_text()))
    add, calls = lines.Journal.add, []

    def add_and_kill(self, batch):
        add(self, batch)
        calls.append(self)
        if len(calls) == int(kill_after):
            os.kill(os.getpid(), signal.SIGKILL)

    lines.Journal.add = add_and_kill
    recogniser.SpeechJudge = LengthJudge

    # The config is passed in, not read from a Python file.
    cli.define_config = lambda *_: config_flags.DEFINE_config_dict("config", config)
    evaluate.define_flags()
    app.run(evaluate.main, [sys.argv[0], *flags])


if __name__ == "__main__":
    _main(*sys.argv[1:])
