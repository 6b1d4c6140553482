"""The interface of a training stage: variables, loss, changes outside the gradient, evaluation.

The loop (`ba_jax.train`) is the same for all stages; a stage is a subclass of `Stage`. Arrays are
global under jit: a sum over the batch axis is the sum over all devices and hosts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.audio.mel import FLOW_MEL
from ba_jax.checkpoints.arrays import Reader
from ba_jax.checkpoints.components import Variables
from ba_jax.data.audio_batches import AudioBatch
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig

PICTURES = 2
"""Items of an evaluation that `Stage.pictures` shows."""


class StageError(ValueError):
    """A stage that cannot run: a batch without anything to learn, or a missing component."""


class Aux(NamedTuple):
    """Second result of a loss.

    Attributes:
      metrics: float32 scalars, each a sum over this (micro)batch divided by the whole batch's
        total: the sum over the microbatches is the batch's mean.
      updates: sums over the (micro)batch that `Stage.after` needs; () if it needs none.
    """

    metrics: dict[str, jax.Array]
    updates: Any = ()


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """Settings of a stage without any."""


def check_range(settings: Any, *names: str, low: float = 0, high: float | None = None) -> None:
    """Raise ValueError unless the fields are at least `low` and at most `high`."""
    for name in names:
        value = getattr(settings, name)
        if value < low or (high is not None and value > high):
            bounds = f"at least {low}" if high is None else f"{low} to {high}"
            raise ValueError(f"{name} = {value}, expected {bounds}")


class Stage:
    """A training stage.

    Attributes:
      name: as in `config.stage.name`.
      settings_class: frozen dataclass of the other keys of `config.stage`.
      divides_positions: its batches are rows of positions, which mesh.sequence may divide.
      companions: helper module -> component with which it is loaded, if the checkpoint has it.

    Args:
      config: the whole model's; the stage keeps the components that it uses.
      settings: an instance of `settings_class`.
      dtype: compute type.
      remat: remat policy of the scanned transformers, see `layers.REMAT_POLICIES`.
      attention: kind of attention of the language model's packed rows, see `packed_attention`.
      scan: scan over the layers of transformers instead of unrolling them.
      quantization: kind of products of the language model and the audio head, see `quantized`.
    """

    name = ""
    settings_class: type = NoSettings
    divides_positions = False
    companions: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        config: BaichuanAudioConfig,
        settings: Any,
        *,
        dtype: Any = jnp.float32,
        remat: str = "none",
        attention: str = "xla",
        scan: bool = True,
        quantization: str = "none",
    ):
        self.settings = settings
        lacking = [name for name in self.components if getattr(config, name) is None]
        if lacking:
            raise StageError(f"stage {self.name}: the model's config has no {lacking}")
        self.config = config.only(*self.components)
        options = {"dtype": dtype, "remat": remat, "attention": attention, "scan": scan}
        self.model = BaichuanAudio(self.config, quantization=quantization, **options)

    @property
    def components(self) -> tuple[str, ...]:
        """Components of the model that the stage uses; may depend on the settings."""
        raise NotImplementedError

    def init(self, key: jax.Array) -> Variables:
        """Random values of all variables: the components' and those of helper modules, which are
        entries of "params" beside them. Works under jit and `eval_shape`."""
        return self.model.init({"params": key}, method="initialize")

    def derive(self, reader: Reader, shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Compute start values that another stage's checkpoint implies but does not store.

        Args:
          reader: reader of the checkpoint's weights.
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
          key: random key of the draws.
          fresh: components without a checkpoint.
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
        """Amounts in a host's arrays, without padding: "tokens", "audio_seconds", "examples"."""
        raise NotImplementedError

    def flops(self, arrays: Mapping[str, Any], trained: Collection[str]) -> float:
        """Analytic FLOPs of a training step on a host's arrays, real positions only; 0: unknown.

        Args:
          arrays: see `arrays`.
          trained: components most of whose parameters train.
        """
        return 0.0

    def fix_loops(self, arrays: Mapping[str, Any], copies: float) -> None:
        """Fix the length of loops that end with a batch's targets, so that a plan can count them.

        Args:
          arrays: a host's arrays.
          copies: how many times as much each device has.
        """

    def totals(self, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Denominators over a whole batch, see `count`; in jit."""
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
        """Join `Aux.updates` of two microbatches, in order; joining zeros changes nothing."""
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


class ClipStage(Stage):
    """A stage that learns from clips of audio (`AudioBatch`).

    Its arrays hold "lengths_B", the frames of FLOW_MEL that each clip counts with.
    """

    def check_features(self, batch: AudioBatch, names: Sequence[str]) -> None:
        """Raise StageError if the batch lacks a feature."""
        axes = {"wave": "_BS", "codes": "_BNQ"}
        lacking = [n for n in names if getattr(batch, n + axes.get(n, "_BTM")) is None]
        if lacking:
            raise StageError(
                f"stage {self.name}: batches without {lacking}; name them in the data's `features`"
            )

    def check_frames(self, lengths_B: np.ndarray, batch: AudioBatch) -> None:
        """Raise StageError if no clip has a frame to learn from."""
        if not lengths_B.any():
            raise StageError(
                f"stage {self.name}: a batch of {len(lengths_B)} clips without a frame to learn"
                f" from; {int(np.sum(batch.skipped_B))} of them were damaged and skipped"
            )

    def amounts(self, arrays: Mapping[str, Any]) -> dict[str, float]:
        """Tokens are mel frames at 50 Hz."""
        lengths_B = np.asarray(arrays["lengths_B"])
        frames = float(lengths_B.sum())
        return {
            "tokens": frames,
            "audio_seconds": frames / FLOW_MEL.frame_rate,
            "examples": float((lengths_B > 0).sum()),
        }

    def totals(self, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """ "frames" of FLOW_MEL."""
        return {"frames": count(arrays["lengths_B"])}

    def draw(self, variables: Variables, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Mels (B, T, M) or waves (B, S) to show of a batch's items, by name; in jit."""
        raise NotImplementedError

    @functools.cached_property
    def _draw_first(self) -> Callable[..., tuple[dict[str, jax.Array], jax.Array]]:
        def draw_first(variables, arrays):
            first = {name: array[:PICTURES] for name, array in arrays.items()}
            return self.draw(variables, first), first["lengths_B"]

        return jax.jit(draw_first)

    def pictures(self, variables: Variables, arrays: Mapping[str, jax.Array]) -> dict[str, Any]:
        """ "mel/I/NAME" or "audio/I/NAME" of the first items, cut to their frames."""
        drawn, lengths_B = jax.device_get(self._draw_first(variables, dict(arrays)))
        pictures: dict[str, Any] = {}
        for i, frames in enumerate(lengths_B.tolist()):
            for name, array in drawn.items() if frames else ():
                if array.ndim == 3:
                    pictures[f"mel/{i}/{name}"] = array[i, :frames]
                else:
                    wave_S = array[i, : frames * FLOW_MEL.hop]
                    pictures[f"audio/{i}/{name}"] = (wave_S, FLOW_MEL.sample_rate)
        return pictures


def count(values: jax.Array) -> jax.Array:
    """Sum of a mask or of lengths as a denominator: float32, at least 1."""
    return jnp.maximum(jnp.sum(values, dtype=jnp.int32), 1).astype(jnp.float32)


def item_keys(key: jax.Array, items: int) -> jax.Array:
    """A key for each item of a batch, (B,), the same whatever the batch's size."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(items))
