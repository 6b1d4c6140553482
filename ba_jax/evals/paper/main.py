"""The paper's tables in miniature: trained and evaluated by this code on the embedded corpus.

    python -m ba_jax.evals.paper --table=1,3,5 --size=nano --runs=runs --out=paper

prints each table, the paper's ordering beside ours, and where it holds; OUT gets tables.md,
tableN.md, tableN.json and the evaluations. Runs of `launch/demo.sh` in RUNS are used as they are;
what is missing is trained by the same commands in OUT/runs, and goes on there after an
interruption. `--retrain` trains a tokenizer for each row of Table 1 as well.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Sequence

# JAX and all that stands on it is imported by functions: the judge's processes import this module.


def numbers(given: str) -> list[int]:
    """ "1,3,5", "1..8" or both as numbers, each once, in order.

    Raises:
      ValueError: anything else.
    """
    found: dict[int, None] = {}
    for part in given.split(","):
        match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", part.strip())
        if not match:
            raise ValueError(f"--table={given}: expected numbers and ranges, such as 1,3,5 or 1..8")
        first = int(match[1])
        found |= dict.fromkeys(range(first, int(match[2] or first) + 1))
    return list(found)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(prog="python -m ba_jax.evals.paper", description=__doc__)
    parser.add_argument("--table", default="1,3,5", help="numbers and ranges: 1,3,5 or 1..8")
    parser.add_argument("--size", default="nano", help="nano, or nano_scratch without Whisper")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("paper"))
    parser.add_argument("--retrain", action="store_true", help="Table 1: a tokenizer a row")
    parser.add_argument("--limit", type=int, default=0, help="items of each kind; 0: all")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the tables; 1 if one failed, 2 for a bad command line."""
    given = arguments(sys.argv[1:] if argv is None else argv)
    try:
        wanted = numbers(given.table)
        return make(given, wanted)
    except ValueError as error:
        print(f"ba_jax.evals.paper: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, OSError) as error:
        print(f"ba_jax.evals.paper: {error}", file=sys.stderr)
        return 1


def make(given: argparse.Namespace, wanted: Sequence[int]) -> int:
    """Makes tables and writes them down.

    Raises:
      EvalError, RunError, CheckpointError, ConfigError: see there.
    """
    from absl import logging

    from ba_jax.config import from_mapping
    from ba_jax.distributed import use_compilation_cache
    from ba_jax.evals.judges.recogniser import Judge, JudgeSettings
    from ba_jax.evals.paper import table as table_lib
    from ba_jax.evals.paper.published import TITLES
    from ba_jax.evals.paper.runs import NanoRuns
    from ba_jax.evals.paper.tables import Maker
    from configs.eval import get_config

    unknown = [number for number in wanted if number not in TITLES]
    if unknown:
        raise ValueError(f"--table={given.table}: no table {unknown}, expected 1 to {max(TITLES)}")
    logging.set_verbosity(logging.WARNING)
    runs = NanoRuns([given.runs.absolute(), given.out.absolute() / "runs"], given.size)
    config = get_config(runs.model).to_dict()
    config["eval"]["limit"] = given.limit
    use_compilation_cache(config.get("compilation_cache", ""))
    given.out.mkdir(parents=True, exist_ok=True)
    made = []
    with Judge(from_mapping(JudgeSettings, config["eval"]["judge"], "judge")) as judge:
        maker = Maker(runs, given.out, config, judge, retrain=given.retrain)
        for number in wanted:
            table = maker(number)
            markdown = table_lib.as_markdown(table)
            content = json.dumps(table_lib.as_json(table), ensure_ascii=False, indent=1)
            (given.out / f"table{number}.json").write_text(content + "\n", encoding="utf-8")
            (given.out / f"table{number}.md").write_text(markdown, encoding="utf-8")
            made.append(markdown)
            (given.out / "tables.md").write_text("\n".join(made), encoding="utf-8")
            print(f"\n{markdown}", flush=True)
    return 0
