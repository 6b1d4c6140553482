"""One process of several: joins the others, and ends with a clear line when one of them is lost.

`--distributed` finds the others, in this order:

1. `--coordinator=HOST:PORT --processes=N --process=I`, all three of them;
2. the variables JAX_COORDINATOR_ADDRESS (HOST:PORT, or HOST beside JAX_COORDINATOR_PORT),
   JAX_NUM_PROCESSES and JAX_PROCESS_ID: for launchers that JAX does not know. In an indexed
   Kubernetes job JOB_COMPLETION_INDEX does for the last;
3. what JAX finds by itself: a Cloud TPU pod (queued resources, GKE, several slices), SLURM, Open
   MPI, Kubernetes with its Python client.

On SLURM with GPUs JAX gives each task one of them. Here a task gets an equal share of its node's
(SLURM_GPUS_ON_NODE, SLURM_STEP_TASKS_PER_NODE), so that one task a node has all.

JAX's coordination service notices a process that is gone or frozen after `--heartbeat` seconds,
collectives often at once. Either way `exit_now` says what happened and how to go on, and ends the
process with code `LOST`: what it waits for (collectives, checkpoints written together) would never
come. `Watchdog` does the same for a process that is there and does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import NoReturn

import jax
from absl import flags

from ba_jax.files import first_line

LOST = 75
"""Exit code of a process that lost another, or waited too long: run it again (EX_TEMPFAIL)."""
HEARTBEAT_SECONDS = 100
START_SECONDS = 300
LEAVE_SECONDS = 10.0

_ADDRESS = "JAX_COORDINATOR_ADDRESS"
_PORT = "JAX_COORDINATOR_PORT"
_COUNT = "JAX_NUM_PROCESSES"
_INDEXES = ("JAX_PROCESS_ID", "JOB_COMPLETION_INDEX")
# What JAX, gloo, NCCL and Orbax raise when another process does not answer.
_SIGNS_OF_LOSS = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|socket closed|heartbeat|coordination service"
    r"|barrier|preempted|DEADLINE_EXCEEDED|UNAVAILABLE",
    re.IGNORECASE,
)


class DistributedError(ValueError):
    """The other processes cannot be found: which setting is missing or wrong."""


class HostLostError(RuntimeError):
    """The other processes did not come, or one was lost."""


def define_flags() -> None:
    """The command line's."""
    flags.DEFINE_bool("distributed", False, "One process of several, see ba_jax.distributed.")
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
    flags.DEFINE_integer("processes", None, "How many there are.", 1)
    flags.DEFINE_integer("process", None, "Which of them this is, from 0 on.", 0)
    flags.DEFINE_integer(
        "heartbeat", HEARTBEAT_SECONDS, "Seconds without a sign after which a process is lost.", 1
    )


def initialize_from_flags(command: str) -> str | None:
    """`initialize` if --distributed is set. Call it before anything uses a device."""
    values = flags.FLAGS
    given = {name: values[name].value for name in ("coordinator", "processes", "process")}
    if not values.distributed:
        extra = [f"--{name}" for name, value in given.items() if value is not None]
        if extra:
            raise DistributedError(f"{', '.join(extra)} without --distributed")
        return None
    return initialize(command, **given, heartbeat=values.heartbeat)


