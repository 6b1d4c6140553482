"""Processes that tests start, and waiting for what they do."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import socket
import subprocess
import time
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATIENCE = 900
"""Limit for anything that a test waits for, in seconds.

It ends a hang and measures nothing: machines differ by three times and carry other work.
"""


def start(words: Sequence[str], **environment: str) -> subprocess.Popen:
    """Start a command in the root of the tree and collect its output as text."""
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    """Wait for a process that exits with `code`; return its (stdout, stderr)."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == code, err
    return out, err


def wait_for(condition: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    """Wait until the condition holds; fail if `process` ends before."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"nothing within {PATIENCE} s"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


def free_port() -> int:
    """A free TCP port, below those that the kernel hands out meanwhile."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.SystemRandom().randrange(10000, 30000)))
            return probe.getsockname()[1]


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
