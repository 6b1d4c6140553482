"""Codes, mels and language models by b of the codebooks' constraint (paper 3.1, eq. 4 and 5).

    python -m ba_jax.recipe --config=configs/recipes.py:constraint

trains a tokenizer and a language model on its codes for each b, and ends with

    python -m ba_jax.evals.paper.constraint --runs=runs/constraint --out=runs/constraint

which prints a row for each RUNS/B with the folders tokenizer, codes and lm, and whether the paper's
orderings hold. OUT gets constraint.md.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from ba_jax import cli
from ba_jax.checkpoints.layout import read_run_config
from ba_jax.data.record import RecordSource
from ba_jax.evals.items import EvalError
from ba_jax.evals.paper.published import EXPECTED, Claim
from ba_jax.evals.paper.table import Cell, Column, Measurement, Table, to_page
from ba_jax.files import write_whole
from ba_jax.metrics.writers import parse_csv

NAME = "ba_jax.evals.paper.constraint"
COLUMNS = (
    Column("entropy", "lower"),
    Column("rows used", ""),
    Column("row norm", "", digits=2, share=False),
    Column("mel MAE", "lower", digits=3, share=False),
    Column("audio accuracy", "higher"),
    Column("first codebook", "higher"),
    Column("nats a frame", "lower", digits=2, share=False),
)
NOTES = (
    "entropy: of the codes of the training split, as a share of log V, mean of the codebooks; rows "
    "used: the same of the share of rows that occur.",
    "row norm: mean Euclidean norm of the first codebook's chosen rows, in the last batch.",
    "mel MAE, audio accuracy, nats a frame: on the validation split; accuracy and cross-entropy of "
    "the language model's next codes, given the true ones before them, mean and sum over the "
    "codebooks. Codes that concentrate are easier to guess even where they say less: read them "
    "beside the mel's error.",
)


def make_table(runs: pathlib.Path) -> tuple[Table, list[Claim]]:
    """Make the table of the runs below a folder, and the paper's orderings of its rows.

    Raises:
      EvalError: no run, or one that is not complete.
    """
    rows: dict[float, dict[str, Cell]] = {}
    for folder in sorted(path.parent for path in runs.glob("*/tokenizer")):
        config = read_run_config(folder / "tokenizer")
        if config is None:
            raise EvalError(f"{folder / 'tokenizer'}: no config.json, expected a training run")
        sizes = config["model"]["vq_bridge"]["codebook_sizes"]
        rows[config["stage"]["l2_shrink"]] = _measure(folder, sizes)
    if not rows:
        raise EvalError(f"{runs}: no folder B/tokenizer, expected runs of the recipe `constraint`")
    named = {f"b = {b:g}": rows[b] for b in sorted(rows)}
    rising = tuple(named)
    falling = rising[::-1]
    claims = [
        Claim("entropy", falling, "a stronger constraint concentrates the ids (3.1)"),
        Claim("audio accuracy", falling, "and makes them easier to predict (3.1)"),
        Claim("mel MAE", rising, "at a price in reconstruction", source=EXPECTED),
    ]
    return Table(0, COLUMNS, named, NOTES), claims


def _measure(folder: pathlib.Path, sizes: Sequence[int]) -> dict[str, Cell]:
    """Return a row: the measures of one b."""
    entropies, shares = usage(_count_codes(folder / "codes" / "embedded", sizes))
    tokenizer, model = (_last_values(folder / name) for name in ("tokenizer", "lm"))
    try:
        accuracies = [model[f"eval/audio_accuracy/{q}"] for q in range(len(sizes))]
        nats = sum(model[f"eval/audio/{q}"] for q in range(len(sizes)))
        values = (
            np.mean(entropies),
            np.mean(shares),
            tokenizer["codebook/0/norm"],
            tokenizer["eval/mel_mae"],
            np.mean(accuracies),
            accuracies[0],
            nats,
        )
    except KeyError as error:
        raise EvalError(f"{folder}: a run without the metric {error}; is it complete?") from None
    names = (column.name for column in COLUMNS)
    return {n: Measurement(float(value)) for n, value in zip(names, values, strict=True)}


def _count_codes(dataset: pathlib.Path, sizes: Sequence[int]) -> list[np.ndarray]:
    """Return how often each code of each codebook occurs in the training split."""
    frames = [
        part.codes_NQ
        for record in RecordSource(dataset, "train")
        for part in record.parts
        if part.codes_NQ is not None
    ]
    if not frames:
        raise EvalError(f"{dataset}: no codes, expected those of `ba_jax.corpora.tokenize`")
    codes_NQ = np.concatenate(frames)
    return [np.bincount(codes_NQ[:, q], minlength=size) for q, size in enumerate(sizes)]


def usage(counts: Sequence[np.ndarray]) -> tuple[list[float], list[float]]:
    """Return each codebook's entropy as a share of log V, and the share of its codes that occur."""
    entropies, shares = [], []
    for count_V in counts:
        share_V = count_V[count_V > 0] / count_V.sum()
        entropies.append(float(-(share_V * np.log(share_V)).sum() / np.log(len(count_V))))
        shares.append(len(share_V) / len(count_V))
    return entropies, shares


def _last_values(run: pathlib.Path) -> dict[str, float]:
    """Return the last value of each metric of a run."""
    path = run / "metrics.csv"
    return {name: value for _, name, value in parse_csv(path.read_text(), path)}


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(NAME, __doc__)
    parser.add_argument("--runs", type=cli.path, default=pathlib.Path("runs/constraint"))
    parser.add_argument("--out", type=cli.path, default=pathlib.Path("runs/constraint"))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the table; returns 1 if it failed, 2 for a bad command line."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    try:
        table, claims = make_table(arguments.runs)
        page = to_page("The constraint of the codebooks", table, claims)
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_whole(arguments.out / "constraint.md", page)
    except (ValueError, RuntimeError, OSError) as error:
        return cli.fail(NAME, error, 1)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
