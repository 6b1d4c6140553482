"""Multi-host runs: join the hosts, agree on signals, and end with a clear line if a host is lost.

`--distributed` finds the other processes in this order:

1. flags `--coordinator=HOST:PORT --processes=N --process=I`, all three of them;
2. variables JAX_COORDINATOR_ADDRESS (HOST:PORT, or HOST with JAX_COORDINATOR_PORT),
   JAX_NUM_PROCESSES and JAX_PROCESS_ID, for launchers that JAX does not know. An indexed Kubernetes
   job may use JOB_COMPLETION_INDEX in place of the last;
3. JAX's own detection: Cloud TPU pods (queued resources, GKE, several slices), SLURM, Open MPI,
   Kubernetes with its Python client.

On SLURM with GPUs JAX assigns one GPU to each task. Here each task gets an equal share of its
node's GPUs (SLURM_GPUS_ON_NODE, SLURM_STEP_TASKS_PER_NODE), so a single task per node uses all.

JAX's coordination service notices a process that is gone or frozen after `--heartbeat` seconds;
collectives often fail at once. In either case `exit_now` prints the reason and the command that
resumes the run, and ends the process with exit code `LOST`, since the collectives and shared
checkpoints that it waits for can never complete. `Watchdog` does the same for a process that is
alive but makes no progress.
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
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ba_jax.config import ConfigError, LocalPath, convert
from ba_jax.files import first_line

LOST = 75
"""Exit code after a lost host or a timeout: run the command again (EX_TEMPFAIL)."""
HEARTBEAT_SECONDS = 100
START_SECONDS = 600
SHUTDOWN_SECONDS = 10.0

_ADDRESS = "JAX_COORDINATOR_ADDRESS"
_PORT = "JAX_COORDINATOR_PORT"
_COUNT = "JAX_NUM_PROCESSES"
# Options of glibc's mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_INDEXES = ("JAX_PROCESS_ID", "JOB_COMPLETION_INDEX")
# Errors of JAX, gloo, NCCL and Orbax when another process does not answer.
_SIGNS_OF_LOSS = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|socket closed|heartbeat|coordination service"
    r"|barrier|preempted|DEADLINE_EXCEEDED|UNAVAILABLE",
    re.IGNORECASE,
)


class DistributedError(ConfigError):
    """A setting that is needed to find the other processes is missing or wrong."""


class HostLostError(RuntimeError):
    """Another process did not start in time, or was lost."""


def define_flags() -> None:
    """Define the command-line flags of a multi-host run."""
    flags.DEFINE_bool("distributed", False, "Run as one of several processes.")
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
    flags.DEFINE_integer("processes", None, "Number of processes.", 1)
    flags.DEFINE_integer("process", None, "Index of this process, from 0.", 0)
    flags.DEFINE_integer(
        "heartbeat", HEARTBEAT_SECONDS, "A process silent for this many seconds is lost.", 1
    )


def initialize_from_flags(command: str) -> str | None:
    """`initialize` if --distributed is set. Call it before anything uses a device."""
    values = flags.FLAGS
    settings = {name: values[name].value for name in ("coordinator", "processes", "process")}
    if not values.distributed:
        extra = [f"--{name}" for name, value in settings.items() if value is not None]
        if extra:
            raise DistributedError(f"{', '.join(extra)} without --distributed")
        return None
    return initialize(command, **settings, heartbeat=values.heartbeat)


def initialize(
    command: str,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    heartbeat: int = HEARTBEAT_SECONDS,
) -> str:
    """Join the other processes; returns a line that describes them.

    Args:
      command: command line that resumes the run; its third word names it in messages.
      coordinator, processes, process: all three, or None to detect them.
      heartbeat: seconds of silence after which a process counts as lost.

    Raises:
      DistributedError: missing or invalid settings.
      HostLostError: a process did not start within `START_SECONDS`.
    """
    arguments, origin = _settings(os.environ, coordinator, processes, process)
    timeout = f"{origin}: not all processes came within {START_SECONDS} s"
    _endings.append((LOST, _lost_lines(command, timeout)))
    _exit_cleanly_on_abort()
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=heartbeat,
        )
    except ValueError as error:
        if arguments:
            raise DistributedError(f"{origin}: {error}") from error
        raise DistributedError(
            "no other processes: expected a TPU pod, SLURM, Open MPI, the variables "
            f"{_ADDRESS}, {_COUNT} and {_INDEXES[0]}, or --coordinator, --processes and --process "
            f"(JAX: {error})"
        ) from error
    except RuntimeError as error:
        raise HostLostError(f"{timeout}: {first_line(error)}") from error
    aborted = "JAX ended this process, most likely because another one was lost: see above"
    _endings.append((LOST, _lost_lines(command, aborted)))
    return (
        f"process {jax.process_index()} of {jax.process_count()} ({origin}): "
        f"{jax.local_device_count()} of {jax.device_count()} {jax.devices()[0].platform} devices, "
        f"heartbeat {heartbeat} s"
    )


def _settings(environment: Mapping[str, str], coordinator, processes, process):
    """(arguments for `jax.distributed.initialize`, where they come from)."""
    from_flags = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    if any(value is not None for value in from_flags.values()):
        return _explicit(from_flags), "from flags"
    index = next((name for name in _INDEXES if name in environment), _INDEXES[0])
    names = (_ADDRESS, _COUNT, index)
    # The address alone does not count: JAX reads it too, beside a cluster that it detects.
    if _COUNT in environment or _INDEXES[0] in environment:
        address = environment.get(_ADDRESS)
        if address and ":" not in address and _PORT in environment:
            address = f"{address}:{environment[_PORT]}"
        numbers = (_integer(name, environment.get(name)) for name in names[1:])
        return _explicit(dict(zip(names, (address, *numbers), strict=True))), "from variables"
    if "SLURM_JOB_ID" in environment:
        devices = _slurm_devices(environment)
        arguments = {} if devices is None else {"local_device_ids": devices}
        return arguments, f"SLURM job {environment['SLURM_JOB_ID']}"
    return {}, "found by JAX"


def _explicit(settings: Mapping[str, str | int | None]) -> dict[str, str | int]:
    """Check address, count and index, keyed by the names that messages use."""
    missing = [name for name, value in settings.items() if value is None]
    if missing:
        present = [name for name in settings if name not in missing]
        raise DistributedError(f"{', '.join(present)} without {' and '.join(missing)}")
    (address_name, address), (_, count), (index_name, index) = settings.items()
    if not re.fullmatch(r".+:\d+", str(address)):
        raise DistributedError(f"{address_name} = {address!r}: expected HOST:PORT")
    if not 0 <= index < count:
        raise DistributedError(f"{index_name} = {index}: expected 0 to {count - 1}, of {count}")
    return {"coordinator_address": address, "num_processes": count, "process_id": index}


def _integer(name: str, text: str | None) -> int | None:
    if text is not None and not text.isdecimal():
        raise DistributedError(f"{name} = {text!r}: expected a number")
    return None if text is None else int(text)


def _slurm_devices(environment: Mapping[str, str]) -> list[int] | None:
    """GPUs of this task, an equal share of its node's; None on a node without GPUs."""
    gpus = _integer("SLURM_GPUS_ON_NODE", environment.get("SLURM_GPUS_ON_NODE"))
    # "2(x3),1": two tasks on each of three nodes, one task on the fourth.
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
    """The line that tells the user how to resume."""
    return f"to resume: {command}"


