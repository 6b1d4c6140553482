"""The table of the codebooks' constraint, from folders as the recipe leaves them."""

import json

import numpy as np

from ba_jax.data.record import Part, Record
from ba_jax.evals.paper import constraint
from tests.unit.data import small_corpus

SIZES = (4, 2)


def leave(folder, b, codes, values):
    """Leave the runs of one b: codes (N, Q), and (mel_mae, accuracies, losses) of the models."""
    mel_mae, accuracies, losses = values
    metrics = {
        "tokenizer": {"eval/mel_mae": mel_mae, "codebook/0/norm": 2.5},
        "lm": {
            **{f"eval/audio_accuracy/{q}": value for q, value in enumerate(accuracies)},
            **{f"eval/audio/{q}": value for q, value in enumerate(losses)},
        },
    }
    for name, of_run in metrics.items():
        (folder / name).mkdir(parents=True)
        lines = [f"1,{key},99.0\n2,{key},{value!r}\n" for key, value in of_run.items()]
        (folder / name / "metrics.csv").write_text("step,name,value\n" + "".join(lines))
    config = {"model": {"vq_bridge": {"codebook_sizes": SIZES}}, "stage": {"l2_shrink": b}}
    (folder / "tokenizer" / "config.json").write_text(json.dumps(config))
    part = Part("a", small_corpus.speech(0.5), np.asarray(codes), 0.5)
    small_corpus.write_dataset(
        folder / "codes" / "embedded", [Record("r", "speech", "en", (part,), "s")]
    )


def test_a_row_for_each_b_and_whether_the_orderings_hold(tmp_path, capsys):
    spread = [[0, 0], [1, 1], [2, 0], [3, 1]]
    leave(tmp_path / "0", 0.0, spread, (0.5, (0.25, 0.75), (1.5, 0.5)))
    leave(tmp_path / "0.01", 0.01, [[0, 0], [0, 0], [1, 0], [1, 0]], (0.625, (0.5, 1.0), (1.0, 0)))
    command = [f"--runs={tmp_path}", f"--out={tmp_path / 'out'}"]
    assert constraint.main(command) == 0
    page = capsys.readouterr().out
    assert page.rstrip() == (tmp_path / "out" / "constraint.md").read_text().rstrip()
    assert "| b = 0 | 100.0 % | 100.0 % | 2.50 | 0.500 | 50.0 % | 25.0 % | 2.00 |" in page
    # Two of four codes, evenly: log 2 / log 4; one of two: 0.
    assert "| b = 0.01 | 25.0 % | 50.0 % | 2.50 | 0.625 | 75.0 % | 50.0 % | 1.00 |" in page
    assert page.count("The ordering **holds**") == 3


def test_runs_that_are_missing_or_not_complete(tmp_path, capsys):
    assert constraint.main([f"--runs={tmp_path}"]) == 1
    assert "no folder B/tokenizer, expected runs of the recipe" in capsys.readouterr().err
    leave(tmp_path / "0", 0.0, [[0, 0]], (0.5, (0.25,), (1.5,)))
    assert constraint.main([f"--runs={tmp_path}"]) == 1
    error = "a run without the metric 'eval/audio_accuracy/1'; is it complete?"
    assert error in capsys.readouterr().err


def test_usage_of_a_codebook():
    entropies, shares = constraint.usage([np.array([2, 2, 0, 0]), np.array([7, 0])])
    np.testing.assert_allclose(entropies, [0.5, 0], atol=1e-12)
    assert shares == [0.5, 0.5]
