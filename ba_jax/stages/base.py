"""What a training stage is: its variables, its loss, what it changes outside the gradient.

The loop (`ba_jax.train`) is the same for all stages; a stage is a subclass of `Stage`. Arrays are
global under jit: a sum over the batch axis is the sum over all devices and hosts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.checkpoints.arrays import Reader
from ba_jax.checkpoints.components import Variables
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig


class StageError(ValueError):
    """A stage that cannot run: a batch without anything to learn, a component it lacks."""


class Aux(NamedTuple):
    """What a loss gives beside its value.

    Attributes:
      metrics: float32 scalars, each a sum over this (micro)batch already divided by the whole
        batch's total: adding those of the microbatches gives the batch's mean.
      updates: sums over the (micro)batch that `Stage.after` needs; () if it needs none.
    """

    metrics: dict[str, jax.Array]
    updates: Any = ()


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """Of a stage without settings."""


class Stage:
    """A training stage.

    Attributes:
      name: as in `config.stage.name`.
      settings_class: frozen dataclass of the other keys of `config.stage`.
      divides_positions: its batches are rows of positions, which mesh.sequence may divide.
      trained: components most of whose parameters train, for `flops`; the loop sets it.

    Args:
      config: the whole model's; the stage keeps the components that it uses.
      settings: an instance of `settings_class`.
      dtype: compute type.
      remat: of the scanned transformers, see `layers.REMAT_POLICIES`.
      attention: of the language model's packed rows, see `packed_attention`.
    """

    name = ""
    settings_class: type = NoSettings
    divides_positions = False
    trained: Collection[str] = ()

    def __init__(
        self,
        config: BaichuanAudioConfig,
        settings: Any,
        *,
        dtype: Any = jnp.float32,
        remat: str = "none",
        attention: str = "xla",
    ):
        self.settings = settings
        lacking = [name for name in self.components if getattr(config, name) is None]
        if lacking:
            raise StageError(f"stage {self.name}: the model's config has no {lacking}")
        self.config = config.only(*self.components)
        self.model = BaichuanAudio(self.config, dtype=dtype, remat=remat, attention=attention)

    @property
    def components(self) -> tuple[str, ...]:
        """Components of the model that the stage uses; may depend on the settings."""
        raise NotImplementedError

    def init(self, key: jax.Array) -> Variables:
        """Random values of all variables: the components' and those of helper modules, which are
        entries of "params" beside them. Works under jit and `eval_shape`."""
        return self.model.init({"params": key}, method="initialize")

    def derive(self, reader: Reader, shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Start values that another stage's checkpoint implies but does not store.

        Args:
          reader: of the checkpoint's weights.
          shapes: path -> shape of the variables wanted from it.
        """
        return {}

    def from_data(
        self,
        variables: Variables,
        placed: Iterator[Mapping[str, jax.Array]],
        key: jax.Array,
        fresh: Collection[str],
    ) -> Variables:
        """Start values that depend on data, before the first step of a new run; all processes call
        it. The default changes nothing.

        Args:
          variables: as drawn or loaded.
          placed: the run's first batches, as many as are taken, as global arrays.
          key: of what is random.
          fresh: components that no checkpoint gave.
        """
        return variables

    def arrays(self, batch: Any) -> dict[str, Any]:
        """A host's batch (a NamedTuple of NumPy arrays) as the dict of arrays that the step takes,
        each with the rows first.

        Raises:
          StageError: a batch without anything to learn.
        """
        raise NotImplementedError

    def amounts(self, arrays: Mapping[str, Any]) -> dict[str, float]:
        """What is really in a host's arrays: "tokens", "audio_seconds", "examples"."""
        raise NotImplementedError

    def flops(self, arrays: Mapping[str, Any]) -> float:
        """Analytic FLOPs of a training step on a host's arrays, real positions only; 0: unknown."""
        return 0.0

    def totals(self, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Denominators over a whole batch, at least 1 each; in jit."""
        raise NotImplementedError

    def loss(
        self,
        variables: Variables,
        arrays: Mapping[str, jax.Array],
        totals: Mapping[str, jax.Array],
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, Aux]:
        """The loss to differentiate in `variables["params"]`, a sum of weighted terms, each over
        its total; in jit. `key` depends on the step (and the microbatch) alone."""
        raise NotImplementedError

    def merge(self, updates: Any, more: Any) -> Any:
        """Joins `Aux.updates` of two microbatches, in order."""
        return jax.tree.map(jnp.add, updates, more)

    def init_extra(self, variables: Variables) -> Any:
        """Training state beside the variables, a pytree of arrays."""
        return {}

    def after(
        self, codebook: Any, extra: Any, updates: Any, key: jax.Array, step: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """(codebook, extra, metrics) after a step, outside the gradient; in jit."""
        return codebook, extra, {}

    def evaluate(
        self,
        variables: Variables,
        arrays: Mapping[str, jax.Array],
        totals: Mapping[str, jax.Array],
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        """Metrics of a batch, "loss" among them, without anything random but `key`; in jit."""
        raise NotImplementedError

    def pictures(self, variables: Variables, arrays: Mapping[str, jax.Array]) -> dict[str, Any]:
        """ "mel/NAME" -> mel (T, M), "audio/NAME" -> (wave (S,), rate), of the first items of a
        batch of the fixed set; on the host, {} if there is nothing to see."""
        return {}
