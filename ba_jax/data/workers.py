"""Watch over the loader's worker processes, and over their parent."""

from __future__ import annotations

import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import tempfile
import threading


class WorkerWatch:
    """Finds workers that ended: Grain takes a worker that ends with exit code 0 for a working one.

    Attributes:
      initializer: to be called at the start of each worker; it leaves the process id in a folder.
    """

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="ba_jax-loader-")
        self.initializer = _Initializer(self._folder.name)

    def find_dead(self) -> list[int]:
        """Process ids of workers that have ended."""
        multiprocessing.active_children()  # reaps
        return sorted(pid for pid in map(int, os.listdir(self._folder.name)) if not _is_alive(pid))

    def close(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()


@dataclasses.dataclass(frozen=True)
class _Initializer:
    """Prepares a worker process: it ends with its parent and leaves signals to it.

    Grain leaves workers behind when the training process is killed. A signal to the whole group, as
    SLURM sends it, is for the training process, which needs batches until all hosts stop.
    """

    folder: str

    def __call__(self, *_) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        pathlib.Path(self.folder, str(os.getpid())).touch()
        threading.Thread(target=self._end_with_parent, name="ba_jax-parent", daemon=True).start()

    def _end_with_parent(self) -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
