"""Time the language model's step (loss and gradients) under several settings of the stage.

    python -m benchmarks.lm_step                       # nano, two thirds of the positions audio
    python -m benchmarks.lm_step --settings '{"chunk": 256}' '{"chunk": 128, "full_head_every": 4}'

Each `--settings` is JSON that updates the config's `stage`. A ratio is the first candidate's time
over this one's, all interleaved in a run: above 1 it is faster. `apart` is the relative difference
of its loss from the first one's; with `full_head_every` the loss is an estimate.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ba_jax import cli
from ba_jax.plan.batch import make_full_batch
from ba_jax.run_config import make_stage, parse_config
from benchmarks import timing
from configs import lm_stage2

SETTINGS = (
    '{"chunk": 256}',
    '{"chunk": 128}',
    '{"chunk": 128, "full_head_every": 2}',
    '{"chunk": 128, "full_head_every": 4}',
    '{"chunk": 128, "full_head_every": 8}',
)
COLUMNS = {
    "stage": "`{stage}`",
    "step, ms": "{step_ms:.0f}",
    "FLOPs": lambda row: f"{row['flops'] / 1e9:.0f} G",
    "apart": "{difference:.1%}",
    **timing.COLUMNS,
}
LEGEND = "\nratio: the first row's time over this row's; others: share of the CPUs used meanwhile."


def make_candidate(changes: dict[str, Any], rows: int, audio: float) -> tuple[Callable, float]:
    """Return a call that computes loss and gradients and returns the loss, and the stage's FLOPs.

    The batch has full rows of random codes.
    """
    config = lm_stage2.get_config("nano_codes")
    config.stage.update({"full_head_every": 1} | changes)  # the head on all frames by default
    run = parse_config(config)
    stage = make_stage(run)
    batch = make_full_batch(stage, run, stage.components, rows, audio)
    arrays = {name: np.repeat(np.asarray(x), rows, axis=0) for name, x in batch.row.items()}
    frames_BL1 = (arrays["ids_BL"] == stage.config.tokens.audio_pad)[:, :, None]
    shape = arrays["codes_BLQ"].shape
    codes = np.random.default_rng(0).integers(0, stage.codebook_sizes, shape, np.int32)
    arrays["codes_BLQ"] = np.where(frames_BL1, codes, arrays["codes_BLQ"])
    variables = jax.jit(stage.init)(jax.random.key(0))

    @jax.jit
    def step(params, arrays):
        def loss(params):
            updated = {**variables, "params": params}
            return stage.loss(updated, arrays, stage.totals(arrays), jax.random.key(1), 0)[0]

        return jax.value_and_grad(loss)(params)

    return lambda: jax.block_until_ready(step(variables["params"], arrays))[0], batch.flops


def settings(text: str) -> str:
    """Check that an argument is a JSON object, and return it."""
    if not isinstance(json.loads(text), dict):
        raise ValueError("expected an object")
    return text


def measure(options: argparse.Namespace) -> Iterator[dict]:
    """Yield a row for each of the settings."""
    candidates = {
        text: make_candidate(json.loads(text), options.rows, options.audio)
        for text in options.settings
    }
    calls = {name: call for name, (call, _) in candidates.items()}
    samples = timing.interleave(calls, options.seconds)
    first = options.settings[0]
    expected = float(calls[first]())
    for name, (call, flops) in candidates.items():
        yield {
            "stage": name,
            "step_ms": 1e3 * samples.median(name),
            "flops": flops,
            "difference": abs(float(call()) - expected) / expected,
            **samples.compare(first, name),
        }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = cli.Parser("benchmarks.lm_step", __doc__.splitlines()[0])
    parser.add_argument(
        "--settings", type=settings, nargs="+", default=list(SETTINGS), help="JSON, see above"
    )
    parser.add_argument("--rows", type=cli.at_least(1), default=8, help="rows of 256 positions")
    parser.add_argument("--audio", type=float, default=2 / 3, help="share of frames")
    timing.add_arguments(parser, seconds=60.0)
    options = parser.parse_args(argv)
    facts = timing.prepare(options.threads) | {"rows": options.rows}
    timing.report(facts, COLUMNS, measure(options), LEGEND, options.json)


if __name__ == "__main__":
    main()
