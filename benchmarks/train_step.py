"""Time training steps (loss, gradients, AdamW) of all stages against PyTorch on the same CPU.

    python -m benchmarks.train_step                       # all at nano, about 6 minutes
    python -m benchmarks.train_step --only=codes --settings '{}' '{"full_head_every": 1}'

Each of `--settings` is JSON that updates the config's `stage`; PyTorch's step is that of the first.
The same sizes, shapes and work a step, random weights; PyTorch is written as one would, see
`benchmarks.torch_training`. A ratio is PyTorch's time over ours: above 1 ours is faster.
Memory is kept from step to step as `ba_jax.train` does, for both sides.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ba_jax import cli, distributed, sharding
from ba_jax.config import expected
from ba_jax.plan.batch import make_full_batch
from ba_jax.run_config import parse_config
from ba_jax.stages.base import Stage
from ba_jax.train_state import init_state, make_layout, make_step
from benchmarks import timing, torch_training
from configs import flow_matching, lm_stage2, lm_text, tokenizer, vocoder

CONFIGS = {
    "text": lm_text.get_config,
    "codes": lambda: lm_stage2.get_config("nano_codes"),
    "tokenizer": tokenizer.get_config,
    "flow": flow_matching.get_config,
    "vocoder": vocoder.get_config,
}
AIM = 1.2
COLUMNS = {
    "step": "{step} {settings}",
    "batch": "{batch}",
    "trained values, ours and theirs": "{values[0]:,} {values[1]:,}",
    "PyTorch, ms": "{baseline_ms:.0f}",
    "ours, ms": "{ours_ms:.0f}",
    "GFLOP/s": "{gflops:.0f}",
    "aim": timing.format_aim,
    **timing.COLUMNS,
}
LEGEND = """
ratio: PyTorch's wall-clock time over ours; CPU ratio: the same for CPU times, which count what
PyTorch's workers spend spinning; others: share of the CPUs that other processes used meanwhile."""


@dataclasses.dataclass(frozen=True)
class OurStep:
    """Our side of a comparison.

    Attributes:
      run: call that trains a step and returns its loss.
      values: number of trained values.
      stage, arrays: the stage and its batch.
      flops, text: of the batch, see `FullBatch`.
    """

    run: Callable[[], float]
    values: int
    stage: Stage
    arrays: dict[str, Any]
    flops: float
    text: str


def our_step(name: str, changes: str = "{}", rows: int | None = None) -> OurStep:
    """Build a stage's training step on a full batch of random inputs; `changes` as `--settings`."""
    config = CONFIGS[name]()
    config.stage.update(json.loads(changes))
    config = parse_config(config)
    layout = make_layout(config, sharding.make_mesh(config.mesh, jax.devices()[:1]))
    stage = layout.stage
    share = {"text": 0.0, "codes": 2 / 3}.get(name, 0.5)
    batch = make_full_batch(stage, config, layout.trained_components, rows, share)
    random = np.random.default_rng(0)

    def fill(path, array: np.ndarray) -> np.ndarray:
        """Repeat a row; values, ids of text and codes become random."""
        array, leaf = np.repeat(array, batch.rows, axis=0), path[-1].key
        if array.dtype == np.float32:
            return random.standard_normal(array.shape, np.float32)
        if leaf in ("ids_BL", "ids"):
            first, last = stage.config.tokens.audio_pad + 16, stage.config.llm.vocab_size
            words = random.integers(first, last, array.shape, np.int32)
            return np.where(array == stage.config.tokens.audio_pad, array, words)
        if leaf in ("codes_BLQ", "codes_BNQ") and array.shape[-1]:
            sizes = config.model["vq_bridge"]["codebook_sizes"]
            return random.integers(0, sizes, array.shape, np.int32)
        return array

    arrays = jax.tree_util.tree_map_with_path(fill, batch.row)
    step, placed = make_step(layout), jax.device_put(arrays)
    state = [init_state(layout, jax.jit(stage.init)(layout.init_key))]
    values = sum(leaf.size for leaf in state[0].trained.values())

    def run() -> float:
        state[0], metrics = step(state[0], placed, layout.step_key)
        return float(jax.block_until_ready((state[0], metrics))[1]["loss"])

    return OurStep(run, values, stage, arrays, batch.flops, batch.text)


def measure(options: argparse.Namespace) -> Iterator[dict]:
    """Yield a row for each step."""
    for name in options.only:
        ours = {text: our_step(name, text, options.rows) for text in options.settings}
        first = ours[options.settings[0]]
        theirs, their_values = torch_training.STEPS[name](first.stage, first.arrays)
        calls = {text: step.run for text, step in ours.items()}
        samples = timing.interleave({"torch": theirs, **calls}, options.seconds)
        for text, step in ours.items():
            yield {
                "step": name,
                "settings": "" if text == "{}" else f"`{text}`",
                "batch": step.text,
                "values": (step.values, their_values),
                "baseline_ms": 1e3 * samples.median("torch"),
                "ours_ms": 1e3 * samples.median(text),
                "gflops": step.flops / samples.median(text) / 1e9,
                "aim": AIM,
                **samples.compare("torch", text),
            }


def settings(text: str) -> str:
    """Check that an argument is a JSON object, and return it."""
    if not isinstance(json.loads(text), dict):
        raise ValueError("expected an object")
    return text


def names(text: str) -> list[str]:
    """Check that an argument names steps, and return these."""
    for name in text.split(","):
        if name not in CONFIGS:
            raise argparse.ArgumentTypeError(expected(name, CONFIGS))
    return text.split(",")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = cli.Parser("benchmarks.train_step", __doc__.splitlines()[0])
    parser.add_argument("--only", type=names, default=list(CONFIGS), help="steps, by commas")
    parser.add_argument("--settings", type=settings, nargs="+", default=["{}"], help="see above")
    parser.add_argument("--rows", type=cli.at_least(1), help="rows or clips; default the config's")
    timing.add_arguments(parser, seconds=30.0)
    options = parser.parse_args(argv)
    facts = timing.prepare(options.threads)
    distributed.reuse_memory_on_cpu()
    timing.report(facts, COLUMNS, measure(options), LEGEND, options.json)


if __name__ == "__main__":
    main()
