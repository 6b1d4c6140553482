"""Plan the text step of a 7 B model beside another framework's, compiled for the same chips.

    python -m benchmarks.peer_plans --topology=v5p:4x4x4 --rows=1
    python -m benchmarks.peer_plans --topology=v5p:4x4x4 --rows=1 --peer=maxtext \
        --peer_python=VENV/bin/python --ours stage.chunk=0 --peers remat_policy=minimal

The work is Qwen2.5-7B on full rows of 4,096 positions of text: AdamW with float32 weights and
moments, bfloat16, full remat, FSDP over all chips, splash attention. Both programs are compiled by
the same libtpu and read by `ba_jax.plan`; the peer's comes from its own code, in a Python where it
is installed (`pip install --no-deps maxtext==0.2.5`, and by hand what it imports). `--ours` and
`--peers` change settings of either side.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from ba_jax import cli
from ba_jax.plan import costs
from ba_jax.plan.report import format_amount, format_bytes, format_seconds, format_table
from ba_jax.plan.topology import Topology, open_topology, prepare_process

ROOT = Path(__file__).resolve().parents[1]
LENGTH = 4096
PEERS = ("maxtext",)
MAXTEXT = (
    *("model_name=qwen2.5-7b", f"max_target_length={LENGTH}", "compile_topology_num_slices=1"),
    *(
        "remat_policy=full",
        "attention=flash",
        "dataset_type=synthetic",
        "enable_checkpointing=false",
    ),
)


def plan_ours(topology: Topology, rows: int, changes: Sequence[str]) -> dict[str, Any]:
    """Compile our step; return its figures, see `figures`."""
    # The peer's Python reads this file without what these need.
    from ba_jax.plan.planner import plan_training
    from ba_jax.run_config import parse_config
    from configs import common, mixtures

    config = common.at_scale(common.base("7b", "text_lm"))
    config.data = mixtures.get_config("lm")
    config.optimizer.rules = ((".*", 1.0),)
    config.train.attention = "splash"
    for change in changes:
        key, _, value = change.partition("=")
        section, name = key.split(".")
        config[section][name] = type(config[section][name])(value)
    plan = plan_training(parse_config(config), topology, rows=rows, audio_share=0.0)
    return figures(plan.compiled, topology) | {"model_flops": plan.model_flops}


def plan_maxtext(topology: Topology, rows: int, changes: Sequence[str]) -> dict[str, Any]:
    """Compile MaxText's step by its own `train_compile`; return its figures."""
    from jax.experimental import xla_metadata

    # A kernel that is not used here imports it; JAX 0.10 has none.
    xla_metadata.__dict__.setdefault("must_fuse_call", None)
    import maxtext
    from maxtext.trainers.pre_train import train_compile
    from maxtext.utils.accelerator_to_spec_map import UserFacingNameToSystemCharacteristics

    chip, _, shape = topology.name.partition(":")
    names = (topology.name, f"v5:{shape}" if chip == "v5p" else "")
    slices = UserFacingNameToSystemCharacteristics.items()
    target = next(name for name, figures in slices if figures.topology_name in names)
    steps: list[costs.CompiledStep] = []

    def compile_and_count(
        function, arguments, keywords, mesh, in_shardings, out_shardings, static, donated, _, rules
    ):
        with jax.set_mesh(mesh), rules:
            jitted = jax.jit(
                function,
                in_shardings=in_shardings,
                out_shardings=out_shardings,
                static_argnums=static,
                donate_argnums=donated,
            )
            steps.append(costs.compile_step(jitted, arguments, topology))

    train_compile.jit_and_compile = compile_and_count
    base = Path(maxtext.__file__).parent / "configs" / "base.yml"
    settings = [*MAXTEXT, f"compile_topology={target}", f"per_device_batch_size={rows}"]
    settings += [f"base_output_directory={tempfile.gettempdir()}", *changes]
    train_compile.is_oom(["", str(base), *settings])
    return figures(steps[0], topology)


