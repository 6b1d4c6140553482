"""`python -m ba_jax.corpora.tokenize`: command line, several devices and processes, Ctrl-C."""

from __future__ import annotations

import pathlib
import signal
import sys

import jax
import pytest

from ba_jax.config import from_mapping
from ba_jax.data.record import RecordSource
from ba_jax.models.baichuan_audio import BaichuanAudioConfig, init_variables
from configs import models
from tests.processes import finish, free_port, run_here, start, wait_for
from tests.unit.checkpoints.small_checkpoint import save_variables
from tests.unit.data import small_corpus

SMALL = {"audio_encoder.width": 16, "audio_encoder.layers": 1, "audio_encoder.ffn_width": 32}
FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """`in`, a dataset, and `weights`, of the nano model with a small encoder."""
    folder = tmp_path_factory.mktemp("tokenize")
    small_corpus.write_dataset(folder / "in", small_corpus.records(1))
    config = models.get_config("nano")
    config.audio_encoder.update(width=16, layers=1, ffn_width=32)
    config.vq_bridge.width = 16
    sizes = from_mapping(BaichuanAudioConfig, config).only("audio_encoder", "vq_bridge")
    initialise = jax.jit(lambda key: init_variables(sizes, key))
    save_variables(folder / "weights", initialise(jax.random.key(0)))
    return folder


def command(folder: pathlib.Path, out: pathlib.Path, *more: str) -> list[str]:
    sizes = [f"--config.model.{name}={value}" for name, value in SMALL.items()]
    return [
        *(sys.executable, "-m", "ba_jax.corpora.tokenize", "--config=configs/lm_stage2.py:nano"),
        *(*sizes, "--config.model.vq_bridge.width=16"),
        *(f"--checkpoint={folder / 'weights'}", f"--dataset={folder / 'in'}", f"--out={out}"),
        *("--chunk-seconds=3", *more),
    ]


def here(words: list[str], code: int = 0) -> tuple[str, str]:
    """Run a command in this process."""
    return run_here(*words[2:], code=code)


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir()) if p.is_file()}


@pytest.fixture(scope="module")
def undisturbed(folder) -> pathlib.Path:
    """The dataset made by a single process with a single device."""
    out, err = here(command(folder, folder / "out"))
    assert "14 records, 0.01 h with codes in" in out and "# small: 14 records" in out
    assert "small: 100%" in err and "s of audio" in err, "no progress bar"
    return folder / "out"


def test_a_second_run_does_nothing(folder, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.iterdir()}
    out, err = here(command(folder, undisturbed, "--on-error=skip"))
    assert "14 records" in out and "s of audio" not in err
    assert {path: path.stat().st_mtime_ns for path in undisturbed.iterdir()} == before
    _, err = here(command(folder, undisturbed, "--drop-audio"), FAILED)
    assert "source.drop_audio was False, is True" in err and "Traceback" not in err
    codes = [
        part.codes_NQ for r in RecordSource(undisturbed, "train") for part in r.parts if part.audio
    ]
    assert len(codes) == 24 and all(code.shape[1] == 8 for code in codes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=nowhere"], "nowhere: no such folder, expected a checkpoint"),
        (["--dataset=nowhere"], "nowhere/dataset_info.json"),
        (["--config.model.audio_encoder.layers=2"], "misshapen params/audio_encoder"),
    ],
)
def test_errors_name_the_cause(folder, tmp_path, arguments, message):
    out, err = here(command(folder, tmp_path / "out", *arguments), USER_ERROR)
    assert message in err and "Traceback" not in err and out == ""


@pytest.mark.slow
def test_eight_devices_give_the_same(folder, undisturbed, tmp_path):
    finish(start(command(folder, tmp_path / "out", "--batch-seconds=3"), JAX_NUM_CPU_DEVICES="8"))
    assert contents(tmp_path / "out") == contents(undisturbed)


@pytest.mark.slow
def test_an_interrupted_run_is_resumed_by_two_processes(folder, undisturbed, tmp_path):
    """Joined as Slurm joins them."""
    out = tmp_path / "out"
    process = start(command(folder, out))
    wait_for((out / "prepare.json").exists, process)
    process.send_signal(signal.SIGINT)
    _, err = finish(process, INTERRUPTED)
    assert (
        err.strip().endswith("interrupted; run the same command again to resume")
        and "Traceback" not in err
    )
    address = f"localhost:{free_port()}"
    processes = [
        start(
            command(folder, out, "--distributed"),
            JAX_COORDINATOR_ADDRESS=address,
            SLURM_JOB_ID="1",
            SLURM_STEP_NODELIST="localhost",
            SLURM_STEP_NUM_NODES="1",
            SLURM_NTASKS="2",
            SLURM_PROCID=str(number),
            SLURM_LOCALID=str(number),
        )
        for number in (0, 1)
    ]
    for process in processes:
        assert "14 records" in finish(process)[0]
    assert contents(out) == contents(undisturbed)
