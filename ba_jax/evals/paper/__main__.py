"""The paper's tables in miniature, from models trained and evaluated on the embedded corpus.

    python -m ba_jax.evals.paper --table=1,3,5 --size=nano --runs=runs --out=paper

prints each table, with the paper's ordering beside ours and a verdict. OUT gets tables.md,
tableN.md, tableN.json and the evaluations. Runs of `launch/demo.sh` in RUNS are used as they are;
missing ones are trained in OUT/runs by the same commands, and resumed there after an interruption.
`--retrain` also trains a tokenizer for each row of Table 1.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Sequence

from ba_jax import cli
from ba_jax.config import expected

NAME = "ba_jax.evals.paper"

# Functions import JAX and everything on top of it: the judge's processes import this module.


def parse_numbers(text: str) -> list[int]:
    """Parse "1,3,5", "1..8" or both; each number once, in order."""
    numbers: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", part.strip())
        if not match:
            raise ValueError(f"--table={text}: expected numbers and ranges, such as 1,3,5 or 1..8")
        first = int(match[1])
        numbers |= dict.fromkeys(range(first, int(match[2] or first) + 1))
    return list(numbers)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser(NAME, __doc__)
    parser.add_argument("--table", default="1,3,5", help="numbers and ranges: 1,3,5 or 1..8")
    parser.add_argument("--size", default="nano", help="nano, or nano_scratch without Whisper")
    parser.add_argument("--runs", type=cli.path, default=pathlib.Path("runs"))
    parser.add_argument("--out", type=cli.path, default=pathlib.Path("paper"))
    parser.add_argument("--retrain", action="store_true", help="Table 1: a tokenizer per row")
    parser.add_argument(
        "--limit", type=cli.at_least(0), default=0, help="items of each kind; 0: all"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the tables; returns 1 if a table failed, 2 for a bad command line."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    try:
        make_tables(arguments)
    except (ValueError, RuntimeError, OSError) as error:
        return cli.fail(NAME, error, cli.USAGE if isinstance(error, ValueError) else 1)
    return 0


def make_tables(arguments: argparse.Namespace) -> None:
    """Make, print and write tables."""
    from absl import logging

    from ba_jax.config import from_mapping
    from ba_jax.distributed import use_compilation_cache
    from ba_jax.evals.judges.recogniser import SpeechJudge, SpeechJudgeSettings
    from ba_jax.evals.paper import table as table_lib
    from ba_jax.evals.paper.published import TITLES
    from ba_jax.evals.paper.runs import NanoRuns
    from ba_jax.evals.paper.tables import TableMaker
    from configs.eval import get_config

    numbers = parse_numbers(arguments.table)
    for number in set(numbers) - set(TITLES):
        raise ValueError(f"--table={arguments.table}: table {expected(number, TITLES)}")
    logging.set_verbosity(logging.WARNING)
    out = arguments.out
    runs = NanoRuns([arguments.runs.absolute(), out.absolute() / "runs"], arguments.size)
    config = get_config(runs.model).to_dict()
    config["eval"]["limit"] = arguments.limit
    use_compilation_cache(config.get("compilation_cache", ""))
    out.mkdir(parents=True, exist_ok=True)
    pages = []
    settings = from_mapping(SpeechJudgeSettings, config["eval"]["judge"], "judge")
    with SpeechJudge(settings) as judge:
        maker = TableMaker(runs, out, config, judge, retrain=arguments.retrain)
        for number in numbers:
            table = maker(number)
            page = table_lib.to_markdown(table)
            content = json.dumps(table_lib.to_json(table), ensure_ascii=False, indent=1)
            (out / f"table{number}.json").write_text(content + "\n", encoding="utf-8")
            (out / f"table{number}.md").write_text(page, encoding="utf-8")
            pages.append(page)
            (out / "tables.md").write_text("\n".join(pages), encoding="utf-8")
            print(f"\n{page}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
