"""Losses of seeded runs against stored ones; a run with audio, killed and resumed.

python -m tests.integration.test_train_curves        stores them anew
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile

import numpy as np
import pytest

from ba_jax.train import train
from tests.integration import train_driver
from tests.unit.data import small_corpus
from tests.unit.stages import small_run

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "data" / "train"
STEPS = 20
RUNS = {"text_lm": small_run.text_run, "lm": small_run.codes_run}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "small"
    return small_corpus.write_dataset(folder, small_run.records())


def curves(name: str, dataset: pathlib.Path, workdir: pathlib.Path) -> dict[str, list[float]]:
    """Metrics of 20 steps."""
    config = RUNS[name](dataset, train__steps=STEPS, train__record_batch_hashes=False, eval_data={})
    train(config, workdir)
    names = ["loss", "grad_norm", "text_accuracy"]
    names += ["text_audio_rows", "audio/0", "audio/1"] if name == "lm" else []
    curves = {metric: small_run.metrics(workdir, metric) for metric in names}
    return {
        metric: [values[step + 1] for step in range(STEPS)] for metric, values in curves.items()
    }


@pytest.mark.parametrize("name", RUNS)
def test_losses_match_the_stored_ones(name, dataset, tmp_path):
    """Tolerances allow for the rounding of other CPUs, which accumulates over the steps."""
    stored = json.loads((GOLDEN / f"{name}.json").read_text())
    new = curves(name, dataset, tmp_path)
    assert new.keys() == stored.keys()
    for metric, values in stored.items():
        if metric == "text_accuracy":
            np.testing.assert_allclose(new[metric], values, atol=0.03)
            continue
        np.testing.assert_allclose(new[metric][:5], values[:5], rtol=1e-4, err_msg=metric)
        np.testing.assert_allclose(new[metric], values, rtol=5e-3, err_msg=metric)
    assert stored["loss"][-1] < stored["loss"][0] - 1


@pytest.mark.deep
@pytest.mark.slow
def test_run_with_audio_resumes_exactly(dataset, tmp_path):
    """Codebooks with their ages, microbatches and EMA are restored, and pictures are drawn."""
    changes = {"train__steps": 6, "train__accumulation_steps": 2, "optimizer__ema_decay": 0.9}
    changes |= {"checkpoint__every": 2, "train__evaluate_every": 3}
    config = small_run.tokenizer_run(dataset, **changes)
    # Each run has a process of its own, so that earlier tests cannot affect it.
    assert train_driver.run(config, tmp_path / "whole").returncode == 0
    done = train_driver.run(config, tmp_path / "killed", "kill", 4)
    assert done.returncode == -9, done.stderr
    assert train_driver.run(config, tmp_path / "killed").returncode == 0
    done = train_driver.run(config, tmp_path / "stopped", "term", 2)
    assert done.returncode == 0, done.stderr
    assert train_driver.run(config, tmp_path / "stopped").returncode == 0
    for name in ("killed", "stopped"):
        for file in ("metrics.csv", "batches.csv"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
        whole, again = small_run.saved(tmp_path / "whole", 6), small_run.saved(tmp_path / name, 6)
        small_run.assert_equal(whole, again)
    assert any("codebook" in name for name in whole) and any("extra" in name for name in whole)
    assert list((tmp_path / "whole" / "pictures").rglob("*.png"))


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        corpus = small_corpus.write_dataset(root / "small", small_run.records())
        for run in sys.argv[1:] or RUNS:
            values = curves(run, corpus, root / run)
            text = json.dumps({k: [round(x, 6) for x in v] for k, v in values.items()}, indent=1)
            (GOLDEN / f"{run}.json").write_text(text + "\n")
