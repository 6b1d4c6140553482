r"""Make a dataset of records.

    python -m ba_jax.corpora --config=configs/prepare.py:librispeech \
        --config.source.folder=/data/LibriSpeech --out=/data/records/librispeech

The same command resumes an interrupted run, and prints the report of a complete dataset.
`--dry-run` lists the corpus and writes nothing. Exit codes: 0 the dataset is complete, 1 the run
failed or too much was rejected, 2 a wrong command line or config, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from absl import flags

from ba_jax import cli
from ba_jax.config import ConfigError
from ba_jax.corpora import runner
from ba_jax.corpora.sources.base import SourceError

_CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "prepare.py"


def define_flags() -> None:
    """Define the command's flags."""
    cli.define_config(
        "configs/prepare.py:KIND, the corpus; single values as --config.source.folder=...",
        f"{_CONFIGS}:embedded",
    )
    cli.define_path("out", None, "folder of the new dataset")
    flags.DEFINE_integer("workers", os.cpu_count(), "processes; 0 works in this process", 0)
    flags.DEFINE_bool("dry_run", False, "list and check the items, write nothing")
    flags.DEFINE_bool("overwrite", False, "discard the output of another config in --out")
    flags.DEFINE_string("size", None, "short for --config.source.size")
    runners = ["local", "beam"]
    flags.DEFINE_enum("runner", "local", runners, "processes here, or a Beam pipeline")
    flags.DEFINE_string(
        "beam_options",
        "--runner=DirectRunner",
        "options of the pipeline, in the form of Beam's command lines",
    )
    flags.DEFINE_bool("quiet", False, "show no progress bar")


def main(argv: list[str]) -> int:
    """Make the dataset, or list its source."""
    args = flags.FLAGS
    logging.getLogger("absl").setLevel(logging.ERROR)
    values = args.config.to_dict()
    if args.size is not None:
        if "size" not in values.get("source", ()):
            raise ConfigError(f"--size: a source of kind {values.get('kind')!r} has no size")
        values["source"]["size"] = args.size
    try:
        config = runner.config_from(values)
        if args.dry_run:
            print(runner.dry_run(config))
            return 0
        if not args.out:
            raise ConfigError("--out: expected the folder of the new dataset")
        run_jobs = None
        if args.runner == "beam":
            from ba_jax.corpora.beam import BeamRunner

            run_jobs = BeamRunner(args.beam_options)
        report = runner.prepare(
            config,
            args.out,
            workers=args.workers,
            overwrite=args.overwrite,
            run_jobs=run_jobs,
            show_progress=not args.quiet,
        )
    except SourceError as error:
        return cli.fail("ba_jax.corpora", error)
    except (runner.PrepareError, OSError) as error:
        return cli.fail("ba_jax.corpora", error, runner.FAILED)
    except KeyboardInterrupt:
        return cli.interrupted("ba_jax.corpora")
    runner.print_report(report, args.out)
    return 0


if __name__ == "__main__":
    cli.run("ba_jax.corpora", define_flags, main)
