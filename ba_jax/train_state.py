"""Training state: its arrays, their layout on a mesh, and the jitted training step.

Nothing here touches data or device memory before `init_state`, so a run can be compiled and planned
for a mesh that does not exist (`ba_jax.plan`).

Parameters are flat dicts, `component/.../leaf` to array, split into trained and frozen ones: the
loss is differentiated in the trained ones alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ba_jax import optim, sharding
from ba_jax.run_config import DTYPES, RunConfig, make_stage
from ba_jax.stages.base import Aux, Stage, StageError, Variables
from ba_jax.tree import flatten, unflatten
from ba_jax.vocab import SPEECH_ENCODER

Arrays = Mapping[str, jax.Array]


class TrainState(NamedTuple):
    """Everything that a training step reads and writes.

    Attributes:
      step: int32, number of steps done.
      trained, frozen: flat dicts of parameters.
      codebook, buffers: the other collections of the variables, nested.
      optimizer: optimizer state of the trained parameters.
      ema: moving average of the trained parameters, float32; {} without one.
      extra: state of the stage, see `Stage.init_extra`.
    """

    step: jax.Array
    trained: dict[str, jax.Array]
    frozen: dict[str, jax.Array]
    codebook: dict[str, Any]
    buffers: dict[str, Any]
    optimizer: Any
    ema: dict[str, jax.Array]
    extra: Any

    def variables(self, averaged: bool = False) -> Variables:
        """Variables to apply the model with. If `averaged`, the EMA replaces the parameters."""
        trained = self.ema if averaged and self.ema else self.trained
        return _variables(trained, self)


def _variables(trained: dict[str, jax.Array], state: TrainState) -> Variables:
    """Variables with the given trained parameters; empty collections are left out."""
    collections = {"codebook": state.codebook, "buffers": state.buffers}
    params = unflatten({**trained, **state.frozen})
    return {"params": params} | {name: tree for name, tree in collections.items() if tree}


# --- checkpoint items ---------------------------------------------------------------------------


def to_checkpoint(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a state into the items of a checkpoint: (weights for everybody, rest for the run)."""
    train = {"step": state.step, "optimizer": state.optimizer, "extra": state.extra}
    if state.ema:
        train |= {"trained": state.trained, "average": state.ema}
    train = {name: tree for name, tree in train.items() if jax.tree.leaves(tree)}
    return state.variables(averaged=True), train


def from_checkpoint(
    shapes: TrainState, weights: Mapping[str, Any], train: Mapping[str, Any]
) -> TrainState:
    """Inverse of `to_checkpoint`; `shapes` is the state's structure."""
    flat = flatten(weights["params"])
    return TrainState(
        step=train["step"],
        trained=train.get("trained", {name: flat[name] for name in shapes.trained}),
        frozen={name: flat[name] for name in shapes.frozen},
        codebook=weights.get("codebook", {}),
        buffers=weights.get("buffers", {}),
        optimizer=train.get("optimizer", shapes.optimizer),
        ema=train.get("average", {}),
        extra=train.get("extra", shapes.extra),
    )


