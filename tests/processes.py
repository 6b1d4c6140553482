"""Commands and processes that tests start, and waiting for what they do."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import random
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO
from unittest import mock

from absl import app, flags

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


def run_here(name: str, *words: str, code: int = 0) -> tuple[str, str]:
    """Run `python -m NAME WORD ...` in this process, without its imports' seconds.

    Returns:
      Its (stdout, stderr), after checking that it exits with `code`.
    """
    import grain  # noqa: F401 (defines flags of its own, once)

    before, log = set(flags.FLAGS), logging.getLogger("absl")
    level, hook = log.level, sys.unraisablehook

    def run(main, flags_parser):
        sys.exit(main(flags_parser(sys.argv)))

    with (
        mock.patch.object(sys, "argv", [name, *words]),
        mock.patch.object(app, "run", run),
        _captured(1, contextlib.redirect_stdout) as out,
        _captured(2, contextlib.redirect_stderr) as err,
    ):
        try:
            runpy.run_module(name, run_name="__main__")
            ended = 0
        except SystemExit as stop:
            ended = stop.code or 0
            if isinstance(ended, str):  # a message
                print(ended, file=sys.stderr)
                ended = 1
        finally:
            for flag in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, flag)
            flags.FLAGS.unparse_flags()
            log.setLevel(level)
            sys.unraisablehook = hook
        texts = [stream.flush() or pathlib.Path(stream.name).read_text() for stream in (out, err)]
    assert ended == code, texts[1]
    return texts[0], texts[1]


@contextlib.contextmanager
def _captured(descriptor: int, redirect: Callable) -> Iterator[IO[str]]:
    """Send a standard stream into a file, what is written to its descriptor too."""
    kept = os.dup(descriptor)
    try:
        with tempfile.NamedTemporaryFile("w") as file, redirect(file):
            os.dup2(file.fileno(), descriptor)
            yield file
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


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
