"""Run a few steps of stages on one device and on meshes of eight, in one process.

python -m tests.integration.mesh_driver DATASET OUT.json [STAGE ...]

OUT.json: case -> result of `compare`; "uneven": error message for rows that do not divide; and,
unless stages are named, splash attention and caches on meshes. Prints CPU seconds so far.
"""

from __future__ import annotations

import json
import math
import pathlib
import re
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ba_jax import sharding
from ba_jax.config import to_mapping
from ba_jax.data.batches import open_batches
from ba_jax.models import layers
from ba_jax.models.llm import LLMConfig, init_cache, packed_mask
from ba_jax.models.packed_attention import INTERPRETED, packed_attention
from ba_jax.run_config import parse_config
from ba_jax.sharding import MeshSettings
from ba_jax.train_state import TrainLayout, init_state, make_layout, make_step
from ba_jax.tree import flatten, unflatten
from tests.unit.stages import small_run, test_flow, test_vocoder

ENVIRONMENT = {"JAX_NUM_CPU_DEVICES": "8"}
STEPS = 3
ROWS = 8
CHUNK = 16
EIGHT = {"replica": 8}
SPLIT = {"replica": 1, "fsdp": 4, "tensor": 2}
COPIES = {"replica": 2, "fsdp": 2, "tensor": 2}
ALL = {"replica": 1, "fsdp": 2, "tensor": 2, "sequence": 2}
CASES = {"lm": (ALL,)}
# Steps that take long to compile (two minutes of a core together): run only if their stage is
# named. By default test_train_devices runs text_lm too, and test_codebook updates codebooks.
NAMED = {
    "text_lm": (EIGHT,),
    "lm": (SPLIT,),
    "tokenizer": (COPIES,),
    "flow": (SPLIT,),
    "vocoder": ({"replica": 4, "fsdp": 2},),
}
# Rows, heads and positions sharded; more devices along tensor than key heads.
ATTENTION = {"splash": ALL, "splash_shared": {"replica": 1, "fsdp": 2, "tensor": 4}}


def case(stage: str, mesh: dict[str, int]) -> str:
    """Name of a case in the file."""
    return " ".join([stage, *(f"{axis}={size}" for axis, size in mesh.items())])


NAMES = [case(stage, mesh) for stage, meshes in CASES.items() for mesh in meshes]


def config_of(stage: str, dataset: pathlib.Path) -> dict[str, Any]:
    """Config of a small run."""
    rate = {"optimizer__learning_rate": 1e-3}
    lm = {"data__rows": ROWS, "stage__chunk": CHUNK, "stage__word_dropout": 0.2, **rate}
    if stage == "text_lm":
        return small_run.text_run(dataset, **lm)
    if stage == "lm":
        return small_run.codes_run(dataset, **lm)
    if stage == "tokenizer":
        return small_run.tokenizer_run(dataset, data__rows=ROWS, **rate)
    config = small_run.text_run(dataset, **rate)
    of = test_flow if stage == "flow" else test_vocoder
    config["model"] = {k: v for k, v in to_mapping(of.CONFIG).items() if v is not None}
    config["stage"] = {"name": stage}
    if stage == "vocoder":
        config["stage"] |= to_mapping(of.SETTINGS) | {"discriminator_start": 1}
    else:
        rules = ((r"(flow_prenet|flow_unet)/.*", 1.0), (".*", None))
        config["optimizer"]["rules"] = rules
    return config


def batches_of(stage: str, layout: TrainLayout) -> list[Any]:
    """Arrays of all steps."""
    if stage in ("flow", "vocoder"):
        of = test_flow if stage == "flow" else test_vocoder
        longest = 0.5 if stage == "flow" else test_vocoder.SECONDS
        seconds = longest * np.linspace(0.6, 1, ROWS)
        batch = of.batch_of(*seconds)
        return [layout.stage.arrays(batch)] * STEPS
    config = layout.config
    batches = open_batches(config.data, config.model)
    return [layout.stage.arrays(batches.build(step)) for step in range(STEPS)]


