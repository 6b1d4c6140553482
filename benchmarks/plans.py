"""Make the table of plans at full size: stages 1 and 2 and the tokenizer on three pods.

    python -m benchmarks.plans --out=DIR [--only=lm_stage2]

Plans run one after another in processes of their own, each some minutes of a core; JSON and output
stay in DIR, and the same command resumes an interrupted one. The table has plans that do not fit
too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ba_jax import cli

STAGES = ("lm_stage1:7b", "lm_stage2:7b", "tokenizer:1b5")
# Rows of each chip, for the language model and for the tokenizer (230 s of audio a row).
ROWS = {"v5e:16x16": (1, 1), "v5p:4x4x4": (1, 1), "v6e:16x16": (2, 1)}
SPLASH = "--config.train.attention=splash"
HEAD = (
    *("stage", "on", "rows a chip", "peak, GB of", "fits"),
    *("bound, s", "by", "serial, s", "expected, s", "MFU", "a day"),
)


def commands(only: str = "") -> dict[str, list[str]]:
    """Return name -> arguments of `ba_jax.plan`."""
    result = {}
    for stage in STAGES:
        for topology, (rows, tokenizer_rows) in ROWS.items():
            name, _, size = stage.partition(":")
            count = tokenizer_rows if name == "tokenizer" else rows
            if only in name:
                result[f"{name}_{topology.replace(':', '_')}"] = [
                    f"--config=configs/{name}.py:{size}",
                    f"--topology={topology}",
                    f"--rows={count}",
                ]
                if name != "tokenizer":
                    # XLA's own attention moves its scores through HBM: 63 % of all bytes on v6e.
                    result[f"{name}_{topology.replace(':', '_')}"].append(SPLASH)
    return result


def table_row(arguments: Sequence[str], plan: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a line of the table."""
    values = dict(argument.lstrip("-").split("=", 1) for argument in arguments)
    stage = Path(values["config"]).name.replace(".py", "")
    peak = f"{plan['peak_bytes'] / 1e9:.1f} of {plan['hbm_bytes'] / 1e9:.0f}"
    first = (stage, values["topology"], values["rows"], peak, "yes" if plan["fits"] else "no")
    time = plan["time"]
    if time is None:
        return (*first, *[""] * (len(HEAD) - len(first)))
    day = time["a_day"]
    if stage.startswith("tokenizer"):
        amount = f"{day['audio_seconds'] / 3.6e9:.2f} M hours"
    else:
        amount = f"{day['tokens'] / 1e9:.1f} G tokens"
    seconds = (time[name] for name in ("serial", "expected"))
    serial, expected = ("" if value is None else f"{value:.2f}" for value in seconds)
    bound = (f"{time['bound']:.2f}", time["by"])
    return (*first, *bound, serial, expected, f"{time['mfu']:.0%}", amount)


def main() -> None:
    parser = cli.Parser("benchmarks.plans", __doc__.splitlines()[0])
    parser.add_argument("--out", type=cli.path, required=True, help="folder of JSON and output")
    parser.add_argument("--only", default="", help="only stages with this in their name")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [HEAD, ("---",) * len(HEAD)]
    for name, arguments in commands(options.only).items():
        path = options.out / f"{name}.json"
        if not path.exists():
            line = [sys.executable, "-m", "ba_jax.plan", *arguments, f"--json={path}"]
            with (options.out / f"{name}.txt").open("w") as file:
                done = subprocess.run(line, stdout=file, stderr=subprocess.STDOUT)
            if not path.exists():
                sys.exit(f"{name}: exit code {done.returncode}, see {file.name}")
        rows.append(table_row(arguments, json.loads(path.read_text())))
        print(f"| {' | '.join(rows[-1])} |", flush=True)
    print("\n".join(["", *(f"| {' | '.join(cells)} |" for cells in rows)]))


if __name__ == "__main__":
    main()
