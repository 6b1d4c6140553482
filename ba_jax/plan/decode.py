"""A step of generation to plan: an id of text or a frame of speech for every row.

It is the step of `ba_jax.sampling`, with its cache and its sampling. All rows are in the same mode,
so the head of the other mode is not compiled.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ba_jax import sharding
from ba_jax.audio.lengths import FRAME_SECONDS
from ba_jax.config import from_mapping
from ba_jax.metrics import flops
from ba_jax.models.baichuan_audio import BaichuanAudioConfig, init_variables
from ba_jax.plan.topology import PlanError
from ba_jax.sampling.alternate import (
    AUDIO,
    FIRST_TEXT,
    SPEAKING,
    WRITING,
    TextVocabulary,
    TurnLimits,
)
from ba_jax.sampling.settings import GenerationSettings
from ba_jax.sampling.step import ModelRunner, State
from ba_jax.tree import flatten
from ba_jax.vocab import LANGUAGE_MODEL

KINDS = {"text": WRITING, "frame": SPEAKING}
_TURN = 512  # capacity of a turn in ids and frames


@dataclasses.dataclass(frozen=True)
class DecodeStep:
    """A step of generation.

    Attributes:
      function: jitted; it donates the state.
      arguments: shapes with shardings.
      parameters: component -> number of parameters.
      amounts: "tokens" (text) or "frames" and "audio_seconds" of a step, all rows.
      flops: FLOPs of the model, all rows.
      bytes: bytes that a copy of the model has to read, see `needed_bytes`.
    """

    function: Callable
    arguments: tuple[Any, ...]
    parameters: dict[str, int]
    amounts: dict[str, float]
    flops: float
    bytes: float


def make_decode_step(
    model: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
    kind: str,
    *,
    rows: int = 1,
    context: int = 2048,
    dtype: Any = jnp.bfloat16,
) -> DecodeStep:
    """Make a step of generation on a mesh.

    Args:
      model: the model's config.
      mesh: rows are divided over replica and fsdp, heads over tensor.
      kind: "text" or "frame".
      rows: rows of the whole mesh.
      context: slots of the cache, all filled.
      dtype: type of parameters, cache and computation.

    Raises:
      PlanError: a model without audio, or rows that are not a multiple of the mesh's.
    """
    config = from_mapping(BaichuanAudioConfig, model, "model").only(*LANGUAGE_MODEL)
    if config.components != LANGUAGE_MODEL:
        raise PlanError(f"model of {config.components}: expected {LANGUAGE_MODEL} to generate with")
    shards = sharding.batch_shards(mesh)
    if rows < 1 or rows % shards or context < 2:
        raise PlanError(
            f"{rows} rows with {context} positions on a mesh {dict(mesh.shape)}: expected a "
            f"multiple of {shards} rows, and at least 2"
        )
    shapes = jax.eval_shape(functools.partial(init_variables, config), jax.random.key(0))
    variables = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=where),
        shapes,
        sharding.variable_shardings(shapes, mesh, config.heads),
    )
    end_of_text = min(set(range(config.llm.vocab_size)) - {*dataclasses.astuple(config.tokens)})
    runner = ModelRunner(
        config,
        variables,
        TextVocabulary(end_of_text, np.ones(config.llm.vocab_size, bool)),
        GenerationSettings(
            text=FIRST_TEXT,
            audio=AUDIO,
            rows=rows,
            lengths=(1,),
            max_text=_TURN,
            max_frames=_TURN,
            capacity=context,
        ),
        dtype=dtype,
    )

    def step(variables, state: State, keys_B, limits: TurnLimits) -> State:
        # A constant mode leaves the head of the other mode out.
        mode_B = jnp.full((rows,), KINDS[kind], jnp.int32)
        state = state._replace(turn=state.turn._replace(mode_B=mode_B))
        return runner.step(variables, state, keys_B, limits)

    state = _state(runner, config, mesh)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    limits = TurnLimits(*(np.zeros((rows,), t) for t in (np.int32, np.int32, bool)))
    arguments = (variables, state, *_over_rows((keys, limits), mesh))
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    function = jax.jit(sharding.under_mesh(mesh, step), donate_argnums=1, out_shardings=places)
    counts = {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for name, tree in variables["params"].items()
    }
    total = flops.llm(config.llm, rows, rows * context, rows if kind == "text" else 0)
    amounts = {"tokens": float(rows)}
    if kind == "frame":
        total += flops.audio_head(config.audio_head, rows)
        amounts = {"frames": float(rows), "audio_seconds": rows * FRAME_SECONDS}
    return DecodeStep(
        function,
        arguments,
        counts,
        amounts,
        float(total),
        needed_bytes(config, kind, rows // shards, context, jnp.dtype(dtype).itemsize),
    )


def needed_bytes(
    config: BaichuanAudioConfig, kind: str, rows: int, context: int, size: int
) -> float:
    """Bytes that a step has to read.

    Each weight that it uses counts once, those of the audio head's attention once a depth, and keys
    and values of the context. `size` is the size of a value in bytes.
    """
    shapes = jax.eval_shape(functools.partial(init_variables, config), jax.random.key(0))
    total = 0
    for name, leaf in flatten(shapes["params"]).items():
        component, _, rest = name.partition("/")
        values = math.prod(leaf.shape)
        if component == "llm" and not rest.startswith(("embedding", "lm_head")):
            total += values
        if kind == "text":
            head = "embedding" if config.llm.tied_embeddings else "lm_head"
            total += values * (name == f"llm/{head}")
        elif component == "audio_head":
            attention = rest.split("/")[1] in ("query", "key", "value", "out", "attention_norm")
            total += values * (config.audio_head.depth if attention else 1)
    llm = config.llm
    total += 2 * llm.layers * llm.kv_heads * llm.head_dim * context * rows
    return float(total * size)


def _over_rows(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    where = sharding.batch_sharding(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree
    )


def _state(runner: ModelRunner, config: BaichuanAudioConfig, mesh: jax.sharding.Mesh) -> State:
    """Return the state's shapes; rows over the batch's axes, the cache's heads over tensor."""
    heads = sharding.LOGICAL_AXES["kv_heads"]
    if config.llm.kv_heads % mesh.shape[heads]:
        heads = None
    axes = (None, sharding.LOGICAL_AXES["batch"], heads)
    where = NamedSharding(mesh, PartitionSpec(*axes))
    state = _over_rows(runner.state_shapes(), mesh)
    cache = {
        name: leaf.update(sharding=where)
        for name, leaf in state.cache._asdict().items()
        if name != "lengths_B"
    }
    return state._replace(cache=state.cache._replace(**cache))