def initialize(
    command: str,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    heartbeat: int = HEARTBEAT_SECONDS,
) -> str:
    """Joins the other processes; returns a line that says which they are.

    Args:
      command: what `resume_line` tells to run again; its first word names it in messages.
      coordinator, processes, process: all, or none to find them out.
      heartbeat: seconds without a sign after which a process counts as lost.

    Raises:
      DistributedError: settings that are missing, or make no sense.
      HostLostError: the others did not come within `START_SECONDS`.
    """
    arguments, found = _settings(os.environ, coordinator, processes, process)
    came = f"{found}: not all processes came within {START_SECONDS} s"
    _endings.append((LOST, _lost_lines(command, came)))
    _on_abort()
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=heartbeat,
        )
    except ValueError as error:
        if arguments:
            raise DistributedError(f"{found}: {error}") from error
        raise DistributedError(
            "no other processes: expected a TPU pod, SLURM, Open MPI, the variables "
            f"{_ADDRESS}, {_COUNT} and {_INDEXES[0]}, or --coordinator, --processes and --process "
            f"(JAX: {error})"
        ) from error
    except RuntimeError as error:
        raise HostLostError(f"{came}: {first_line(error)}") from error
    gone = "JAX ended this process, most likely because another one was lost: see above"
    _endings.append((LOST, _lost_lines(command, gone)))
    return (
        f"process {jax.process_index()} of {jax.process_count()} ({found}): "
        f"{jax.local_device_count()} of {jax.device_count()} {jax.devices()[0].platform} devices, "
        f"heartbeat {heartbeat} s"
    )


def _settings(environment: Mapping[str, str], coordinator, processes, process):
    """(arguments for JAX, where they come from)."""
    flags_given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    if any(value is not None for value in flags_given.values()):
        return _explicit(flags_given), "from flags"
    index = next((name for name in _INDEXES if name in environment), _INDEXES[0])
    names = (_ADDRESS, _COUNT, index)
    # JAX reads the address of these itself, beside what a cluster tells.
    if _COUNT in environment or _INDEXES[0] in environment:
        address = environment.get(_ADDRESS)
        if address and ":" not in address and _PORT in environment:
            address = f"{address}:{environment[_PORT]}"
        numbers = (_integer(name, environment.get(name)) for name in names[1:])
        return _explicit(dict(zip(names, (address, *numbers), strict=True))), "from variables"
    if "SLURM_JOB_ID" in environment:
        devices = _slurm_devices(environment)
        more = {} if devices is None else {"local_device_ids": devices}
        return more, f"SLURM job {environment['SLURM_JOB_ID']}"
    return {}, "found by JAX"


def _explicit(given: Mapping[str, str | int | None]) -> dict[str, str | int]:
    missing = [name for name, value in given.items() if value is None]
    if missing:
        has = [name for name in given if name not in missing]
        raise DistributedError(f"{', '.join(has)} without {' and '.join(missing)}")
    (name, address), (_, count), (which, index) = given.items()
    if not re.fullmatch(r".+:\d+", str(address)):
        raise DistributedError(f"{name} = {address!r}: expected HOST:PORT")
    if not 0 <= index < count:
        raise DistributedError(f"{which} = {index}: expected 0 to {count - 1}, of {count}")
    return {"coordinator_address": address, "num_processes": count, "process_id": index}


def _integer(name: str, text: str | None) -> int | None:
    if text is not None and not text.isdecimal():
        raise DistributedError(f"{name} = {text!r}: expected a number")
    return None if text is None else int(text)


def _slurm_devices(environment: Mapping[str, str]) -> list[int] | None:
    """A task's share of its node's GPUs; None where there are none."""
    gpus = _integer("SLURM_GPUS_ON_NODE", environment.get("SLURM_GPUS_ON_NODE"))
    # "2(x3),1": two on each of three nodes, one on the fourth.
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if not gpus or not tasks:
        return None
    count, local = int(tasks[0]), int(environment.get("SLURM_LOCALID", "0"))
    if gpus % count:
        raise DistributedError(
            f"SLURM: {gpus} GPUs and {count} tasks on a node: expected equal shares"
        )
    share = gpus // count
    return list(range(local * share, (local + 1) * share))


def resume_line(command: str) -> str:
    """How to go on after a stop."""
    return f"to resume: {command}"


def command_line(module: str) -> str:
    """The command line that this process was started with, for a shell."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


@contextlib.contextmanager
def first_process_first(place: str) -> Iterator[None]:
    """The first process runs the block before the others, which find what it left on the disk."""
    from jax.experimental import multihost_utils

    if jax.process_index():
        multihost_utils.sync_global_devices(f"ba_jax {place}")
    yield
    if jax.process_count() > 1 and not jax.process_index():
        multihost_utils.sync_global_devices(f"ba_jax {place}")


def is_host_loss(error: BaseException) -> bool:
    """An error that another process' end explains; never with one process."""
    if isinstance(error, HostLostError):
        return True
    return _are_several() and bool(_SIGNS_OF_LOSS.search(f"{error}"))


