"""Evaluates a model on a dataset's held-out part.

    python -m ba_jax.evaluate --config=configs/eval.py:nano --out=DIR \
        --checkpoint=runs/tokenizer,runs/flow,runs/stage2 --suite=asr,qa_s2t,qa_s2s,tts

Each checkpoint is a run's WORKDIR, one of its checkpoints, or a folder written by `ba_jax.convert`;
a component comes from the last one that holds it. Suites are listed in
`ba_jax/evals/suites/registry.py`: asr, s2tt, qa_s2t, qa_t2t (for a text model alone), qa_s2s, tts,
reconstruction, codec (its part without a flow), and more.

OUT gets figures.json, items.jsonl, failed.jsonl (`ba_jax.evals.results`), report.md and index.html
(with players); and of each suite:

    generations/SUITE.jsonl     the model's output: text, codes
    judge_inputs/SUITE.jsonl    the judge's input; its waves are in audio/
    judged/SUITE.jsonl          the judge's answers
    suites/SUITE.json           the scores

The same command resumes an interrupted evaluation, inside a suite too. `--stage=score` scores the
saved lines again, `--stage=judge` judges them again, both without a model; `--stage=generate`
starts over. On several hosts each runs the command with `--distributed`, see `ba_jax.distributed`;
OUT is a folder that all of them see. Host H takes items H, H + hosts, ... on a mesh of its own
devices (`--config.mesh.fsdp=4`). With `--config.hosts=together` one mesh has the devices of all
hosts, for a model larger than one host's memory: all of them work on every item, and the first one
writes. Exit codes are those of `ba_jax.train`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags, logging

from ba_jax import cli

# Functions import JAX and everything on top of it: the judge's processes import this module.


def define_flags() -> None:
    """Define the command line."""
    from ba_jax import distributed

    cli.define_config("A config with `model` and `eval`.")
    cli.define_paths("checkpoint", None, "WORKDIRs or checkpoints; the last that holds a part.")
    cli.define_path("out", None, "Folder for the results.")
    flags.DEFINE_list(
        "suite", "asr,s2tt,qa_s2t,qa_t2t,qa_s2s,tts,reconstruction", "Suites to run, in this order."
    )
    flags.DEFINE_enum(
        "stage",
        None,
        ["generate", "judge", "score"],
        "Start over, with the saved judge inputs, or with all saved lines; default: resume.",
    )
    flags.DEFINE_bool("overwrite", False, "The same as --stage=generate.")
    distributed.define_flags()
    flags.mark_flag_as_required("out")


def main(argv: list[str]) -> None:
    """Evaluate, write the report and print the figures."""
    from ba_jax import distributed
    from ba_jax.config import ConfigError
    from ba_jax.evals import results
    from ba_jax.report import evaluation

    values = flags.FLAGS
    logging.set_verbosity(logging.WARNING)  # Orbax and TFDS log every success
    if not values.suite:
        raise ConfigError("--suite: expected one or more suites")
    config = values.config.to_dict()
    start = values.stage or ("generate" if values.overwrite else "resume")
    command = distributed.command_line("ba_jax.evaluate")
    try:
        distributed.use_compilation_cache(config.get("compilation_cache", ""))
        joined = distributed.initialize_from_flags(command)
        if joined:
            print(joined, flush=True)
        checkpoints = values.checkpoint or ()
        figures = results.evaluate(config, checkpoints, values.out, values.suite, start=start)
        if figures:
            evaluation.write(Path(values.out))
    except (ValueError, RuntimeError, OSError) as error:
        distributed.exit_with_error(command, error)
    _print_figures(figures)


def _print_figures(figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        interval = figures.get(f"{name}_ci95")
        suffix = "" if interval is None else f"  [{interval[0]:.4f}, {interval[1]:.4f}]"
        if isinstance(value, (int, float)):
            shown = f"{value:.4f}" if isinstance(value, float) else f"{value}"
            print(f"{name:44s} {shown}{suffix}")
        elif isinstance(value, dict) and name.startswith("mel_mae"):
            print(f"{name:44s} " + "  ".join(f"{k}: {v:.4f}" for k, v in value.items()))
        elif name.endswith(("_judge", "_scored", "_signature")):
            print(f"{name:44s} {value}")


if __name__ == "__main__":
    cli.run("ba_jax.evaluate", define_flags, main)
