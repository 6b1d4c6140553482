"""Files of a run: exact values, one value a step after a resume, errors that name the file."""

from __future__ import annotations

import io
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image

from ba_jax import files
from ba_jax.metrics.pictures import draw_mel
from ba_jax.metrics.writers import CSVFile, EventFile, ProgressBar, Writers

ROOT = pathlib.Path(__file__).resolve().parents[3]


def lines(workdir, name: str = "metrics.csv") -> list[str]:
    return (workdir / name).read_text().splitlines()


def events(workdir):
    """Events as TensorBoard reads them, restarts taken into account."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(workdir / "tensorboard"))
    accumulator.Reload()
    return accumulator


def loss(step: int) -> float:
    return math.exp(-step / 7)


def train(workdir, first: int, last: int, resume_step: int | None = None) -> None:
    writers = Writers(workdir, resume_step)
    for step in range(first, last + 1):
        writers.write(step, {"loss": np.float32(loss(step)), "norm": loss(step)}, {"seconds": 0.5})
        if step % 2 == 0:
            writers.write(step, {"eval/wer": 1 / (step + 3)})
    writers.close()


# --- CSV ----------------------------------------------------------------------------------------


def test_csv_holds_every_digit(tmp_path):
    writers = Writers(tmp_path)
    values = {"a": 0.1, "b/c": np.float32(0.1), "d": 3, "e": math.inf, "f": np.array(1e-30)}
    writers.write(7, values, {"throughput/mfu": 0.25})
    expected = ["7,a,0.1", "7,b/c,0.10000000149011612", "7,d,3.0", "7,e,inf", "7,f,1e-30"]
    assert lines(tmp_path) == ["step,name,value", *expected]  # before close: flushed
    assert lines(tmp_path, "timings.csv") == ["step,name,value", "7,throughput/mfu,0.25"]


def test_jax_values_are_taken(tmp_path):
    import jax.numpy as jnp

    Writers(tmp_path).write(1, {"loss": jnp.float32(0.5), "count": jnp.int32(3)})
    assert lines(tmp_path)[1:] == ["1,loss,0.5", "1,count,3.0"]


def test_two_equal_runs_give_equal_files(tmp_path):
    train(tmp_path / "a", 1, 9)
    train(tmp_path / "b", 1, 9)
    first, second = (tmp_path / run / "metrics.csv" for run in "ab")
    assert first.read_bytes() == second.read_bytes() and first.stat().st_size > 300


@pytest.mark.parametrize("resume_step", [0, 3, 4, 8])
def test_a_killed_and_resumed_run_gives_the_file_of_one_that_was_not(tmp_path, resume_step):
    train(tmp_path / "whole", 1, 9)
    train(tmp_path / "killed", 1, 8)
    train(tmp_path / "killed", resume_step + 1, 9, resume_step)
    for name in ("metrics.csv", "timings.csv"):
        whole, killed = (tmp_path / run / name for run in ("whole", "killed"))
        assert killed.read_bytes() == whole.read_bytes()


def test_a_line_cut_short_by_the_kill_is_taken_out(tmp_path):
    train(tmp_path, 1, 3)
    whole = (tmp_path / "metrics.csv").read_bytes()
    (tmp_path / "metrics.csv").write_bytes(whole + b"4,loss,0.5647")  # of 0.56471812...
    Writers(tmp_path, 4)
    assert (tmp_path / "metrics.csv").read_bytes() == whole


def test_a_run_that_begins_keeps_nothing(tmp_path):
    train(tmp_path, 0, 5)
    Writers(tmp_path)
    assert lines(tmp_path) == ["step,name,value"]


def test_a_damaged_file_is_named_and_left_alone(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,name,value\n1,loss,0.5\nhello\n2,loss,0.4\n")
    with pytest.raises(ValueError, match=r"metrics\.csv, line 3: 'hello', expected step,name"):
        Writers(tmp_path, 2)
    assert "hello" in path.read_text()


def test_a_step_has_one_value(tmp_path):
    writers = Writers(tmp_path)
    writers.write(5, {"loss": 0.5, "nan": math.nan})
    writers.write(5, {"loss": 0.5, "nan": math.nan})  # as a resumed run computes it again
    assert lines(tmp_path)[1:] == ["5,loss,0.5", "5,nan,nan"]
    with pytest.raises(ValueError, match=r"loss = 0\.25 of step 5, but it holds 0\.5 of step 5"):
        writers.write(5, {"loss": 0.25})
    with pytest.raises(ValueError, match="of step 4, but it holds 0.5 of step 5"):
        writers.write(4, {"loss": 0.5})
    with pytest.raises(ValueError, match="0.25 of step 5, but it holds 0.5"):
        Writers(tmp_path, 5).write(5, {"loss": 0.25})


@pytest.mark.parametrize(
    ("step", "metrics", "message"),
    [
        (-1, {}, "step -1: expected"),
        (1.0, {}, "step 1.0: expected"),
        (1, {"a,b": 1.0}, "metric name 'a,b'"),
        (1, {"a\nb": 1.0}, "metric name"),
        (1, {"../a": 1.0}, "metric name '../a'"),
        (1, {"": 1.0}, "metric name ''"),
        (1, {"loss": np.zeros(2)}, r"metric loss is float64\(2,\)"),
        (1, {"loss": "0.5"}, "metric loss is"),
        (1, {"loss": None}, "metric loss is"),
    ],
)
@pytest.mark.parametrize("is_writer", [True, False])
def test_bad_steps_names_and_values_are_refused(tmp_path, step, metrics, message, is_writer):
    with pytest.raises(ValueError, match=message):
        Writers(tmp_path, is_writer=is_writer).write(step, metrics)


def test_a_name_is_either_a_metric_or_a_timing(tmp_path):
    with pytest.raises(ValueError, match="both among"):
        Writers(tmp_path).write(1, {"loss": 1.0}, {"loss": 1.0})


def test_other_processes_write_nothing(tmp_path):
    writers = Writers(tmp_path / "run", is_writer=False)
    writers.write(1, {"loss": 1.0})
    writers.picture(1, "mel", np.zeros((4, 80)))
    writers.audio(1, "wave", np.zeros(100, np.float32), 16000)
    writers.close()
    assert not (tmp_path / "run").exists()


# --- a full disk --------------------------------------------------------------------------------


def test_full_disk_names_the_csv(tmp_path):
    writers = Writers(tmp_path)
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*metrics\.csv"):
        writers.write(1, {"loss": 1.0})


def test_full_disk_names_the_event_file(tmp_path):
    path = tmp_path / "events.out.tfevents.1"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*events\.out\.tfevents\.1"):
        EventFile(path)


def test_full_disk_while_replacing_leaves_the_file(tmp_path, monkeypatch):
    train(tmp_path, 1, 3)
    before = (tmp_path / "metrics.csv").read_bytes()
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "00")
    partial = tmp_path / ".metrics.csv.00.partial"
    partial.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*metrics\.csv"):
        CSVFile(tmp_path / "metrics.csv", 2)
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert not os.path.lexists(partial)


# --- TensorBoard and pictures -------------------------------------------------------------------


def test_tensorboard_reads_what_was_written(tmp_path):
    writers = Writers(tmp_path)
    writers.write(3, {"loss": 0.5, "eval/wer": 0.25}, {"throughput/mfu": 0.125})
    mel_TM = np.random.default_rng(0).normal(size=(20, 80))
    wave_S = np.sin(np.arange(4800) / 10).astype(np.float32) / 2
    writers.picture(3, "mel/test-1", mel_TM)
    writers.audio(3, "audio/test-1", wave_S, 24000)
    read = events(tmp_path)  # before close: flushed
    assert sorted(read.Tags()["scalars"]) == ["eval/wer", "loss", "throughput/mfu"]
    (scalar,) = read.Scalars("loss")
    assert (scalar.step, scalar.value) == (3, 0.5)
    (image,) = read.Images("mel/test-1")
    png = (tmp_path / "pictures/3/mel/test-1.png").read_bytes()
    assert image.encoded_image_string == png and (image.width, image.height) == (40, 160)
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(png)).convert("RGB")), draw_mel(mel_TM)
    )
    (audio,) = read.Audio("audio/test-1")
    wav = (tmp_path / "pictures/3/audio/test-1.wav").read_bytes()
    assert audio.encoded_audio_string == wav and audio.length_frames == 4800
    heard, rate = soundfile.read(io.BytesIO(wav))
    assert rate == 24000
    np.testing.assert_allclose(heard, wave_S, atol=1 / 32768)
    writers.close()


def test_tensorboard_drops_what_a_resumed_run_computes_again(tmp_path):
    train(tmp_path, 1, 8)
    train(tmp_path, 6, 10, resume_step=5)
    assert [event.step for event in events(tmp_path).Scalars("loss")] == list(range(1, 11))
    train(tmp_path, 1, 2)  # from the beginning
    assert [event.step for event in events(tmp_path).Scalars("loss")] == [1, 2]


def test_a_picture_of_the_same_step_is_replaced(tmp_path):
    writers = Writers(tmp_path)
    for level in (0.0, 1.0):
        writers.audio(2, "a", np.full(10, level / 2, np.float32), 16000)
    assert soundfile.read(tmp_path / "pictures/2/a.wav")[0][0] == 0.5
    assert os.listdir(tmp_path / "pictures/2") == ["a.wav"]


def test_bad_audio_is_refused(tmp_path):
    with pytest.raises(ValueError, match="noise"):
        Writers(tmp_path).audio(1, "noise", np.array([0.0, np.nan], np.float32), 16000)


def test_neither_torch_nor_tensorflow_is_loaded(tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from ba_jax.metrics.writers import Writers\n"
        f"writers = Writers({str(tmp_path)!r})\n"
        "writers.write(1, {'loss': 1.0})\n"
        "writers.picture(1, 'mel', np.zeros((4, 80)))\n"
        "print([m for m in ('torch', 'tensorflow', 'jax') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- progress -----------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_lines_without_a_terminal():
    stream, clock = io.StringIO(), Clock()
    progress = ProgressBar(60, every=10.0, stream=stream, clock=clock)
    for step in range(1, 61):
        clock.now += 30.0 if step == 1 else 1.0  # compilation
        progress.update(step, {"loss": 1 / step, "tokens/s": 12345.6} if step % 2 else None)
    progress.close()
    printed = stream.getvalue().splitlines()
    assert printed[0] == "step 1/60: loss 1, tokens/s 12,346, ? to go"
    assert printed[1] == "step 11/60: loss 0.09091, tokens/s 12,346, 00:49 to go"
    assert [line.split("/")[0] for line in printed] == [
        f"step {s}" for s in (1, 11, 21, 31, 41, 51, 60)
    ]
    assert printed[-1].endswith("00:00 to go")


def test_progress_bar_on_a_terminal():
    stream = Terminal()
    progress = ProgressBar(50, 10, stream=stream)
    progress.update(11, {"loss": 0.5})
    progress.print("evaluation: wer 0.1")
    progress.update(50, {"loss": 0.25})
    progress.close()
    printed = stream.getvalue()
    assert all(text in printed for text in ("10/50", "50/50", "loss 0.25", "to go"))
    assert "evaluation: wer 0.1\n" in printed


def test_progress_of_other_processes_is_silent():
    for stream in (io.StringIO(), Terminal()):
        progress = ProgressBar(5, shown=False, stream=stream)
        progress.update(5, {"loss": 1.0})
        progress.print("text")
        progress.close()
        assert stream.getvalue() == ""
