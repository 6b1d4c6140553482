"""Writers of a run's metrics: CSV, TensorBoard event files, pictures and audio, the console.

workdir/metrics.csv     results of the computation: equal runs write the same bytes
workdir/timings.csv     measurements of time
workdir/tensorboard/    both, pictures and audio
workdir/pictures/<step>/<name>.png, .wav
"""

from __future__ import annotations

import collections
import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ba_jax.audio import check_wave, write_audio
from ba_jax.files import with_path, write_whole
from ba_jax.metrics import pictures

CSV_HEADER = "step,name,value\n"


def _check_step(step: int, names: Iterable[str] = ()) -> int:
    """Check a step and names of its values; return the step as a plain integer."""
    if isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 0:
        raise ValueError(f"step {step!r}: expected an integer >= 0")
    for name in names:
        if re.search(r'[,"\\\r\n\0]', name) or {"", ".", ".."} & set(name.split("/")):
            raise ValueError(
                f"metric name {name!r}: expected words joined by '/', without commas, quotes,"
                " backslashes or line ends"
            )
    return int(step)


def _to_float(name: str, value: Any) -> float:
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind in "cOSU":
        raise ValueError(f"metric {name} is {array.dtype}{array.shape}: expected one real number")
    return float(array)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in errors of the system."""
    try:
        yield
    except OSError as error:
        raise with_path(error, path) from error


def parse_csv(text: str, path: Path) -> Iterator[tuple[int, str, float]]:
    """Yield step, name and value of the lines of a metrics file, without a cut-off last line.

    Raises:
      ValueError: names the malformed line of `path`.
    """
    for number, line in enumerate(text.split("\n")[:-1], 1):
        if number == 1 and f"{line}\n" == CSV_HEADER:
            continue
        try:
            step, name, value = line.split(",")
            yield int(step), name, float(value)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: {line!r}, expected {CSV_HEADER.strip()}"
            ) from error


class CSVFile:
    """Lines `step,name,value`, values as their `repr`, without loss of digits.

    Opening the file removes lines after `resume_step` (None: all lines): a run that was killed
    after its last checkpoint logs those steps again. A last line without its end, cut off by the
    kill, is removed too.

    Raises:
      ValueError: the file holds something else.
    """

    def __init__(self, path: Path, resume_step: int | None):
        self._path = path
        self._last: dict[str, tuple[int, float]] = {}
        kept = [CSV_HEADER]
        if resume_step is not None and path.exists():
            for step, name, value in parse_csv(path.read_text(encoding="utf-8"), path):
                if step <= resume_step:
                    kept.append(f"{step},{name},{value!r}\n")
                    self._last[name] = step, value
        write_whole(path, "".join(kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append and flush. The same value again is not written twice.

        Raises:
          ValueError: the file holds another value of this step and name, or one of a later step.
          OSError: names the file.
        """
        lines = []
        for name, value in values.items():
            last, before = self._last.get(name, (-1, 0.0))
            if step == last and repr(value) == repr(before):
                continue
            if step <= last:
                raise ValueError(
                    f"{self._path}: {name} = {value!r} of step {step}, but it holds {before!r} of"
                    f" step {last}"
                )
            lines.append(f"{step},{name},{value!r}\n")
        if not lines:
            return
        with _naming(self._path), open(self._path, "a", encoding="utf-8") as stream:
            stream.write("".join(lines))
        self._last.update({name: (step, value) for name, value in values.items()})


class EventFile:
    """A TensorBoard event file, written synchronously, so that errors reach the caller.

    Records and messages are those of the package `tensorboard`, whose event writer and that of
    tensorboardX hide errors in a thread.

    Args:
      path: path of the file.
      purge_step: TensorBoard ignores values of earlier files from this step on.
    """

    def __init__(self, path: Path, purge_step: int | None = None):
        from tensorboard.compat.proto import event_pb2

        self._path = path
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = open(path, "wb")
        self._write(event_pb2.Event(file_version="brain.Event:2"))
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(step=purge_step, session_log=start))

    def _write(self, event: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        event.wall_time = time.time()
        records = RecordWriter(self._stream)
        with _naming(self._path):
            records.write(event.SerializeToString())
            records.flush()

    def write(self, step: int, values: Iterable[Mapping[str, Any]]) -> None:
        """Write the values of a step, each with the fields of a `Summary.Value`."""
        from tensorboard.compat.proto import event_pb2, summary_pb2

        summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(**v) for v in values])
        self._write(event_pb2.Event(step=step, summary=summary))

    def close(self) -> None:
        with _naming(self._path):
            self._stream.close()


