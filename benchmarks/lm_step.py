"""The language model's step, loss and gradients, with the audio head on all frames or on some.

    python -m benchmarks.lm_step                       # nano, two thirds of the positions audio
    python -m benchmarks.lm_step --settings '{"chunk": 256}' '{"chunk": 128, "full_head_every": 4}'

Each `--settings` is what a candidate changes of the config's `stage`, JSON. A ratio is the first
one's time over the candidate's, all interleaved in one run: above 1 it is faster. `apart` is how
far its loss is from the first one's, which for `full_head_every` is an estimate of it.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ba_jax.plan.batch import full_batch
from ba_jax.run_config import make_stage, parse_config
from benchmarks import timing
from benchmarks.components import report, table_line
from configs import lm_stage2

SETTINGS = (
    '{"chunk": 256}',
    '{"chunk": 128}',
    '{"chunk": 256, "recompute": false}',
    '{"chunk": 128, "full_head_every": 2}',
    '{"chunk": 128, "full_head_every": 4}',
    '{"chunk": 128, "full_head_every": 8}',
)
COLUMNS = ("stage", "step, ms", "ratio (quartiles)", "FLOPs", "apart", "others")
LEGEND = "\nratio: the first row's time over this row's; others: share of the CPUs taken meanwhile."


def candidate(changes: dict[str, Any], rows: int, audio: float) -> tuple[Callable, float]:
    """(A call that gives the loss once its gradients are there, FLOPs as the stage counts them).

    The batch is full rows of random codes.
    """
    config = lm_stage2.get_config("nano_codes")
    config.stage.update(changes)
    run = parse_config(config)
    stage = make_stage(run)
    batch = full_batch(stage, run, rows, audio)
    arrays = {name: np.repeat(np.asarray(x), rows, axis=0) for name, x in batch.row.items()}
    frames_BL1 = (arrays["ids_BL"] == stage.config.tokens.audio_pad)[:, :, None]
    shape = arrays["codes_BLQ"].shape
    codes = np.random.default_rng(0).integers(0, stage.codebook_sizes, shape, np.int32)
    arrays["codes_BLQ"] = np.where(frames_BL1, codes, arrays["codes_BLQ"])
    variables = jax.jit(stage.init)(jax.random.key(0))

    @jax.jit
    def step(params, arrays):
        def loss(params):
            held = {**variables, "params": params}
            return stage.loss(held, arrays, stage.totals(arrays), jax.random.key(1), 0)[0]

        return jax.value_and_grad(loss)(params)

    return lambda: jax.block_until_ready(step(variables["params"], arrays))[0], batch.flops


def measure(options: argparse.Namespace) -> Iterator[dict]:
    """A row for each of the settings."""
    made = {
        text: candidate(json.loads(text), options.rows, options.audio) for text in options.settings
    }
    samples = timing.interleave({name: call for name, (call, _) in made.items()}, options.seconds)
    first = options.settings[0]
    expected = float(made[first][0]())
    for name, (call, flops) in made.items():
        low, ratio, high = samples.ratio(first, name)
        yield {
            "stage": name,
            "step_ms": 1e3 * samples.median(name),
            "ratio": ratio,
            "ratio_quartiles": [low, high],
            "flops": flops,
            "difference": abs(float(call()) - expected) / expected,
            "others": samples.others,
        }


def table_row(row: dict) -> str:
    """A row of the Markdown table."""
    low, high = row["ratio_quartiles"]
    return table_line(
        (
            f"`{row['stage']}`",
            f"{row['step_ms']:.0f}",
            f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})",
            f"{row['flops'] / 1e9:.0f} G",
            f"{row['difference']:.1%}",
            f"{row['others']:.0%}",
        )
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the Markdown table and, if asked, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), help="JSON, see above")
    parser.add_argument("--rows", type=int, default=8, help="of 256 positions")
    parser.add_argument("--audio", type=float, default=2 / 3, help="share of frames")
    parser.add_argument("--seconds", type=float, default=60.0, help="timing budget")
    parser.add_argument("--threads", type=int, default=2, help="CPUs")
    parser.add_argument("--json", type=pathlib.Path, help="also write the numbers there")
    options = parser.parse_args(argv)
    timing.pin_threads(options.threads)
    jax.config.update("jax_platforms", "cpu")
    facts = {"jax": jax.__version__, "threads": options.threads, "rows": options.rows}
    report(facts, COLUMNS, measure(options), table_row, LEGEND, "stage", options.json)


if __name__ == "__main__":
    main()