def _are_several() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


# (exit code, last lines) of an end that JAX may bring about: the last entry counts.
_endings: list[tuple[int, tuple[str, ...]]] = []


def exit_now(code: int, *lines: str) -> NoReturn:
    """Ends this process now with some last lines, without waiting for others for long.

    Python's own end would wait for threads and processes that may never answer. With another code
    than `LOST` the others get a moment to end with theirs.
    """
    _endings.append((code, lines))
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    if code != LOST and jax.distributed.is_initialized():
        ending = threading.Thread(target=_shut_down, daemon=True)
        ending.start()
        ending.join(LEAVE_SECONDS)
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    _write_lines(lines)
    os._exit(code)


def _shut_down() -> None:
    with contextlib.suppress(RuntimeError, ValueError):
        jax.distributed.shutdown()


def _write_lines(lines) -> None:
    with contextlib.suppress(OSError):
        os.write(2, "".join(f"{line}\n" for line in lines).encode())


def _lost_lines(command: str, what: str) -> tuple[str, str]:
    return f"{command.split()[2]}: {what}", resume_line(command)


def exit_host_lost(command: str, what: str) -> NoReturn:
    """Ends this process because another was lost."""
    exit_now(LOST, *_lost_lines(command, f"another process was lost: {what}"))


def exit_with_error(command: str, error: BaseException, code: int = 1, *more: str) -> NoReturn:
    """Ends a command with an error.

    Args:
      command: as it can be run again.
      error: `LOST` is the exit code if it comes from losing another process.
      code: if it does not.
      more: lines after it.
    """
    name = command.split()[2]
    if isinstance(error, HostLostError):
        exit_now(LOST, f"{name}: {error}", resume_line(command))
    if is_host_loss(error):
        exit_host_lost(command, first_line(error))
    lines = (f"{name}: {error}", *more)
    if _are_several():
        exit_now(code, *lines)
    if code == 1:
        sys.exit("\n".join(lines))
    _write_lines(lines)
    sys.exit(code)


# What C calls on SIGABRT; kept, as C does not.
_handlers: list = []


def _on_abort() -> None:
    """JAX aborts the process, from a thread of its own, when the service tells that one is lost.

    Python's handlers would never run. This one does, on the thread that aborts.
    """

    def handle(_: int) -> None:
        code, lines = _endings[-1]
        _write_lines(lines)
        os._exit(code)

    _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(handle))
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, _handlers[-1])


class Watchdog:
    """Ends the process if nothing happens for too long: `watch` around what is watched.

    Args:
      seconds: between two beats; 0: never.
      command: what to run again.
    """

    def __init__(self, seconds: float, command: str):
        self._seconds, self._command = seconds, command
        self._last: float | None = None
        self._doing = ""
        self._stop = threading.Event()

    def beat(self, doing: str) -> None:
        """Something was done; `doing` is what comes next. The first one starts the clock."""
        self._doing, self._last = doing, time.monotonic()

    @contextlib.contextmanager
    def watch(self) -> Iterator[Watchdog]:
        """Watches until the block ends."""
        if self._seconds:
            threading.Thread(target=self._look, name="ba_jax-watchdog", daemon=True).start()
        try:
            yield self
        finally:
            self._stop.set()

    def _look(self) -> None:
        while not self._stop.wait(min(1.0, self._seconds / 4)):
            if self._last is None or time.monotonic() - self._last < self._seconds:
                continue
            faulthandler.dump_traceback(all_threads=True)
            what = (
                f"{self._doing} took longer than {self._seconds:g} s (train.step_timeout_seconds)"
            )
            exit_now(LOST, *_lost_lines(self._command, what))


def use_compilation_cache(folder: str) -> None:
    """Keep compiled programs in `folder` so that a restart takes seconds; "" does nothing."""
    if folder:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