# --- layout -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TrainLayout:
    """Everything about a run that its config and mesh determine.

    Attributes:
      config: the run's config.
      mesh: device mesh.
      stage: the stage that trains.
      init_key, eval_key, step_key, data_key: random keys of start values, evaluations, steps, and
        start values that depend on data.
      multipliers: parameter -> learning-rate multiplier; None: frozen.
      counts: component -> (its parameters, how many of them train).
      optimizer: optimizer of the trained parameters.
      shapes: shapes of the stage's variables.
      variable_shardings: a tree like `shapes`.
      state_shapes: shapes, types and shardings of the training state.
    """

    config: RunConfig
    mesh: Mesh
    stage: Stage
    init_key: jax.Array
    eval_key: jax.Array
    step_key: jax.Array
    data_key: jax.Array
    multipliers: dict[str, float | None]
    counts: dict[str, tuple[int, int]]
    optimizer: optax.GradientTransformation
    shapes: Variables
    variable_shardings: Variables
    state_shapes: TrainState

    @property
    def state_shardings(self) -> TrainState:
        """Shardings of the training state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.state_shapes)

    @property
    def trained_components(self) -> frozenset[str]:
        """Components most of whose parameters train."""
        return frozenset(
            name for name, (total, trained) in self.counts.items() if 2 * trained > total
        )


def make_layout(config: RunConfig, mesh: Mesh) -> TrainLayout:
    """Lay a run out on a mesh.

    Raises:
      ConfigError, OptimError, StageError, ShardingError: the config is wrong.
    """
    stage = make_stage(config, mesh.devices.flat[0].platform)
    if mesh.shape["sequence"] > 1 and not stage.divides_positions:
        raise sharding.ShardingError(
            f"stage {stage.name} on mesh.sequence = {mesh.shape['sequence']}: expected 1, it does "
            "not divide positions"
        )
    keys = jax.random.split(jax.random.key(config.seed), 4)
    init_key, eval_key, step_key, data_key = keys
    shapes = jax.eval_shape(stage.init, init_key)
    flat = {name: leaf.shape for name, leaf in flatten(shapes["params"]).items()}
    multipliers = optim.learning_rate_multipliers(flat, config.optimizer.rules)
    trained = {name: value for name, value in multipliers.items() if value is not None}
    optimizer = optim.make_optimizer(config.optimizer, trained, flat, config.train.steps)
    build = _state_builder(config, stage, multipliers, optimizer)
    state_shapes = jax.eval_shape(build, shapes)
    heads = stage.config.heads
    return TrainLayout(
        config=config,
        mesh=mesh,
        stage=stage,
        init_key=init_key,
        eval_key=eval_key,
        step_key=step_key,
        data_key=data_key,
        multipliers=multipliers,
        counts=_count_parameters(flat, trained),
        optimizer=optimizer,
        shapes=shapes,
        variable_shardings=sharding.variable_shardings(shapes, mesh, heads),
        state_shapes=_place_state(state_shapes, mesh, heads),
    )


def _count_parameters(
    shapes: Mapping[str, tuple[int, ...]], trained: Mapping[str, float]
) -> dict[str, tuple[int, int]]:
    """Component -> (its parameters, how many of them train)."""
    counts: dict[str, tuple[int, int]] = {}
    for name, shape in sorted(shapes.items()):
        component, size = name.split("/")[0], int(np.prod(shape))
        total, training = counts.get(component, (0, 0))
        counts[component] = (total + size, training + size * (name in trained))
    return counts


def _place_state(shapes: TrainState, mesh: Mesh, heads: sharding.Heads) -> TrainState:
    """Add shardings to a state's shapes; optimizer state and EMA lie with their parameters."""

    def place(path, leaf):
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        names = [key for key in keys if key in shapes.trained or key in shapes.frozen]
        if names:
            where = sharding.variable_sharding(f"params/{names[-1]}", leaf.shape, mesh, heads)
        elif not leaf.shape:
            where = sharding.replicated(mesh)
        else:
            name = "/".join((path[0].name, *map(str, keys)))
            where = sharding.variable_sharding(name, leaf.shape, mesh, heads)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree_util.tree_map_with_path(place, shapes)


def new_state(
    variables: Variables,
    stage: Stage,
    multipliers: Mapping[str, float | None],
    optimizer: optax.GradientTransformation,
    settings: optim.OptimizerSettings,
    frozen_param_dtype: Any = jnp.float32,
) -> TrainState:
    """The state before the first step; works under jit and `eval_shape`.

    Frozen parameters are cast to `frozen_param_dtype`, except the tokenizer's, as its codes would
    change.
    """
    flat = flatten(variables["params"])
    trained = {name: leaf for name, leaf in flat.items() if multipliers[name] is not None}
    frozen = {
        name: leaf if name.split("/")[0] in SPEECH_ENCODER else leaf.astype(frozen_param_dtype)
        for name, leaf in flat.items()
        if multipliers[name] is None
    }
    ema = {}
    if settings.ema_decay:
        ema = {name: leaf.astype(jnp.float32) for name, leaf in trained.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trained=trained,
        frozen=frozen,
        codebook=variables.get("codebook", {}),
        buffers=variables.get("buffers", {}),
        optimizer=optimizer.init(trained),
        ema=ema,
        extra=stage.init_extra(variables),
    )


def _state_builder(config: RunConfig, stage, multipliers, optimizer):
    return functools.partial(
        new_state,
        stage=stage,
        multipliers=multipliers,
        optimizer=optimizer,
        settings=config.optimizer,
        frozen_param_dtype=DTYPES[config.train.frozen_param_dtype],
    )


def init_state(layout: TrainLayout, variables: Variables) -> TrainState:
    """The state before the first step, on the devices; the variables are donated."""
    build = _state_builder(layout.config, layout.stage, layout.multipliers, layout.optimizer)
    return jax.jit(build, out_shardings=layout.state_shardings, donate_argnums=0)(variables)


