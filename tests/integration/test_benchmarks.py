"""`python -m benchmarks.NAME`: components, data, generate and train_step, end to end and small."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import cases, components, generate, train_step

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(name: str, folder: pathlib.Path, *options: str) -> tuple[list[dict], str]:
    """Run a benchmark in a process of its own; return its rows and what it prints."""
    out = folder / "numbers.json"
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options, f"--json={out}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())["rows"], done.stdout


@pytest.mark.deep
@pytest.mark.slow
def test_every_component_is_compared_and_agrees(tmp_path, capsys):
    out = tmp_path / "numbers.json"
    # All CPUs: with fewer the process, here pytest, would restart itself.
    threads = str(len(os.sched_getaffinity(0)))
    options = ["--size", "toy", "--seconds", "0", "--threads", threads, "--json", str(out)]
    components.main(options)
    numbers = json.loads(out.read_text())
    rows = numbers["rows"]
    table = capsys.readouterr().out
    assert len(rows) == 13
    for row in rows:
        assert row["component"] in table
        assert row["baseline_ms"] > 0 and row["ours_ms"] > 0 and row["ratio"] > 0
        # Codes and tokens are equal, floats agree to rounding.
        assert row["difference"] < 1e-4, row["component"]
    assert numbers["environment"]["threads"] == int(threads)


@pytest.mark.deep
@pytest.mark.slow
def test_loading_is_compared(tmp_path):
    options = ["--recordings", "16", "--codes", "40", "--seconds", "0"]
    rows, table = run("data", tmp_path, *options)
    assert [(row["files"], row["against"]) for row in rows] == [
        ("as stored", "torchaudio"),
        ("as stored", "HF datasets"),
        ("FLAC", "torchaudio"),
        ("FLAC", "HF datasets"),
        ("codes", "npy files"),
    ]
    for row in rows:
        assert row["ratio"] > 0 and row["ours_tokens_per_second"] > 0
        assert f"{row['ours_audio_seconds_per_second']:,.0f}" in table


@pytest.mark.deep
@pytest.mark.slow
def test_generation_is_compared_and_agrees(tmp_path):
    """On a single CPU, to which the benchmark restarts itself: torch's threads cannot spin."""
    options = ["--size", "toy", "--seconds", "0", "--synthesis", "none", "--threads", "1"]
    options.append("--stacked")
    rows, table = run("generate", tmp_path, *options)
    assert [row["unit"] for row in rows] == ["ids"] * 5 + ["frames"] * 5 + ["s"]
    for row in rows:
        assert row["what"] in table
        assert row["baseline_seconds"] > 0 and row["our_seconds"] > 0 and row["ratio"] > 0
        assert row["difference"] == 0, row["what"]  # the same ids and codes
        assert (row["real_time"] is not None) == (row["unit"] == "frames")
    assert "generation alone" in rows[-1]["what"]


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.parametrize("step", train_step.CONFIGS)
def test_training_steps_train_the_same_sizes(step, tmp_path):
    """In a process of its own: it changes how memory is kept."""
    options = [f"--only={step}", "--rows=2", "--seconds=0", "--threads=1"]
    ((row,), _) = run("train_step", tmp_path, *options)
    ours, theirs = row["values"]
    assert abs(ours - theirs) < 0.01 * ours
    assert row["ratio"] > 0 and row["gflops"] > 0


def test_cases_that_disagree_in_shape_are_refused():
    with pytest.raises(ValueError, match="disagree in shape"):
        cases.difference([1.0, 2.0], [1.0])


def test_difference_is_relative_to_the_peak_or_a_share():
    assert cases.difference([1.0, 3.9], [1.0, 4.0]) == pytest.approx(0.025)
    assert cases.difference([1, 2, 3, 4], [1, 2, 3, 5]) == 0.25


@pytest.mark.parametrize("arguments", [["--only", "hed"], ["--threads", "0"]])
def test_bad_arguments_are_named(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        components.parse(arguments)
    assert stopped.value.code == 2
    assert arguments[1].strip() in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--only", "speech"], ["--settings", "[1]"]])
def test_bad_arguments_of_training_steps_are_named(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        train_step.main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--size", "huge"], ["--threads", "0"]])
def test_bad_arguments_of_generation_are_named(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        generate.parse(arguments)
    assert stopped.value.code == 2
    assert arguments[1] in capsys.readouterr().err


def test_one_thread_restarts_the_interpreter_confined(tmp_path):
    code = (
        "import os, sys\n"
        "from benchmarks import timing\n"
        "timing.pin_threads(1)\n"
        "print(len(os.sched_getaffinity(0)), sys.argv[1:])"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), "--flag"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "1 ['--flag']", done.stderr