def figures(step: costs.CompiledStep, topology: Topology) -> dict[str, Any]:
    """Figures of a compiled step in plain types."""
    time = costs.step_time(
        topology,
        0.0,
        step.device_flops,
        step.bytes_accessed,
        step.collectives,
        step.serial,
        trains=True,
    )
    sums = step.collectives.values()
    return {
        "device_flops": step.device_flops,
        "program_flops": step.program_flops,
        "arguments": step.memory.arguments,
        "temporaries": step.memory.temporaries,
        "peak": step.memory.peak,
        "bytes_accessed": step.bytes_accessed,
        "received": sum(kind.received for kind in sums),
        "asynchronous": sum(kind.asynchronous for kind in sums),
        "compute": time.compute,
        "hbm": time.hbm,
        "ici": time.ici,
        "bound": time.bound,
        "serial": time.serial,
        "expected": time.expected,
        "unknown": list(step.unknown),
    }


_ROWS = {
    "device_flops": ("FLOPs traced, all chips", format_amount),
    "program_flops": ("FLOPs of the program, a chip", format_amount),
    "arguments": ("arguments", format_bytes),
    "temporaries": ("temporaries", format_bytes),
    "peak": ("peak", format_bytes),
    "bytes_accessed": ("HBM bytes", format_bytes),
    "received": ("received over ICI", format_bytes),
    "asynchronous": ("of it asynchronous", format_bytes),
    "compute": ("compute", format_seconds),
    "hbm": ("HBM", format_seconds),
    "ici": ("ICI", format_seconds),
    "bound": ("bound", format_seconds),
    "serial": ("serial roofline", format_seconds),
    "expected": ("expected", format_seconds),
}


def format_sides(sides: Mapping[str, Mapping[str, Any]], tokens: float, full: float) -> list[str]:
    """Format the figures of both sides as a table.

    `tokens` are those of a chip's step, `full` the time of the model's FLOPs at the chips' peak.
    """
    rows = [("a chip, a step", *sides)]
    for key, (name, show) in _ROWS.items():
        rows.append((name, *(show(side[key]) if side[key] else "" for side in sides.values())))
    for name, key in (("MFU of the serial roofline", "serial"), ("MFU to expect", "expected")):
        rows.append((name, *(f"{full / s[key]:.1%}" if s[key] else "" for s in sides.values())))
    speeds = (f"{tokens / s['expected']:,.0f}" if s["expected"] else "" for s in sides.values())
    return format_table([*rows, ("tokens a chip-second", *speeds)])


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = cli.Parser("benchmarks.peer_plans", __doc__.splitlines()[0])
    parser.add_argument("--topology", required=True, help="CHIP:SHAPE, such as v5p:4x4x4")
    parser.add_argument("--rows", type=cli.at_least(1), default=1, help="rows of each chip")
    parser.add_argument("--effort", type=float, default=-1.0, help="XLA's optimisation effort")
    parser.add_argument("--peer", choices=PEERS, help="the other framework")
    parser.add_argument("--peer_python", type=cli.path, help="a Python where it is installed")
    parser.add_argument("--ours", nargs="*", default=[], help="SECTION.KEY=VALUE of our config")
    parser.add_argument("--peers", nargs="*", default=[], help="KEY=VALUE of the peer's")
    parser.add_argument("--json", type=cli.path, help="file for all figures")
    parser.add_argument("--side", choices=PEERS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.peer and not options.peer_python:
        parser.error(f"--peer={options.peer}: expected --peer_python, where it is installed")
    sides = {}
    if options.peer:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "peer.json"
            line = [str(options.peer_python), "-m", "benchmarks.peer_plans", f"--json={out}"]
            line += [f"--topology={options.topology}", f"--rows={options.rows}"]
            line += [f"--effort={options.effort}", f"--side={options.peer}"]
            subprocess.run([*line, "--peers", *options.peers], cwd=ROOT, check=True)
            sides[options.peer] = json.loads(out.read_text())
    prepare_process(options.topology, options.effort)
    topology = open_topology(options.topology)
    if options.side:
        side = plan_maxtext(topology, options.rows, options.peers)
        options.json.write_text(json.dumps(side))
        return
    sides["ours"] = plan_ours(topology, options.rows, options.ours)
    full = sides["ours"]["model_flops"] / (topology.chips * topology.chip.peak)
    print("\n".join(format_sides(sides, options.rows * LENGTH / topology.share, full)))
    if options.json:
        options.json.write_text(json.dumps(sides, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