def command_line(module: str) -> str:
    """The command line of this process, quoted for a shell."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def use_compilation_cache(folder: str) -> None:
    """Keep compiled programs in `folder` so that a restart takes seconds; "" does nothing."""
    if folder:
        jax.config.update(
            "jax_compilation_cache_dir", convert(LocalPath, folder, "compilation_cache")
        )
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def reuse_memory_on_cpu() -> None:
    """Keep the memory of a step for the next on CPUs; elsewhere nothing changes.

    XLA:CPU allocates the intermediate results of each step anew, hundreds of MB, and glibc returns
    so large arrays to the system: a quarter of a step would be page faults. Only the main thread's
    memory can be kept whole, so this thread runs the steps itself. Call it before anything uses a
    device, after `initialize`.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # of programs on a single device
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt and jax.default_backend() == "cpu":
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


# --- agreement ----------------------------------------------------------------------------------


@contextlib.contextmanager
def first_process_first(name: str) -> Iterator[None]:
    """Run the block on process 0 before the others, which then see the files that it wrote."""
    if jax.process_index():
        multihost_utils.sync_global_devices(name)
    yield
    if not jax.process_index():
        multihost_utils.sync_global_devices(name)


class Signals:
    """Signal handlers of a run: SIGTERM and Ctrl-C request a stop, SIGUSR1 a profiler trace.

    A second Ctrl-C interrupts at once. SIGINT stays ignored where it was: a background job of a
    shell is stopped by SIGTERM. Handlers are restored at the end of the `with`.

    Attributes:
      stop: this process was asked to stop.
      trace: a trace was requested; reset it when the trace starts.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self):
        self.stop = self.trace = False
        self._pending: jax.Array | None = None
        self._count_stops = _device_sum() if jax.process_count() > 1 else None

    def __enter__(self) -> Signals:
        ignores_interrupts = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        self._previous = {
            number: signal.signal(number, self._handle)
            for number in self.NUMBERS
            if not (number == signal.SIGINT and ignores_interrupts)
        }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _) -> None:
        if number == signal.SIGUSR1:
            self.trace = True
            return
        self.stop = True
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    def stop_requested(self) -> bool:
        """Whether any host was asked to stop; the same answer on all. Call it after each step.

        On several hosts the answer is that of the previous call: the devices sum the requests
        between two steps, so that no host waits for them.
        """
        if self._count_stops is None:
            return self.stop
        previous, self._pending = self._pending, self._count_stops(self.stop)
        return previous is not None and int(previous) > 0


def _device_sum() -> Callable[[bool], jax.Array]:
    """A function that sums a flag over the devices of all hosts, asynchronously."""
    mesh = Mesh(np.asarray(jax.devices()), ("all",))
    split = NamedSharding(mesh, PartitionSpec("all"))
    total = jax.jit(
        lambda flags_D: flags_D.sum(), out_shardings=NamedSharding(mesh, PartitionSpec())
    )

    def count(flag: bool) -> jax.Array:
        flags_D = np.full(jax.local_device_count(), flag, np.int32)
        return total(jax.make_array_from_process_local_data(split, flags_D))

    return count


# --- the end of a process -----------------------------------------------------------------------


def is_host_loss(error: BaseException) -> bool:
    """Whether the end of another process explains an error; never with a single process."""
    if isinstance(error, HostLostError):
        return True
    return _has_other_processes() and bool(_SIGNS_OF_LOSS.search(f"{error}"))


def _has_other_processes() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


# (exit code, last lines) for `_exit_cleanly_on_abort`: the last entry counts.
_endings: list[tuple[int, tuple[str, ...]]] = []


def exit_now(code: int, *lines: str) -> NoReturn:
    """End this process with some last lines, without waiting for other processes.

    Python's normal exit would wait for threads and processes that may never answer. Unless the code
    is `LOST`, the others get `SHUTDOWN_SECONDS` to end with their own message.
    """
    _endings.append((code, lines))
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    if code != LOST and jax.distributed.is_initialized():
        shutdown = threading.Thread(target=_shut_down, daemon=True)
        shutdown.start()
        shutdown.join(SHUTDOWN_SECONDS)
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


def _lost_lines(command: str, reason: str) -> tuple[str, str]:
    return f"{command.split()[2]}: {reason}", resume_line(command)


def exit_host_lost(command: str, reason: str) -> NoReturn:
    """End this process because another one was lost."""
    exit_now(LOST, *_lost_lines(command, f"another process was lost: {reason}"))


def exit_with_error(
    command: str, error: BaseException, code: int | None = None, *more: str
) -> NoReturn:
    """End a command with an error message.

    Args:
      command: command line that resumes the run.
      error: printed; if the loss of another host explains it, the exit code is `LOST`.
      code: exit code otherwise; None: 2 for a ConfigError, else 1.
      more: further lines to print.
    """
    name = command.split()[2]
    if code is None:
        code = 2 if isinstance(error, ConfigError) else 1
    if isinstance(error, HostLostError):
        exit_now(LOST, f"{name}: {error}", resume_line(command))
    if is_host_loss(error):
        exit_host_lost(command, first_line(error))
    lines = (f"{name}: {error}", *more)
    if _has_other_processes():
        exit_now(code, *lines)
    if code == 1:
        sys.exit("\n".join(lines))
    _write_lines(lines)
    sys.exit(code)


# C handlers of SIGABRT: Python must keep a reference, as C does not.
_handlers: list = []


def _exit_cleanly_on_abort() -> None:
    """Print the last of `_endings` when JAX aborts this process.

    JAX does so from a thread of its own when the coordination service reports a lost process.
    Python's signal handlers would never run; this C handler runs on the aborting thread.
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
    """End the process with code `LOST` if it makes no progress; use it in a `with`.

    Args:
      seconds: longest time between two calls of `beat`; 0: no limit.
      command: command line that resumes the run.
    """

    def __init__(self, seconds: float, command: str):
        self._seconds, self._command = seconds, command
        self._last_beat: float | None = None
        self._activity = ""
        self._stop = threading.Event()

    def beat(self, activity: str) -> None:
        """Report progress; `activity` is what happens next. The first call starts the clock."""
        self._activity, self._last_beat = activity, time.monotonic()

    def __enter__(self) -> Watchdog:
        if self._seconds:
            threading.Thread(target=self._watch, name="ba_jax-watchdog", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._seconds / 4)):
            if self._last_beat is None or time.monotonic() - self._last_beat < self._seconds:
                continue
            faulthandler.dump_traceback(all_threads=True)
            reason = (
                f"{self._activity} took longer than {self._seconds:g} s "
                "(train.step_timeout_seconds)"
            )
            exit_now(LOST, *_lost_lines(self._command, reason))