def values_of(shapes: Any) -> Any:
    """Draw variables with NumPy, without compilation; kernels are scaled by their fan-in."""
    rng = np.random.default_rng(0)

    def draw(name: str, leaf) -> np.ndarray:
        kind = name.split("/")[-1]
        if kind in ("scale", "alpha", "kernel_g") or "cluster_size" in kind:
            return np.ones(leaf.shape, leaf.dtype)
        if kind == "bias":
            return np.zeros(leaf.shape, leaf.dtype)
        scale = np.prod(leaf.shape[-2:-1]) ** -0.5 if kind.startswith("kernel") else 0.3
        return (scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    flat = {name: draw(name, leaf) for name, leaf in flatten(shapes).items()}
    for name in flat:  # sums of the frames that codebook rows are means of
        if "/embed_avg_" in name:
            flat[name] = flat[name.replace("embed_avg_", "embed_")].copy()
    return unflatten(flat)


def run(layout: TrainLayout, values: Any, batches: list[Any]) -> dict[str, Any]:
    """Losses, gradient norms, the last state, and the largest float32 array of a device."""
    placed = jax.tree.map(jax.device_put, values, layout.variable_shardings)
    state = init_state(layout, placed)
    arrays = [sharding.to_devices(batch, layout.mesh) for batch in batches]
    step = make_step(layout).lower(state, arrays[0], layout.step_key).compile()
    text = step.as_text()
    shapes = re.findall(r"\bf32\[([\d,]+)\]", text)
    result = {"loss": [], "grad_norm": [], "largest": max(map(_size, shapes))}
    result["in_loops"] = largest_collective_of_target_loops(text)
    for batch in arrays:
        state, metrics = step(state, batch, layout.step_key)
        for name in ("loss", "grad_norm"):
            result[name].append(float(metrics[name]))
        assert metrics["finite"]
    result["state"] = jax.tree_util.tree_flatten_with_path(jax.device_get(state))[0]
    return result


def largest_collective_of_target_loops(text: str) -> int | None:
    """Largest result of the collectives in loops without a fixed length: those over targets.

    None without such loops.
    """
    whiles = [line for line in text.splitlines() if " while(" in line]
    bodies = {
        re.search(r"body=%([\w.\-]+)", line)[1] for line in whiles if "trip_count" not in line
    }
    if not bodies:
        return None
    kinds = r"all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    largest = 0
    for name in bodies:
        body = re.search(rf"^%{re.escape(name)} .*?^}}", text, re.MULTILINE | re.DOTALL)[0]
        for result in re.findall(rf" = (.*?) (?:{kinds})(?:-start)?\(", body):
            sizes = re.findall(r"\[([\d,]*)\]", result)
            largest = max([largest, *(_size(size) for size in sizes if size)])
    return largest


def _size(dimensions: str) -> int:
    return math.prod(map(int, dimensions.split(",")))


def compare(single: dict[str, Any], many: dict[str, Any]) -> dict[str, float]:
    """Largest differences of losses and norms (relative) and of the values of the state."""
    result = {}
    for name in ("loss", "grad_norm"):
        expected, actual = np.array(single[name]), np.array(many[name])
        result[name] = float(np.max(np.abs(actual / expected - 1)))
    result["state"] = 0.0
    for (_, expected), (_, actual) in zip(single["state"], many["state"], strict=True):
        if jax.dtypes.issubdtype(expected.dtype, jax.dtypes.prng_key):
            continue
        apart = np.abs(np.asarray(actual, np.float64) - expected) / (1 + np.abs(expected))
        result["state"] = max(result["state"], float(np.max(apart, initial=0)))
    return result


def mesh_of(sizes: dict[str, int] | None) -> Mesh:
    """A mesh of all devices; None: of one device."""
    if sizes is None:
        return sharding.make_mesh(MeshSettings(), jax.devices()[:1])
    return sharding.make_mesh(MeshSettings(**sizes))


def attention_apart(mesh: Mesh) -> list[float]:
    """Largest differences between splash and XLA attention: result and gradients."""
    heads, kv_heads = (4, 2)
    segments = jnp.asarray(np.repeat([[1, 2, 0], [1, 1, 1]], [60, 160, 36], axis=1))
    rng = np.random.default_rng(0)
    q, k, v, weights = (
        rng.normal(size=(2, 256, number, 128)).astype(np.float32)
        for number in (heads, kv_heads, kv_heads, heads)
    )

    def gradients(kind: str):
        def loss(q, k, v):
            if kind == "xla":
                y = layers.attention(q, k, v, packed_mask(segments))
            else:
                y = packed_attention(kind, q, k, v, segments)
            y = jnp.where((segments > 0)[:, :, None, None], y, 0)
            return jnp.sum(y * weights), y

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)

    want = jax.jit(gradients("xla"))(q, k, v)
    places = sharding.replicated(mesh)
    splash = jax.jit(sharding.under_mesh(mesh, gradients(INTERPRETED)))(
        *(jax.device_put(array, places) for array in (q, k, v))
    )
    pairs = zip(jax.tree.leaves(splash), jax.tree.leaves(want), strict=True)
    return [float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs]


def main(dataset: str, out: str, *stages: str) -> None:
    """Run the cases (of these stages) and write the results."""
    results: dict[str, Any] = {}
    for stage in stages or CASES:
        meshes = NAMED[stage] if stages else CASES[stage]
        config = parse_config(config_of(stage, pathlib.Path(dataset)))
        alone_layout = make_layout(config, mesh_of(None))
        batches, values = batches_of(stage, alone_layout), values_of(alone_layout.shapes)
        alone = run(alone_layout, values, batches)
        for sizes in meshes:
            many = run(make_layout(config, mesh_of(sizes)), values, batches)
            results[case(stage, sizes)] = compare(alone, many)
            if "ids_BL" in batches[0]:
                logits = batches[0]["ids_BL"].size * config.model["llm"]["vocab_size"]
                share = {"largest": many["largest"], "logits": logits // 8}
                # A chunk's activations in the audio head: two depths, twice as wide as D.
                most = 4 * CHUNK * config.model["llm"]["width"]
                share |= {"in_loops": many["in_loops"], "chunk": most}
                results[case(stage, sizes)] |= share
        print(stage, time.process_time(), flush=True)
    if stages:
        pathlib.Path(out).write_text(json.dumps(results, indent=1))
        return
    for name, sizes in ATTENTION.items():
        results[name] = attention_apart(mesh_of(sizes))
    mesh = mesh_of(SPLIT)
    llm = LLMConfig(**small_run.LLM | {"kv_heads": 2})
    make = sharding.under_mesh(
        mesh,
        lambda zero: init_cache(llm, ROWS, 4, "float32")._replace(lengths_B=jnp.full(ROWS, zero)),
    )
    cache = jax.jit(make)(jax.device_put(np.int32(0), sharding.replicated(mesh)))
    results["cache"] = list(cache.k_EBKPD.sharding.spec)
    try:
        mesh = mesh_of(EIGHT)
        sharding.to_devices({"ids_BL": np.zeros((6, 4), np.int32)}, mesh)
    except sharding.ShardingError as error:
        results["uneven"] = str(error)
    try:
        sharding.inference_mesh(MeshSettings(**EIGHT), {"generation.rows": 12})
    except sharding.ShardingError as error:
        results["uneven generation"] = str(error)
    pathlib.Path(out).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
