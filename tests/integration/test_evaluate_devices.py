"""The same evaluation on one device, on eight, in two processes, and after a kill."""

from __future__ import annotations

import json
import pathlib

import pytest

from ba_jax.distributed import LOST
from ba_jax.evals.judges import recogniser
from ba_jax.evals.results import evaluate
from tests.integration import evaluate_driver
from tests.processes import free_port
from tests.unit.evals import small_bench

SUITES = ["asr", "codec"]
EIGHT = {"JAX_NUM_CPU_DEVICES": "8"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    changes = {"limit": 2, "save_every": 2, "encode_rows": 8}
    config = small_bench.tiny(**changes)
    for name in ("generation", "synthesis"):
        config["eval"][name]["rows"] = 8
    return config


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return small_bench.write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def single(config, checkpoints, tmp_path_factory):
    """Folder of an evaluation on a single device."""
    out = tmp_path_factory.mktemp("single") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recogniser, "SpeechJudge", small_bench.LengthJudge)
        evaluate(config, checkpoints, out, SUITES)
    return out


def assert_same(first: pathlib.Path, second: pathlib.Path, suites: list[str]) -> None:
    """Texts and codes are equal, mel errors up to rounding."""
    for suite in suites:
        lines = [
            [json.loads(line) for line in path.read_text().splitlines()[1:]]
            for path in (folder / "generations" / f"{suite}.jsonl" for folder in (first, second))
        ]
        assert [line["id"] for line in lines[0]] == [line["id"] for line in lines[1]]
        for line, other in zip(*lines, strict=True):
            for count, (total, frames) in line.pop("mel_error", {}).items():
                assert other["mel_error"][count] == [pytest.approx(total, rel=1e-4), frames]
            other.pop("mel_error", None)
            assert line == other
    figures, other = (
        json.loads((folder / "figures.json").read_text()) for folder in (first, second)
    )
    for name in ("asr_wer", "asr_wer_ci95", "asr_items", "asr_failed"):
        assert figures[name] == other[name]


def flags(checkpoints, suites=SUITES):
    return (f"--checkpoint={','.join(checkpoints)}", f"--suite={','.join(suites)}")


def test_on_eight_devices(config, checkpoints, single, tmp_path):
    meshed = {**config, "mesh": {"replica": 2, "fsdp": 2, "tensor": 2}}
    done = evaluate_driver.start(meshed, tmp_path / "out", *flags(checkpoints), **EIGHT)()
    assert done.returncode == 0, done.stderr
    assert_same(single, tmp_path / "out", SUITES)


def two_processes(config, out, *flags, kill_after=0, devices=2):
    """Run two processes; the first is killed after `kill_after` batches."""
    shared = ("--distributed", f"--coordinator=127.0.0.1:{free_port()}", "--processes=2")
    waits = [
        evaluate_driver.start(
            config,
            out,
            *flags,
            *shared,
            f"--process={number}",
            kill_after=0 if number else kill_after,
            JAX_NUM_CPU_DEVICES=str(devices),
        )
        for number in range(2)
    ]
    return [wait() for wait in waits]


@pytest.mark.deep
def test_two_processes_of_two_devices_each(config, checkpoints, single, tmp_path):
    """Killed in the middle; the saved lines are not generated again."""
    meshed = {**config, "mesh": {"replica": 1, "fsdp": 2}}
    arguments = meshed, tmp_path / "out", *flags(checkpoints, ["asr"])
    # The first is killed after a batch; JAX ends the other.
    first, second = two_processes(*arguments, kill_after=1)
    assert first.returncode == -9 and second.returncode == LOST, second.stderr
    assert second.stderr.splitlines()[-1].startswith("to resume: python -m ba_jax.evaluate ")
    part = tmp_path / "out" / "hosts" / "0" / "generations" / "asr.jsonl"
    assert len(part.read_text().splitlines()) == 1 + 2
    first, second = two_processes(*arguments)
    assert "asr recognising: 2\n" in first.stdout  # of its four items
    for number, done in enumerate((first, second)):
        assert done.returncode == 0, done.stderr
        assert ("asr_wer" in done.stdout) == (number == 0)
    assert_same(single, tmp_path / "out", ["asr"])


@pytest.mark.deep
def test_two_processes_that_share_a_mesh(config, checkpoints, single, tmp_path):
    """Each has half of every large parameter; both run every item, and the first writes."""
    meshed = {**config, "hosts": "together", "mesh": {"replica": 1, "fsdp": 2}}
    out = tmp_path / "out"
    both = two_processes(meshed, out, *flags(checkpoints, ["asr"]), devices=1)
    for number, done in enumerate(both):
        assert done.returncode == 0, done.stderr
        assert "asr recognising: 8\n" in done.stdout
        assert ("asr_wer" in done.stdout) == (number == 0)
    assert_same(single, out, ["asr"])


@pytest.mark.deep
def test_killed_in_the_middle(config, checkpoints, single, tmp_path):
    out = tmp_path / "out"
    done = evaluate_driver.start(config, out, *flags(checkpoints, ["asr"]), kill_after=2)()
    assert done.returncode == -9
    part = out / "hosts" / "0" / "generations" / "asr.jsonl"
    before = part.read_text().splitlines()
    assert len(before) == 1 + 2 * 2
    # Saved lines are used unchanged.
    marked = [before[0], *(line.replace('"text":"', '"text":"KEPT ') for line in before[1:])]
    part.write_text("".join(f"{line}\n" for line in marked))
    done = evaluate_driver.start(config, out, *flags(checkpoints, ["asr"]))()
    assert done.returncode == 0, done.stderr
    items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    assert [item["hypothesis"].startswith("KEPT") for item in items] == [True] * 4 + [False] * 4
    whole = [json.loads(line) for line in (single / "items.jsonl").read_text().splitlines()]
    assert items[4:] == [
        {**item, "audio": resumed["audio"]}
        for item, resumed in zip(whole[4:8], items[4:], strict=True)
    ]
