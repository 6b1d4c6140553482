"""Print a hash of each step's global batch: the same for any number of hosts and workers.

    python -m ba_jax.data.hash --config=configs/lm_stage2.py:nano --steps=100:105 \
        --hosts=2 --workers=2

Prints a line per step, `step hash`, once all steps are loaded. Each host is a process that loads
its rows as in training, with `--workers` processes. Two runs that print the same lines see the same
data; a resumed run can be checked against the lines of the first run.
"""

from __future__ import annotations

import concurrent.futures.process
import hashlib
import multiprocessing
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import flags, logging

from ba_jax import cli
from ba_jax.config import ConfigError
from ba_jax.data.batches import open_batches
from ba_jax.data.loader import BatchError, Loader, LoaderSettings
from ba_jax.files import first_line


def _arrays(value: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
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


def _hash_rows(
    config: Mapping, steps: range, host: int, hosts: int, workers: int
) -> list[list[bytes]]:
    logging.set_verbosity(logging.WARNING)
    try:
        batches = open_batches(config["data"], config["model"])
        share = {"start": steps.start, "stop": steps.stop, "host": host, "hosts": hosts}
        with Loader(batches, LoaderSettings(workers=workers), **share) as loader:
            return [row_digests(batch) for _, batch in loader]
    except Exception as error:
        print(traceback.format_exc(), file=sys.stderr)
        message = f"host {host}: {type(error).__name__}: {first_line(error)}"
        raise BatchError(message) from None


def global_hashes(
    config: Mapping, steps: range, hosts: int = 1, workers: int = 0
) -> Iterator[tuple[int, str]]:
    """Yield (step, hash) of the global batches, loaded by `hosts` processes; else BatchError."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(hosts, mp_context=context) as pool:
        shares = [
            pool.submit(_hash_rows, config, steps, host, hosts, workers) for host in range(hosts)
        ]
        try:
            by_host = [share.result() for share in shares]
        except concurrent.futures.process.BrokenProcessPool as error:
            raise BatchError(f"a process of {hosts} hosts died: {error}") from None
    for step, *digests in zip(steps, *by_host, strict=True):
        yield step, batch_hash([digest for rows in digests for digest in rows])


def parse_steps(text: str) -> range:
    """Parse `100:105` to range(100, 105)."""
    first, colon, last = text.partition(":")
    if colon and first.isdecimal() and last.isdecimal() and int(first) < int(last):
        return range(int(first), int(last))
    raise ConfigError(f"--steps={text}: expected first:last with first < last, such as 100:105")


def define_flags() -> None:
    """Define the command line's flags."""
    cli.define_config("A config with `data` and `model`.")
    flags.DEFINE_string("steps", "0:10", "First step, and the one after the last: 100:105.")
    flags.DEFINE_integer("hosts", 1, "Processes that share the rows.", lower_bound=1)
    flags.DEFINE_integer("workers", 0, "Worker processes of each host.", lower_bound=0)


def main(argv: list[str]) -> int:
    """Print the hashes."""
    values = flags.FLAGS
    try:
        steps = parse_steps(values.steps)
        config = values.config.to_dict()
        for step, digest in global_hashes(config, steps, values.hosts, values.workers):
            print(step, digest, flush=True)
    except ConfigError:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        return cli.fail("ba_jax.data.hash", error, 1)
    return 0


if __name__ == "__main__":
    cli.run("ba_jax.data.hash", define_flags, main)