class Writers:
    """Files of a run; see the module's docstring.

    Args:
      workdir: created if missing.
      resume_step: step of the restored state; metrics of later steps are removed. None: a new run,
        all are removed. Write a step's metrics before its checkpoint, or they are lost if the run
        is killed in between.
      is_writer: False on all processes but one: they check values and write nothing.

    Raises:
      ValueError: an invalid step, name or value, or a value that differs from the written one.
      OSError: names the file, for example on a full disk.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        resume_step: int | None = None,
        *,
        is_writer: bool = True,
    ):
        resume_step = None if resume_step is None else _check_step(resume_step)
        self._workdir = Path(workdir)
        self._is_writer = is_writer
        if not is_writer:
            return
        self._metrics = CSVFile(self._workdir / "metrics.csv", resume_step)
        self._timings = CSVFile(self._workdir / "timings.csv", resume_step)
        # TensorBoard reads a folder's files in the order of their names.
        name = f"events.out.tfevents.{time.time_ns():020d}"
        self._events = EventFile(
            self._workdir / "tensorboard" / name, 0 if resume_step is None else resume_step + 1
        )

    def write(
        self, step: int, metrics: Mapping[str, Any], timings: Mapping[str, Any] | None = None
    ) -> None:
        """Write metrics of a step, and `timings`, which differ between equal runs."""
        groups = []
        for group in (metrics, timings or {}):
            step = _check_step(step, group)
            groups.append({name: _to_float(name, value) for name, value in group.items()})
        if double := sorted(groups[0].keys() & groups[1].keys()):
            raise ValueError(f"{double}: both among the metrics and the timings")
        if not self._is_writer:
            return
        self._metrics.write(step, groups[0])
        self._timings.write(step, groups[1])
        values = (groups[0] | groups[1]).items()
        self._events.write(step, [{"tag": k, "simple_value": v} for k, v in values])

    def picture(self, step: int, name: str, mel_TM: np.ndarray) -> None:
        """Write a mel as `pictures.draw_mel` draws it."""
        pixels = pictures.draw_mel(mel_TM)
        png = pictures.encode_png(pixels)
        height, width, _ = pixels.shape
        image = {"height": height, "width": width, "colorspace": 3, "encoded_image_string": png}
        self._write_file(step, name, ".png", png, image=image)

    def audio(self, step: int, name: str, wave_S: np.ndarray, rate: int) -> None:
        """Write a mono waveform, full scale +-1 (clipped), as 16-bit WAV.

        Raises:
          AudioError: a waveform that is empty, not floating, not (S,), or not finite.
        """
        wave = check_wave(wave_S, name=name)
        stream = io.BytesIO()
        write_audio(stream, wave, rate, "wav")
        audio = {
            "sample_rate": rate,
            "num_channels": 1,
            "length_frames": len(wave),
            "encoded_audio_string": stream.getvalue(),
            "content_type": "audio/wav",
        }
        self._write_file(step, name, ".wav", stream.getvalue(), audio=audio)

    def _write_file(self, step: int, name: str, suffix: str, content: bytes, **value: Any) -> None:
        step = _check_step(step, [name])
        if self._is_writer:
            write_whole(self._workdir / "pictures" / str(step) / (name + suffix), content)
            self._events.write(step, [{"tag": name, **value}])

    def close(self) -> None:
        if self._is_writer:
            self._events.close()


class ProgressBar:
    """Step, figures and remaining time: a bar on a terminal, else occasional lines.

    Figures stay until they are updated. The remaining time is estimated from the last 100 updates,
    so that compilation does not count for long; it needs two updates.

    Args:
      total: steps of the run.
      start: steps done already.
      every: seconds between two lines if `stream` is no terminal; the last step always has a line.
      shown: is_writer of `Writers`: False prints nothing.
      stream: default stdout.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        *,
        every: float = 10.0,
        shown: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        import tqdm

        self._tqdm = tqdm.tqdm
        self._stream = sys.stdout if stream is None else stream
        self._total, self._step, self._shown = total, start, shown
        self._every, self._clock = every, clock
        self._next_line = clock()
        self._times: collections.deque[tuple[int, float]] = collections.deque(maxlen=101)
        self._figures: dict[str, str] = {}
        is_terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._bar = None
        if shown and is_terminal:
            layout = "{n_fmt}/{total_fmt} |{bar}|{postfix}"
            self._bar = tqdm.tqdm(
                total=total, initial=start, file=self._stream, bar_format=layout, dynamic_ncols=True
            )

    def _remaining(self) -> str:
        (first, then), (last, now) = self._times[0], self._times[-1]
        if last <= first:
            return "?"
        seconds = (now - then) / (last - first) * (self._total - last)
        return self._tqdm.format_interval(round(seconds))

    def update(self, step: int, figures: Mapping[str, float] | None = None) -> None:
        """Show that `step` steps are done, and `figures` by name: {"loss": ...}."""
        now = self._clock()
        self._times.append((step, now))
        for name, value in (figures or {}).items():
            self._figures[name] = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        if not self._shown:
            return
        text = ", ".join(f"{name} {value}" for name, value in self._figures.items())
        text = f"{text}, {self._remaining()} to go" if text else f"{self._remaining()} to go"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif now >= self._next_line or step >= self._total:
            self._next_line = now + self._every
            self.print(f"step {step}/{self._total}: {text}")

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        if self._shown:
            self._tqdm.write(text, file=self._stream)
            self._stream.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
