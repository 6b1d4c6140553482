"""Why a run stops before its last step: a signal to any of its hosts, a loss that jumps."""

from __future__ import annotations

import collections
import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DONE_FILE = "done"
_LEAST_SPREAD = 1e-3


class Signals:
    """SIGTERM or Ctrl-C asks to stop (a second Ctrl-C stops at once), SIGUSR1 for a trace.

    Handlers are put back at the end.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self):
        self.stop = self.trace = False
        self._told: jax.Array | None = None
        self._agree = _Agreement() if jax.process_count() > 1 else None

    def __enter__(self) -> Signals:
        self._before = {number: signal.signal(number, self._note) for number in self.NUMBERS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _) -> None:
        if number == signal.SIGUSR1:
            self.trace = True
            return
        self.stop = True
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    def agreed_stop(self) -> bool:
        """Some host was asked to stop; the same answer on all, which call it after each step.

        On several hosts it is the answer to what was asked a call before: the devices exchange it
        between two steps, and no host waits for them.
        """
        if self._agree is None:
            return self.stop
        before, self._told = self._told, self._agree.tell(self.stop)
        return before is not None and self._agree.any(before)


class _Agreement:
    """A yes or no of every host, summed on the devices."""

    def __init__(self):
        mesh = Mesh(np.asarray(jax.devices()), ("all",))
        self._each = NamedSharding(mesh, PartitionSpec("all"))
        whole = NamedSharding(mesh, PartitionSpec())
        self._sum = jax.jit(lambda told_D: told_D.sum(), out_shardings=whole)

    def tell(self, own: bool) -> jax.Array:
        told_D = np.full(jax.local_device_count(), own, np.int32)
        return self._sum(jax.make_array_from_process_local_data(self._each, told_D))

    def any(self, told: jax.Array) -> bool:
        return int(told) > 0


class Losses:
    """The last losses, and whether the next one jumps.

    Args:
      spike: standard deviations above the mean that are a jump; 0: nothing is.
      window: losses that mean and deviation are taken of; before there are as many, none jumps.
    """

    def __init__(self, spike: float, window: int):
        self._spike, self._recent = spike, collections.deque(maxlen=window)

    def jump(self, loss: float) -> str | None:
        """What is wrong with the next loss, if it jumps."""
        recent = self._recent
        if self._spike and len(recent) == recent.maxlen:
            mean, spread = float(np.mean(recent)), float(np.std(recent))
            # Losses that hardly differ are no reason to stop at the first that does.
            limit = mean + self._spike * max(spread, _LEAST_SPREAD * abs(mean))
            if loss > limit:
                return (
                    f"loss {loss:.6g} after {len(recent)} of mean {mean:.6g} and deviation "
                    f"{spread:.3g}: expected at most {limit:.6g} "
                    f"(train.spike_standard_deviations = {self._spike:g})"
                )
        recent.append(loss)
        return None


def report_batch(
    path: Path, step: int, values: Mapping[str, float], ids: Sequence[Sequence[str]]
) -> str:
    """Writes a step's metrics and the ids of its batch, on the first host; returns a line."""
    report: dict[str, Any] = {"step": step, "metrics": {k: repr(v) for k, v in values.items()}}
    if jax.process_index() == 0:
        text = json.dumps({**report, "rows": ids}, indent=1, ensure_ascii=False)
        path.write_text(text)
    some = [name for row in ids for name in row][:4]
    return f"its batch holds {some}, ...: all ids are in {path}"


def mark_done(workdir: Path, step: int | None) -> None:
    """Leaves WORKDIR/done, with the step in it, or takes it away (None).

    On several hosts all call it; it is there, or gone, when it returns.
    """
    if jax.process_index() == 0:
        if step is None:
            (workdir / DONE_FILE).unlink(missing_ok=True)
        else:
            (workdir / DONE_FILE).write_text(f"{step}\n")
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"ba_jax.run done {step}")
