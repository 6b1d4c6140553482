"""Small sharded programs for TPUs that are not there: their compiled texts are fixtures of tests.

    python -m tests.integration.plan_programs OUT.hlo NAME TOPOLOGY [open]

NAME is "plain" (a loop over layers of two products), "kernel" (gradients of a loop with splash
attention) or "chain" ("plain" with XLA's asynchronous fusions of collectives, which only effort 0
has); with "open" the slice has no links around it. It wrote tests/data/plan/{kernel,chain}.hlo
for v5p:4x4x4 with libtpu 0.0.42.1; what no test reads is cut from them.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ba_jax import sharding
from ba_jax.models.packed_attention import packed_attention
from ba_jax.plan import topology

LAYERS, LENGTH, WIDTH, FFN, HEADS, KV_HEADS, HEAD_DIM = 4, 1024, 3584, 4096, 8, 2, 128
FLAGS = (
    "--xla_tpu_enable_async_collective_fusion=true "
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true "
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true "
    "--xla_tpu_overlap_compute_collective_tc=true --xla_enable_async_all_gather=true"
)
SHAPES = {
    "plain": {"up": (WIDTH, FFN), "down": (FFN, WIDTH)},
    "kernel": {
        "query": (WIDTH, HEADS * HEAD_DIM),
        "key": (WIDTH, KV_HEADS * HEAD_DIM),
        "out": (HEADS * HEAD_DIM, WIDTH),
    },
}
SHAPES["chain"] = SHAPES["plain"]


def program(name: str) -> Callable[..., Any]:
    """The function of a program: a loop over layers; with the kernel, its gradients."""
    return jax.grad(_loss) if name == "kernel" else _loss


def _loss(weights: dict[str, Any], x_BLD: jax.Array, segments_BL: jax.Array) -> jax.Array:
    def layer(x_BLD, w):
        if "up" in w:
            return x_BLD + jax.nn.silu(x_BLD @ w["up"]) @ w["down"], None
        q_BLHD = (x_BLD @ w["query"]).reshape(*x_BLD.shape[:2], HEADS, HEAD_DIM)
        k_BLKD = (x_BLD @ w["key"]).reshape(*x_BLD.shape[:2], KV_HEADS, HEAD_DIM)
        y_BLHD = packed_attention("splash", q_BLHD, k_BLKD, k_BLKD, segments_BL)
        return x_BLD + y_BLHD.reshape(*x_BLD.shape[:2], -1) @ w["out"], None

    weights = jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights)
    y_BLD, _ = jax.lax.scan(jax.checkpoint(layer), x_BLD, weights)
    return jnp.sum(y_BLD.astype(jnp.float32) ** 2)


def arguments(name: str, rows: int = 1) -> tuple[Any, ...]:
    """Shapes of the arguments of a program."""
    weights = {
        key: jax.ShapeDtypeStruct((LAYERS, *shape), jnp.float32)
        for key, shape in SHAPES[name].items()
    }
    x_BLD = jax.ShapeDtypeStruct((rows, LENGTH, WIDTH), jnp.bfloat16)
    return weights, x_BLD, jax.ShapeDtypeStruct((rows, LENGTH), jnp.int32)


def compile_program(name: str, name_of_slice: str) -> str:
    """Compile with a row a device and every weight divided by its axis of WIDTH; return the text.

    It prepares the process, which must not have used JAX.
    """
    if name == "chain":
        os.environ["LIBTPU_INIT_ARGS"] = FLAGS
    topology.prepare_process(name_of_slice, 0.0 if name == "chain" else -1.0)
    devices = topology.open_topology(name_of_slice).devices
    mesh = sharding.make_mesh(sharding.MeshSettings(replica=1, fsdp=-1), devices)

    def placed(leaf: Any, axis: int) -> Any:
        spec = PartitionSpec(*[None] * axis, "fsdp")
        return leaf.update(sharding=NamedSharding(mesh, spec))

    weights, *rest = arguments(name, len(devices))
    weights = {key: placed(leaf, leaf.shape.index(WIDTH)) for key, leaf in weights.items()}
    rest = [placed(leaf, 0) for leaf in rest]
    places = jax.tree.map(lambda leaf: leaf.sharding, weights) if name == "kernel" else None
    function = jax.jit(sharding.under_mesh(mesh, program(name)), out_shardings=places)
    return function.trace(weights, *rest).lower(lowering_platforms=("tpu",)).compile().as_text()


def cut(text: str) -> str:
    """Leave out what no test reads: sources, layouts, and the compiler's configuration."""
    text = re.sub(r"\nFileNames\n.*?\n(?=\n%|\nENTRY)", "", text, flags=re.DOTALL)
    text = re.sub(r"(HloModule \w+).*", r"\1", text)
    text = re.sub(r"/\*index=\d+\*/", "", text)
    # Tests read the memory space of a layout alone.
    text = re.sub(r"(?<=\])\{[\d,]*(:[^{}]*)?\}", lambda match: _space(match[0]), text)
    text = re.sub(r', metadata=\{op_name="[^"]*"(?: stack_frame_id=\d+)?\}', "", text)
    return re.sub(r", (?:backend_config|operand_layout_constraints)=\{.*", "", text)


def _space(layout: str) -> str:
    space = re.search(r"S\(\d+\)", layout)
    return f"{{:{space[0]}}}" if space else ""


def main(out: str, name: str, name_of_slice: str, links: str = "around") -> None:
    """Write the text of a program."""
    if links == "open":
        topology.wrapped_axes = lambda *_: (False, False, False)
    pathlib.Path(out).write_text(cut(compile_program(name, name_of_slice)))


if __name__ == "__main__":
    main(*sys.argv[1:])
