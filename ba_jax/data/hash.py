"""Print a hash of each step's global batch: the same for any number of hosts and workers.

    python -m ba_jax.data.hash --config=configs/lm_stage2.py:nano --steps=100:105 \
        --hosts=2 --workers=2

One line a step, `step hash`. Each host is a process that loads its rows as in training, with
`--workers` processes. Two runs that print the same lines see the same data; a resumed run can be
checked against the lines of the first run.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import app, flags, logging

from ba_jax.data.batches import open_batches
from ba_jax.data.loader import BatchError, Loader, LoaderSettings


def _arrays(value: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, array) of every array of a batch."""
    if isinstance(value, np.ndarray):
        yield name, value
    elif isinstance(value, tuple):
        fields = getattr(value, "_fields", range(len(value)))
        for field, item in zip(fields, value, strict=True):
            yield from _arrays(item, f"{name}.{field}")
    elif value is not None:
        raise TypeError(f"{name}: {type(value).__name__} in a batch, expected arrays")


def row_digests(batch: Any) -> list[bytes]:
    """Compute the SHA-256 of each row over all arrays, with their names, types and shapes."""
    digests: list = []
    for name, array in _arrays(batch):
        digests = digests or [hashlib.sha256() for _ in array]
        head = f"{name} {array.dtype.str} {array.shape[1:]};".encode()
        for digest, row in zip(digests, array, strict=True):
            digest.update(head)
            digest.update(np.ascontiguousarray(row).data)
    return [digest.digest() for digest in digests]


def batch_hash(digests: list[bytes]) -> str:
    """Hash a global batch from its rows' digests, in order: 64 hexadecimal digits."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _serve(connection, config: Mapping, steps: range, host: int, hosts: int, workers: int) -> None:
    """Run one host: send (step, digests) of its rows, or the message of an error."""
    logging.set_verbosity(logging.WARNING)
    try:
        batches = open_batches(config["data"], config["model"])
        settings = LoaderSettings(workers=workers)
        with Loader(
            batches, settings, start=steps.start, stop=steps.stop, host=host, hosts=hosts
        ) as loader:
            for step, batch in loader:
                connection.send((step, row_digests(batch)))
    except Exception as error:
        print(traceback.format_exc(), file=sys.stderr)
        connection.send(f"host {host}: {type(error).__name__}: {str(error).splitlines()[0]}")
    connection.close()


def global_hashes(
    config: Mapping, steps: range, hosts: int = 1, workers: int = 0
) -> Iterator[tuple[int, str]]:
    """Yield (step, hash) of the global batches, loaded by `hosts` processes.

    Raises:
      BatchError: a host that failed or died.
    """
    context = multiprocessing.get_context("spawn")
    ends, processes = [], []
    done = False
    try:
        for host in range(hosts):
            ours, theirs = context.Pipe(duplex=False)
            args = (theirs, config, steps, host, hosts, workers)
            process = context.Process(target=_serve, args=args)
            process.start()
            theirs.close()  # the pipe then ends with the process
            ends.append(ours)
            processes.append(process)
        for step in steps:
            digests = []
            for host, (end, process) in enumerate(zip(ends, processes, strict=True)):
                try:
                    message = end.recv()
                except EOFError:
                    process.join()
                    raise BatchError(
                        f"step {step}: host {host} ended with exit code {process.exitcode}"
                    ) from None
                if isinstance(message, str):
                    raise BatchError(message)
                if message[0] != step:
                    raise BatchError(f"host {host}: step {message[0]}, expected {step}")
                digests += message[1]
            yield step, batch_hash(digests)
        done = True
    finally:
        for process in processes:
            if not done:
                process.terminate()
            process.join(timeout=10)
            if process.is_alive():
                process.kill()


def parse_steps(text: str) -> range:
    """Parse `100:105` to range(100, 105).

    Raises:
      ValueError: anything else.
    """
    first, colon, last = text.partition(":")
    if colon and first.isdecimal() and last.isdecimal() and int(first) < int(last):
        return range(int(first), int(last))
    raise ValueError(f"steps {text!r}: expected first:last with first < last, such as 100:105")


def define_flags() -> None:
    """Define the command line's flags."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", None, "A config with `data` and `model`.")
    flags.DEFINE_string("steps", "0:10", "First step, and the one after the last: 100:105.")
    flags.DEFINE_integer("hosts", 1, "Processes that share the rows.", lower_bound=1)
    flags.DEFINE_integer("workers", 0, "Worker processes of each host.", lower_bound=0)
    flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    """Print the hashes."""
    values = flags.FLAGS
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    try:
        steps = parse_steps(values.steps)
        config = values.config.to_dict()
        for step, digest in global_hashes(config, steps, values.hosts, values.workers):
            print(step, digest, flush=True)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"ba_jax.data.hash: {error}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
