"""`python -m ba_jax.convert`: import, join, export, verify.

python -m ba_jax.convert --source DIR --out DIR
python -m ba_jax.convert join --checkpoint RUN,RUN,... --out DIR
python -m ba_jax.convert export --checkpoint DIR --out DIR [--base DIR]
python -m ba_jax.convert verify --checkpoint DIR --golden FILE.npz
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from ba_jax import cli
from ba_jax.config import ConfigError, expected

NAME = "ba_jax.convert"
DTYPES = ("float32", "bfloat16", "float16")


def _parser(command: str, description: str) -> cli.Parser:
    """Make a parser with the arguments that all commands share."""
    parser = cli.Parser(NAME, description, command)
    add = parser.add_argument
    add("--out", type=cli.path, required=True, help="folder to write")
    add("--dtype", choices=DTYPES, help="cast parameters (default: kept as stored)")
    add("--overwrite", action="store_true", help="replace the contents of --out")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def _shared(args: argparse.Namespace) -> dict[str, Any]:
    """Return the shared arguments as keyword arguments of the library."""
    import jax.numpy as jnp

    dtype = None if args.dtype is None else jnp.dtype(args.dtype)
    return {"dtype": dtype, "overwrite": args.overwrite, "progress": not args.quiet}


def run_import(argv: Sequence[str]) -> int:
    from ba_jax.convert import importer, sources

    parser = _parser(
        "",
        "Import reference weights into an Orbax checkpoint. Other commands: join, export, verify "
        "(each has --help).",
    )
    add = parser.add_argument
    add(
        "--source",
        type=cli.path,
        required=True,
        help="Hugging Face or CTranslate2 folder, or hift.pt",
    )
    add("--kind", choices=sources.KINDS, help="kind of the source (default: detected)")
    add("--vocoder", type=cli.path, help="vocoder file to import with a Baichuan folder")
    args = parser.parse_args(argv)
    report = importer.import_checkpoint(
        args.source, args.out, kind=args.kind, vocoder=args.vocoder, **_shared(args)
    )
    return _print(importer.format_report(report), f"wrote {args.out}")


def run_join(argv: Sequence[str]) -> int:
    from ba_jax.convert import join

    parser = _parser(
        "join",
        "Join the components of separate runs into one checkpoint, for export: each from the last "
        "run that holds it, adapters merged.",
    )
    parser.add_argument(
        "--checkpoint",
        type=cli.paths,
        required=True,
        help="WORKDIRs of runs, or folders that ba_jax.convert wrote, separated by commas",
    )
    parser.add_argument("--partial", action="store_true", help="components may be missing")
    args = parser.parse_args(argv)
    joined = join.join_checkpoints(args.checkpoint, args.out, partial=args.partial, **_shared(args))
    return _print(*joined.lines(), f"wrote {args.out}")


def run_export(argv: Sequence[str]) -> int:
    from ba_jax.convert import export

    parser = _parser("export", "Write an imported or joined checkpoint as the reference's files.")
    add = parser.add_argument
    add("--checkpoint", type=cli.path, required=True, help="folder with config.json and weights/")
    add("--base", type=cli.path, help="original folder, for its left-out tensors and text files")
    add(
        "--max-shard-bytes",
        type=cli.at_least(1),
        default=export.DEFAULT_SHARD_BYTES,
        help="size of shards if the import recorded none (default: %(default)s)",
    )
    add(
        "--vocoder-format",
        choices=("pt", "safetensors"),
        default="pt",
        help="format of the vocoder if the import recorded none (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    notes = export.export_checkpoint(
        args.checkpoint,
        args.out,
        base=args.base,
        max_shard_bytes=args.max_shard_bytes,
        vocoder_format=args.vocoder_format,
        **_shared(args),
    )
    return _print(*(f"note: {note}" for note in notes), f"wrote {args.out}")


def run_verify(argv: Sequence[str]) -> int:
    from ba_jax.convert import verify

    return verify.main(argv)


def _print(*lines: str) -> int:
    print("\n".join(lines))
    return 0


COMMANDS = {"import": run_import, "join": run_join, "export": run_export, "verify": run_verify}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0, 1 (verify failed), 2 (user error), 130 (SIGINT)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = argv.pop(0) if argv and not argv[0].startswith("-") else "import"
    if command not in COMMANDS:
        return cli.fail(NAME, f"command {expected(command, COMMANDS)}")
    if command != "verify":
        # Only the host is needed: leave accelerators free.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from absl import logging

    from ba_jax.checkpoints.layout import CheckpointError
    from ba_jax.convert.engine import ConversionError

    # Orbax logs a traceback when a write fails; the message below is enough.
    logging.set_verbosity(logging.FATAL)
    try:
        return COMMANDS[command](argv)
    except (ConversionError, CheckpointError, ConfigError, OSError) as error:
        return cli.fail(NAME, error)
    except KeyboardInterrupt:
        return cli.fail(NAME, "interrupted; nothing was written", cli.INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
