"""What a run computes on a mesh: its stage, its optimiser, where its state lies, the jitted step.

Nothing here touches data or devices' memory, so that a run can be compiled and planned for a mesh
that is not there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ba_jax import optim, sharding
from ba_jax.run_config import DTYPES, RunConfig, make_stage
from ba_jax.stages.base import Variables
from ba_jax.stages.update import TrainState, make_step, new_state
from ba_jax.tree import flatten


class Program:
    """A run on a mesh.

    Attributes:
      config, mesh: as given.
      stage: of the config.
      init_key, eval_key, seed_key: of start values, evaluations, steps.
      shapes: of the stage's variables.
      rates: parameter -> what multiplies its learning rate; None: frozen.
      counts: component -> (its parameters, how many of them train).
      trained_components: components most of whose parameters train.
      optimizer: of those that train.
      heads: of its components' attention, see `sharding.Heads`.
      variable_placement: shardings of the variables.
      state_shapes, placement: shapes and shardings of the training state.

    Raises:
      ConfigError, OptimError, StageError, ShardingError: the config is wrong.
    """

    def __init__(self, config: RunConfig, mesh: Mesh):
        self.config, self.mesh = config, mesh
        self.stage = make_stage(config, mesh.devices.flat[0].platform)
        if mesh.shape["sequence"] > 1 and not self.stage.divides_positions:
            raise sharding.ShardingError(
                f"stage {self.stage.name} on mesh.sequence = {mesh.shape['sequence']}: expected 1, "
                "it does not divide positions"
            )
        keys = jax.random.split(jax.random.key(config.seed), 3)
        self.init_key, self.eval_key, self.seed_key = keys
        self.shapes = jax.eval_shape(self.stage.init, self.init_key)
        flat = {name: leaf.shape for name, leaf in flatten(self.shapes["params"]).items()}
        self.rates = optim.learning_rate_multipliers(flat, config.optimizer.rules)
        trained = {name: rate for name, rate in self.rates.items() if rate is not None}
        self.counts = _counts(flat, trained)
        self.trained_components = frozenset(
            name for name, (total, training) in self.counts.items() if 2 * training > total
        )
        self.optimizer = optim.make_optimizer(config.optimizer, trained, flat, config.train.steps)
        self.heads = self.stage.config.heads
        self.variable_placement = sharding.placement(self.shapes, mesh, self.heads)
        self.state_shapes = jax.eval_shape(self._begin, self.shapes)
        self.placement = _state_placement(self.state_shapes, mesh, self.heads)

    def _begin(self, variables: Variables) -> TrainState:
        config = self.config
        return new_state(
            self.stage,
            variables,
            self.rates,
            self.optimizer,
            config.optimizer,
            DTYPES[config.train.frozen_param_dtype],
        )

    def begin(self, variables: Variables) -> TrainState:
        """The state before the first step; the variables are used up."""
        return jax.jit(self._begin, out_shardings=self.placement, donate_argnums=0)(variables)

    def placed_shapes(self) -> TrainState:
        """Shapes, types and shardings of the state."""
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            self.state_shapes,
            self.placement,
        )

    def step(self) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict]]:
        """The jitted step, see `steps.update.make_step`; the state that it is given is used up."""
        config = self.config
        step = make_step(
            self.stage,
            self.optimizer,
            config.optimizer,
            optim.learning_rate_schedule(config.optimizer, config.train.steps),
            config.train.accumulation_steps,
        )
        return jax.jit(
            sharding.under_mesh(self.mesh, step),
            donate_argnums=0,
            out_shardings=(self.placement, None),
        )


def _counts(shapes: dict[str, tuple], trained: dict[str, float]) -> dict[str, tuple[int, int]]:
    """Component -> (its parameters, how many of them train)."""
    counts: dict[str, tuple[int, int]] = {}
    for name, shape in sorted(shapes.items()):
        total, training = counts.get(name.split("/")[0], (0, 0))
        size = int(np.prod(shape))
        counts[name.split("/")[0]] = (total + size, training + size * (name in trained))
    return counts


def _state_placement(state: TrainState, mesh: Mesh, heads: sharding.Heads) -> TrainState:
    """Of a state: optimiser state and averages lie where their parameters do."""

    def place(path, leaf):
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        for name in reversed(keys):
            if name in state.trained or name in state.frozen:
                return sharding.variable_sharding(f"params/{name}", leaf.shape, mesh, heads)
        if not leaf.shape:
            return sharding.replicated(mesh)
        name = "/".join((path[0].name, *map(str, keys)))
        return sharding.variable_sharding(name, leaf.shape, mesh, heads)

    return jax.tree_util.tree_map_with_path(place, state)
