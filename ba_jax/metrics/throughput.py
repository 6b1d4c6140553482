"""Throughput of a run: amounts a second, step time, and model FLOP utilisation."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping


class Throughput:
    """Amounts and FLOPs of steps over the time they took.

        throughput.start()
        for ...:
            ...                               # a step
            throughput.step(amounts, flops)
            if time_to_log:
                jax.block_until_ready(...)    # JAX runs ahead: without it the window is too short
                writers.write(step, metrics, throughput.report())
                throughput.start()            # excludes the time since the last step

    A step lasts from the last `start` or `step` to its `step`. The first `skip` steps of the run
    (compilation) do not count.

    Args:
      devices: number of devices of all processes, for the MFU.
      peak: FLOP/s of a device, see `chips.peak_flops`; None: no MFU is reported.
      processes: number of processes that feed as much as this one: amounts and FLOPs, those of this
        process's rows, are multiplied by it.
      skip: steps to leave out, >= 0.
      clock: seconds, monotonic.

    Raises:
      ValueError: devices, processes < 1, skip < 0, or a peak that is not positive.
    """

    def __init__(
        self,
        devices: int = 1,
        peak: float | None = None,
        *,
        processes: int = 1,
        skip: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ):
        if devices < 1 or processes < 1 or skip < 0:
            raise ValueError(
                f"throughput: devices {devices}, processes {processes}, skip {skip}: expected"
                " >= 1, >= 1, >= 0"
            )
        if peak is not None and not peak > 0:
            raise ValueError(f"throughput: peak {peak}: expected a positive number of FLOP/s")
        self._devices, self._peak, self._processes = devices, peak, processes
        self._skip, self._clock = skip, clock
        self._mark: float | None = None
        self._steps, self._seconds, self._flops = 0, 0.0, 0.0
        self._amounts: Counter[str] = Counter()

    def start(self) -> None:
        """Begin a step now, without the time since the last one."""
        self._mark = self._clock()

    def step(self, amounts: Mapping[str, float], flops: float = 0.0) -> None:
        """End a step now; `amounts` as of `Stage.amounts`, `flops` as of `Stage.flops`.

        Raises:
          RuntimeError: `start` was never called.
        """
        if self._mark is None:
            raise RuntimeError("throughput: step() before start()")
        now = self._clock()
        seconds, self._mark = now - self._mark, now
        if self._skip:
            self._skip -= 1
            return
        self._steps += 1
        self._seconds += seconds
        self._flops += flops
        self._amounts.update(amounts)

    def report(self) -> dict[str, float]:
        """Rates since the last report: `throughput/<amount>_per_second`, `/step_seconds`, `/mfu`.

        Empty if no counted step ended since. Begins a new window.
        """
        steps, seconds, flops, amounts = self._steps, self._seconds, self._flops, self._amounts
        self._steps, self._seconds, self._flops, self._amounts = 0, 0.0, 0.0, Counter()
        if not steps or seconds <= 0:
            return {}
        rates = {
            f"throughput/{name}_per_second": self._processes * amount / seconds
            for name, amount in amounts.items()
        }
        rates["throughput/step_seconds"] = seconds / steps
        if self._peak is not None and flops:
            available = seconds * self._devices * self._peak
            rates["throughput/mfu"] = self._processes * flops / available
        return rates
