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
import re
import sys
from pathlib import Path

from absl import app, flags

from ba_jax.config import ConfigError
from ba_jax.corpora import runner
from ba_jax.corpora.sources.base import SourceError

_CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "prepare.py"


def _define_flags() -> None:
    """Define the flags when the module is run, not imported: flags are global to a process."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        f"{_CONFIGS}:embedded",
        "configs/prepare.py:KIND, the corpus; single values as --config.source.folder=...",
    )
    flags.DEFINE_string("out", None, "folder of the new dataset")
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


def _parse(argv: list[str]) -> list[str]:
    """Parse flags, with hyphens allowed in their names."""
    runner.allow_hyphens(argv)
    try:
        _define_flags()
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:  # ml_collections, for an unknown key
        key = re.findall(r"\w+", str(error))[0]
        print(f"error: --config: no key {key!r}, see {_CONFIGS}", file=sys.stderr)
        sys.exit(runner.USER_ERROR)


def _main(argv: list[str]) -> int:

    args = flags.FLAGS
    logging.getLogger("absl").setLevel(logging.ERROR)
    if argv[1:]:
        print(f"error: arguments {argv[1:]}, expected only flags", file=sys.stderr)
        return runner.USER_ERROR
    values = args.config.to_dict()
    if args.size is not None:
        if "size" not in values["source"]:
            kind = values["kind"]
            print(f"error: --size: a source of kind {kind!r} has no size", file=sys.stderr)
            return runner.USER_ERROR
        values["source"]["size"] = args.size
    try:
        config = runner.config_from(values)
        if args.dry_run:
            print(runner.dry_run(config))
            return 0
        if not args.out:
            print("error: --out: expected the folder of the new dataset", file=sys.stderr)
            return runner.USER_ERROR
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
    except (ConfigError, SourceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return runner.USER_ERROR
    except (runner.PrepareError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return runner.FAILED
    except KeyboardInterrupt:
        print("interrupted: run the same command again to resume", file=sys.stderr)
        return runner.INTERRUPTED
    runner.print_report(report, args.out)
    return 0


if __name__ == "__main__":
    app.run(_main, flags_parser=_parse)