# --- step ---------------------------------------------------------------------------------------

Step = Callable[[TrainState, Arrays, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def make_step(layout: TrainLayout) -> Step:
    """The jitted step of a run, see `step_function`; it donates the state."""
    config = layout.config
    step = step_function(
        layout.stage,
        layout.optimizer,
        config.optimizer,
        optim.learning_rate_schedule(config.optimizer, config.train.steps),
        config.train.accumulation_steps,
    )
    return jax.jit(
        sharding.under_mesh(layout.mesh, step),
        donate_argnums=0,
        out_shardings=(layout.state_shardings, None),
    )


def step_function(
    stage: Stage,
    optimizer: optax.GradientTransformation,
    settings: optim.OptimizerSettings,
    learning_rate: optax.Schedule,
    accumulation_steps: int = 1,
) -> Step:
    """Build the training step, (state, arrays, key) -> (state, metrics), to be jitted.

    Losses are divided by the totals of the whole batch, so accumulating gradients over microbatches
    gives the same result. If the loss, the gradients or the stage's new state are not finite, the
    step changes nothing but its count and returns metrics["finite"] = False.

    Raises (when the step is traced):
      StageError: rows that do not divide into the microbatches.
    """

    def gradients(state: TrainState, arrays: Arrays, totals: Arrays, key: jax.Array):
        def loss(trained):
            return stage.loss(_variables(trained, state), arrays, totals, key, state.step)

        return jax.value_and_grad(loss, has_aux=True)(state.trained)

    def accumulate(state: TrainState, arrays: Arrays, totals: Arrays, key: jax.Array):
        if accumulation_steps == 1:
            return gradients(state, arrays, totals, key)
        rows = jax.tree.leaves(arrays)[0].shape[0]
        if rows % accumulation_steps:
            raise StageError(
                f"a batch of {rows} rows, train.accumulation_steps = {accumulation_steps}: "
                "expected a divisor"
            )
        # One trace serves `eval_shape` and the scan.
        traced_once = jax.jit(gradients, inline=True)

        def microbatch(number):
            # Every n-th row, so that each device keeps a share of every microbatch.
            split = jax.tree.map(
                lambda a: a.reshape(-1, accumulation_steps, *a.shape[1:])[:, number], arrays
            )
            return state, split, totals, jax.random.fold_in(key, number)

        def add(total, number):
            (loss, aux), grads = total
            (new_loss, new_aux), new_grads = traced_once(*microbatch(number))
            metrics = jax.tree.map(jnp.add, aux.metrics, new_aux.metrics)
            aux = Aux(metrics, stage.merge(aux.updates, new_aux.updates))
            return ((loss + new_loss, aux), jax.tree.map(jnp.add, grads, new_grads)), None

        shapes = jax.eval_shape(traced_once, *microbatch(0))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, zeros, jnp.arange(accumulation_steps))[0]

    def step(state: TrainState, arrays: Arrays, seed_key: jax.Array):
        key = jax.random.fold_in(seed_key, state.step)
        loss_key, after_key = jax.random.split(key)
        (loss, aux), grads = accumulate(state, arrays, stage.totals(arrays), loss_key)
        codebook, extra, stage_metrics = stage.after(
            state.codebook, state.extra, aux.updates, after_key, state.step
        )
        norms = optim.group_norms(grads, {name: name.split("/")[0] for name in grads})
        norm = jnp.sqrt(sum(jnp.square(n) for n in norms.values()))
        # Known before the update, which then reads and writes each parameter once. The norm has the
        # squares of all gradients: if it is finite, so is the update (`optim.LARGEST_RATE`).
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & _all_finite((codebook, extra))
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        ema = state.ema
        if ema:
            ema = optim.update_ema(ema, trained, settings.ema_decay, state.step)
        new = state._replace(
            trained=trained, codebook=codebook, optimizer=optimizer_state, ema=ema, extra=extra
        )
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
        metrics = {
            "loss": loss,
            **aux.metrics,
            **stage_metrics,
            **{f"grad_norm/{name}": value for name, value in norms.items()},
            "grad_norm": norm,
            "learning_rate": learning_rate(state.step),
            "finite": finite,
        }
        return new._replace(step=state.step + 1), metrics

    return step


def _all_finite(tree: Any) -> jax.Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return functools.reduce(jnp.logical_and, (jnp.all(jnp.isfinite(x)) for x in leaves), True)
