"""Make the table of plans at full size: stages 1 and 2, the tokenizer and the flow on pods.

    python -m benchmarks.plans --out=DIR [--only=lm_stage2]

Plans run one after another in processes of their own, each some minutes of a core; JSON and output
stay in DIR, and the same command resumes an interrupted one. The table has plans that do not fit
too. DIR must be empty after a change of the planner or of a step.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ba_jax import cli

# (config, topology, rows of a chip, attention, slices); a tokenizer row has up to 230 s of audio.
PLANS = (
    *(
        (stage, topology, rows, "splash_fused", 1)
        for stage in ("lm_stage1:7b", "lm_stage2:7b")
        for topology, rows in (("v5e:16x16", 1), ("v5p:4x4x4", 1), ("v6e:16x16", 2))
    ),
    # XLA's own attention moves its scores through HBM: 63 % of all bytes on v6e.
    ("lm_stage2:7b", "v5p:4x4x4", 1, "xla", 1),
    ("lm_stage2:7b", "v6e:16x16", 2, "xla", 1),
    ("lm_stage2:7b", "v6e:16x16", 2, "splash_fused", 2),
    *(("tokenizer:1b5", topology, 1, "xla", 1) for topology in ("v5e:16x16", "v5p:4x4x4")),
    ("tokenizer:1b5", "v6e:16x16", 1, "xla", 1),
    ("flow_matching:7b", "v5e:16x16", 1, "xla", 1),
)
HEAD = (
    *("stage", "on", "rows a chip", "attention", "peak, GB of", "fits"),
    *("bound, s", "by", "serial, s", "expected, s", "MFU", "a day"),
)


def commands(only: str = "") -> dict[str, list[str]]:
    """Return name -> arguments of `ba_jax.plan`."""
    result = {}
    for config, topology, rows, attention, slices in PLANS:
        stage, _, size = config.partition(":")
        name = f"{stage}_{topology.replace(':', '_')}_{attention}" + (f"_{slices}" * (slices > 1))
        if only in name:
            result[name] = [
                f"--config=configs/{stage}.py:{size}",
                f"--topology={topology}",
                f"--rows={rows}",
                f"--config.train.attention={attention}",
                f"--slices={slices}",
            ]
    return result


def table_row(arguments: Sequence[str], plan: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a line of the table."""
    values = dict(argument.lstrip("-").split("=", 1) for argument in arguments)
    stage = Path(values["config"]).name.replace(".py", "")
    peak = f"{plan['peak_bytes'] / 1e9:.1f} of {plan['hbm_bytes'] / 1e9:.0f}"
    slices = f"{values['slices']} x " if values["slices"] != "1" else ""
    first = (stage, slices + values["topology"], values["rows"])
    first += (values["config.train.attention"], peak, "yes" if plan["fits"] else "no")
    time = plan["time"]
    if time is None:
        return (*first, *[""] * (len(HEAD) - len(first)))
    day = time["a_day"]
    if not stage.startswith("lm_"):
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
