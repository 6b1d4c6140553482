"""Plan a small run for four TPUs, unchanged and with faults, and write the plans.

    python -m tests.integration.plan_driver OUT.json NAME ...

NAME is "as it is", a fault of FAULTS, "frame" (a step of generation), "two slices" or "too large".
libtpu needs a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable
from unittest import mock

from ba_jax import sharding
from ba_jax.models import layers
from ba_jax.plan import planner
from ba_jax.plan.report import StepPlan, as_dict
from ba_jax.plan.topology import Topology, open_topology, prepare_process
from ba_jax.run_config import RunConfig, parse_config
from ba_jax.sharding import MeshSettings
from configs import lm_stage2

NAME = "v5e:2x2"
# Wide enough that weights dominate, and quick to compile.
LLM = {
    "vocab_size": 2048,
    "width": 512,
    "layers": 4,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 128,
    "ffn_width": 2048,
}
CODEBOOKS = (512, 256)


def config() -> RunConfig:
    """Return stage 2 with the settings of a pod and a small model."""
    values = lm_stage2.get_config("nano_codes")
    values.model.llm = LLM
    values.model.vq_bridge.codebook_sizes = CODEBOOKS
    values.model.audio_embed = {"width": 512, "codebook_sizes": CODEBOOKS}
    values.model.audio_head = {"width": 512, "layers": 1, "codebook_sizes": CODEBOOKS}
    values.stage.update({"chunk": 256, "full_head_every": 1})
    names = ("codebook_dropout", "frame_dropout", "word_dropout", "speech_dropout")
    values.stage.update(dict.fromkeys(names, 0.0))
    values.data.update({"row_length": 512, "rows": 4})
    values.mesh.update({"replica": 1, "fsdp": 4})
    values.train.update({"dtype": "bfloat16", "remat": "full"})
    return parse_config(values)


def replicate(topology: Topology) -> StepPlan:
    """Plan with a rule that replicates the largest matrices; shapes show it."""
    rule = (r"llm/layers/(gate|up|down)/kernel", ())
    with mock.patch.object(sharding, "RULES", (rule, *sharding.RULES)):
        topology = dataclasses.replace(topology, compiles=False)
        return planner.plan_training(config(), topology, audio_share=0.5)


def drop_remat(topology: Topology) -> StepPlan:
    """Plan with layers that ignore the remat policy."""
    stack_layers = layers.stack_layers

    def without(*arguments, remat, **options):
        return stack_layers(*arguments, remat="none", **options)

    with mock.patch.object(layers, "stack_layers", without):
        return planner.plan_training(config(), topology, audio_share=0.5)


FAULTS: dict[str, Callable[[Topology], StepPlan]] = {
    "replicated": replicate,
    "no remat": drop_remat,
}


def too_large(topology: Topology) -> dict:
    """Plan a batch that is too large for a v5e."""
    run = config()
    data = dict(run.data) | {"row_length": 4096}
    train = dataclasses.replace(run.train, remat="none")
    try:
        run = dataclasses.replace(run, data=data, train=train)
        planner.plan_training(run, topology, rows=64, audio_share=0.5)
    except planner.DoesNotFit as error:
        plan = error.plan
        plans = {"peak_bytes": plan.peak_bytes, "hbm_bytes": plan.hbm_bytes}
        return plans | {"message": str(error), "advice": error.advice}
    return {"message": ""}


def main(out: str, *names: str) -> None:
    prepare_process(NAME)
    topology, plans = open_topology(NAME), {}
    for name in names:
        if name == "too large":
            plans[name] = too_large(topology)
            continue
        if name == "frame":
            plan = planner.plan_decoding(
                config().model, MeshSettings(), topology, "frame", rows=1, context=256
            )
        elif name == "two slices":
            two = open_topology(NAME, 2)
            plan = planner.plan_training(config(), two, rows=1, audio_share=0.5)
        elif name in FAULTS:
            plan = FAULTS[name](topology)
        else:
            plan = planner.plan_training(config(), topology, audio_share=0.5)
        plans[name] = as_dict(plan)
    pathlib.Path(out).write_text(json.dumps(plans, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
