"""The training step that all stages share: gradients of what trains, microbatches, the optimiser.

Parameters are flat dicts, `component/.../leaf` to array, split into those that train and those that
are frozen: the loss is differentiated in the first alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ba_jax import optim
from ba_jax.stages.base import Aux, Stage, StageError, Variables
from ba_jax.tree import flatten, unflatten
from ba_jax.vocab import SPEECH_ENCODER


class TrainState(NamedTuple):
    """Everything that a step reads and writes.

    Attributes:
      step: int32, steps done.
      trained, frozen: flat dicts of parameters.
      codebook, buffers: collections of the variables, nested.
      optimizer: its state, of the trained parameters alone.
      average: running average of the trained parameters, float32; {} without one.
      extra: the stage's own.
    """

    step: jax.Array
    trained: dict[str, jax.Array]
    frozen: dict[str, jax.Array]
    codebook: dict[str, Any]
    buffers: dict[str, Any]
    optimizer: Any
    average: dict[str, jax.Array]
    extra: Any

    def variables(self, averaged: bool = False) -> Variables:
        """As models take them; with the averages in place of what they are of, if there are any."""
        trained = self.trained
        if averaged and self.average:
            trained = self.average  # float32, as all parameters are
        return assemble(trained, self.frozen, self.codebook, self.buffers)


def assemble(trained, frozen, codebook, buffers) -> Variables:
    """Variables from their parts; collections that are empty are left out."""
    params = unflatten({**trained, **frozen})
    rest = {"codebook": codebook, "buffers": buffers}
    return {"params": params} | {name: tree for name, tree in rest.items() if tree}


def new_state(
    stage: Stage,
    variables: Variables,
    rates: Mapping[str, float | None],
    optimizer: optax.GradientTransformation,
    settings: optim.OptimizerSettings,
    frozen_param_dtype: Any = jnp.float32,
) -> TrainState:
    """The state before the first step; works under jit and `eval_shape`.

    What is frozen is kept in `frozen_param_dtype`, but for the tokenizer: its codes would change.
    """
    flat = flatten(variables["params"])
    trained = {name: leaf for name, leaf in flat.items() if rates[name] is not None}
    frozen = {
        name: leaf if name.split("/")[0] in SPEECH_ENCODER else leaf.astype(frozen_param_dtype)
        for name, leaf in flat.items()
        if rates[name] is None
    }
    average = {}
    if settings.ema_decay:
        average = {name: leaf.astype(jnp.float32) for name, leaf in trained.items()}
    return TrainState(
        jnp.zeros((), jnp.int32),
        trained,
        frozen,
        variables.get("codebook", {}),
        variables.get("buffers", {}),
        optimizer.init(trained),
        average,
        stage.init_extra(variables),
    )


def make_step(
    stage: Stage,
    optimizer: optax.GradientTransformation,
    settings: optim.OptimizerSettings,
    learning_rate: optax.Schedule,
    accumulate: int = 1,
) -> Callable[[TrainState, Mapping[str, jax.Array], jax.Array], tuple[TrainState, dict]]:
    """(state, arrays, key) -> (state, metrics), to be jitted.

    The batch is cut into `accumulate` microbatches, one after another; losses are over the whole
    batch's totals, so the result is the same as without. A step whose loss, gradients or new
    values are not finite changes nothing but its count, and says so in metrics["finite"].

    Raises (when it is traced):
      StageError: a batch whose rows do not divide into the microbatches.
    """

    def gradients(state: TrainState, arrays, totals, key):
        def loss(trained):
            variables = assemble(trained, state.frozen, state.codebook, state.buffers)
            return stage.loss(variables, arrays, totals, key, state.step)

        return jax.value_and_grad(loss, has_aux=True)(state.trained)

    def accumulated(state: TrainState, arrays, totals, key):
        if accumulate == 1:
            return gradients(state, arrays, totals, key)
        rows = jax.tree.leaves(arrays)[0].shape[0]
        if rows % accumulate:
            raise StageError(
                f"a batch of {rows} rows, train.accumulation_steps = {accumulate}: "
                "expected a divisor"
            )

        def part(number):
            # Every accumulate-th row: each device keeps a share of every microbatch.
            return jax.tree.map(
                lambda a: a.reshape(-1, accumulate, *a.shape[1:])[:, number], arrays
            )

        def add(carry, number):
            (loss, aux), grads = carry
            micro_key = jax.random.fold_in(key, number)
            (more, more_aux), more_grads = gradients(state, part(number), totals, micro_key)
            aux = Aux(
                jax.tree.map(jnp.add, aux.metrics, more_aux.metrics),
                stage.merge(aux.updates, more_aux.updates),
            )
            return ((loss + more, aux), jax.tree.map(jnp.add, grads, more_grads)), None

        first = gradients(state, part(0), totals, jax.random.fold_in(key, 0))
        return jax.lax.scan(add, first, jnp.arange(1, accumulate))[0]

    def step(state: TrainState, arrays, seed_key):
        key = jax.random.fold_in(seed_key, state.step)
        loss_key, after_key = jax.random.split(key)
        (loss, aux), grads = accumulated(state, arrays, stage.totals(arrays), loss_key)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        codebook, extra, more = stage.after(
            state.codebook, state.extra, aux.updates, after_key, state.step
        )
        average = state.average
        if average:
            average = optim.update_ema(average, trained, settings.ema_decay, state.step)
        norms = optim.group_norms(grads, {name: name.split("/")[0] for name in grads})
        norm = jnp.sqrt(sum(jnp.square(n) for n in norms.values()))
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        finite &= _all_finite((trained, codebook, extra))
        after = state._replace(
            trained=trained,
            codebook=codebook,
            optimizer=optimizer_state,
            average=average,
            extra=extra,
        )
        after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
        metrics = {"loss": loss, **aux.metrics, **more}
        metrics |= {f"grad_norm/{name}": value for name, value in norms.items()}
        metrics |= {"grad_norm": norm, "learning_rate": learning_rate(state.step)}
        metrics["finite"] = finite
        return after._replace(step=state.step + 1), metrics

    return step


def _all_finite(tree: Any) -> jax.Array:
    """Whether every floating value of a tree is."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
