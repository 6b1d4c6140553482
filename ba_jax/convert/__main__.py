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
from pathlib import Path

USER_ERROR = 2
INTERRUPTED = 128 + 2  # SIGINT, as shells report it
COMMANDS = ("import", "join", "export", "verify")
DTYPES = ("float32", "bfloat16", "float16")


def import_parser() -> argparse.ArgumentParser:
    from ba_jax.convert.sources import KINDS

    parser = argparse.ArgumentParser(
        prog="python -m ba_jax.convert",
        description="Import reference weights into an Orbax checkpoint. "
        "Other commands: join, export, verify (each has --help).",
    )
    add = parser.add_argument
    add("--source", type=Path, required=True, help="Hugging Face or CTranslate2 folder, or hift.pt")
    add("--out", type=Path, required=True, help="folder to write")
    add("--kind", choices=KINDS, help="kind of the source (default: detected)")
    add("--vocoder", type=Path, help="vocoder file to import with a Baichuan folder")
    _add_common(parser)
    return parser


def join_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ba_jax.convert join",
        description="Join the components of separate runs into one checkpoint, for export: each "
        "from the last run that holds it, adapters merged.",
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        type=_paths,
        required=True,
        help="WORKDIRs of runs, or folders that ba_jax.convert wrote, separated by commas",
    )
    add("--out", type=Path, required=True, help="folder to write")
    add("--partial", action="store_true", help="components may be missing")
    _add_common(parser)
    return parser


def export_parser() -> argparse.ArgumentParser:
    from ba_jax.convert.export import DEFAULT_SHARD_BYTES

    parser = argparse.ArgumentParser(
        prog="python -m ba_jax.convert export",
        description="Write an imported or joined checkpoint as the reference's files.",
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder with config.json and weights/")
    add("--out", type=Path, required=True, help="folder to write")
    add("--base", type=Path, help="original folder, for its left-out tensors and text files")
    add(
        "--max-shard-bytes",
        type=_positive,
        default=DEFAULT_SHARD_BYTES,
        help="size of shards if the import recorded none (default: %(default)s)",
    )
    add(
        "--vocoder-format",
        choices=("pt", "safetensors"),
        default="pt",
        help="format of the vocoder if the import recorded none (default: %(default)s)",
    )
    _add_common(parser)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=DTYPES, help="cast parameters (default: kept as stored)")
    parser.add_argument("--overwrite", action="store_true", help="replace the contents of --out")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}, expected at least 1")
    return value


def _paths(text: str) -> list[str]:
    paths = text.split(",")
    if not all(paths):
        raise argparse.ArgumentTypeError(f"{text!r}, expected paths separated by commas")
    return paths


def _dtype(name: str | None):
    import jax.numpy as jnp

    return None if name is None else jnp.dtype(name)


def run_import(argv: Sequence[str]) -> int:
    args = import_parser().parse_args(argv)
    from ba_jax.convert import importer

    report = importer.import_checkpoint(
        args.source,
        args.out,
        kind=args.kind,
        vocoder=args.vocoder,
        dtype=_dtype(args.dtype),
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    print(importer.format_report(report))
    print(f"wrote {args.out}")
    return 0


def run_join(argv: Sequence[str]) -> int:
    args = join_parser().parse_args(argv)
    from ba_jax.convert import join

    joined = join.join_checkpoints(
        args.checkpoint,
        args.out,
        partial=args.partial,
        dtype=_dtype(args.dtype),
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    print("\n".join(joined.lines()))
    print(f"wrote {args.out}")
    return 0


def run_export(argv: Sequence[str]) -> int:
    args = export_parser().parse_args(argv)
    from ba_jax.convert import export

    notes = export.export_checkpoint(
        args.checkpoint,
        args.out,
        base=args.base,
        dtype=_dtype(args.dtype),
        max_shard_bytes=args.max_shard_bytes,
        vocoder_format=args.vocoder_format,
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    for note in notes:
        print(f"note: {note}")
    print(f"wrote {args.out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0, 1 (verify failed), 2 (user error), 130 (SIGINT)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = argv.pop(0) if argv and argv[0] in COMMANDS else "import"
    if command == "verify":
        from ba_jax.convert import verify

        return verify.main(argv)
    # Only the host is needed: leave accelerators free.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from absl import logging

    from ba_jax.checkpoints.layout import CheckpointError
    from ba_jax.convert.engine import ConversionError

    # Orbax logs a traceback when a write fails; the message below is enough.
    logging.set_verbosity(logging.FATAL)
    try:
        return {"import": run_import, "join": run_join, "export": run_export}[command](argv)
    except (ConversionError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
