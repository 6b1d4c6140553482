"""Run trainings that are killed at random moments while they write a checkpoint.

python -m tests.integration.kill_driver CONFIG.json FOLDER SEED ...

The run of a seed is in FOLDER/SEED. Each is a fork, so that JAX is imported once.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import sys
import threading
import time
import traceback

from absl import flags

from ba_jax import train
from ba_jax.checkpoints.manager import Checkpoints

LONGEST_SECONDS = 0.25
"""Longest delay of the kill after a checkpoint begins."""


def kill_at_random(seed: int, steps: int) -> None:
    """Kill this process at a random moment after the checkpoint of a random step begins."""
    chosen = random.Random(seed)
    step, seconds = chosen.randrange(3, steps - 1), chosen.uniform(0, LONGEST_SECONDS)
    save = Checkpoints.save

    def kill() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    def save_and_count(self, number, *args):
        if number == step:
            threading.Thread(target=kill, daemon=True).start()
        save(self, number, *args)

    Checkpoints.save = save_and_count


def _main(file: str, folder: str, *seeds: str) -> None:
    flags.FLAGS.mark_as_parsed()
    config = json.loads(pathlib.Path(file).read_text())
    for seed in seeds:
        child = os.fork()
        if not child:
            try:
                kill_at_random(int(seed), config["train"]["steps"])
                train.train(config, pathlib.Path(folder) / seed)
                time.sleep(LONGEST_SECONDS)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        _, status = os.waitpid(child, 0)
        print("killed", seed, os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
