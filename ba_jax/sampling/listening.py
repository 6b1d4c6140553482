"""A language model that reads features of speech through a projection, in place of its codes.

So the audio-understanding model hears, and so a tokenizer's run evaluates its codes by what its own
frozen language model understands of them (paper, Tables 1 and 2). It writes, and cannot speak.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ba_jax.checkpoints.arrays import Reader
from ba_jax.checkpoints.layout import CheckpointError
from ba_jax.models.audio_embed import AudioEmbedConfig
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig
from ba_jax.sampling.encode import Encoder
from ba_jax.sampling.loop import Generator
from ba_jax.sampling.prompt import Prompt
from ba_jax.sampling.session import Generated
from ba_jax.sampling.settings import SpeechModelSettings
from ba_jax.sampling.speech_model import SpeechModel, load_speech_model
from ba_jax.stages.hearing import PROJECTION
from ba_jax.vocab import SPEECH_ENCODER

COMPONENTS = (*SPEECH_ENCODER, "llm")


class FeatureEncoder(Encoder):
    """Encodes waves to the language model's inputs (N, D), float32.

    Args:
      config, variables: a model with audio_encoder and vq_bridge, and the projection.
      quantized: quantise the features.
      options: others of `Encoder`.
    """

    def __init__(
        self,
        config: BaichuanAudioConfig,
        variables: Mapping[str, Any],
        *,
        quantized: bool,
        **options: Any,
    ):
        super().__init__(config, variables, **options)
        projection = variables["params"][PROJECTION]
        params = {**self._variables["params"], PROJECTION: projection}
        self._variables = {**self._variables, "params": params}
        self._none = np.zeros((0, len(projection["bias"])), np.float32)
        self._quantized = quantized

    def _frames(
        self, model: BaichuanAudio, mel_BTM: jax.Array, lengths_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        x, lengths_B = model.audio_encoder(mel_BTM, lengths_B, None)
        z, lengths_B = model.vq_bridge.features(x, lengths_B)
        if self._quantized:
            z = model.vq_bridge.quantize(z, lengths_B).z_BNE
        projection = {"params": model.get_variable("params", PROJECTION)}
        return nn.Dense(self._none.shape[1]).apply(projection, z), lengths_B


class ListeningModel(SpeechModel):
    """A model that hears features and writes.

    The code of a frame is its number among all frames that were encoded. `generate` embeds them by
    a table of those of its prompts.

    Args:
      config: the model's; COMPONENTS are used.
      variables: of COMPONENTS, and the projection.
      settings: see `SpeechModelSettings`.
      quantized: quantise the features.
      options: others of `SpeechModel`.
    """

    codebook_sizes = (np.iinfo(np.int32).max - 1,)

    def __init__(
        self,
        config: BaichuanAudioConfig,
        variables: Mapping[str, Any],
        settings: SpeechModelSettings,
        *,
        quantized: bool = False,
        **options: Any,
    ):
        super().__init__(config.only(*COMPONENTS), variables, settings, **options)
        self._quantized = quantized
        self._embeddings: list[np.ndarray] = []

    @functools.cached_property
    def _feature_encoder(self) -> FeatureEncoder:
        return FeatureEncoder(
            self.config,
            self.variables,
            quantized=self._quantized,
            rows=self.settings.encode_rows,
            seconds=self.settings.encode_seconds,
            place=self._place,
        )

    def encoder(
        self, waves: Sequence[np.ndarray], progress: Callable[[int], None] | None = None
    ) -> list[np.ndarray]:
        """Encode recordings to the numbers (N, 1) of their frames, see `Encoder.__call__`."""
        numbers = []
        for frames_ND in self._feature_encoder(waves, progress):
            first = len(self._embeddings)
            self._embeddings.extend(frames_ND)
            numbers.append(np.arange(first, len(self._embeddings), dtype=np.int32)[:, None])
        return numbers

    @functools.cache  # noqa: B019 (a model lives as long as its command)
    def _generator(self, rows: int) -> Generator:
        """A generator whose table has that many rows."""
        sizes = AudioEmbedConfig(self.config.llm.width, (rows,))
        config = dataclasses.replace(self.config.only("llm"), audio_embed=sizes)
        table = np.zeros((rows + 1, self.config.llm.width), np.float32)
        params = {"llm": self.variables["params"]["llm"], "audio_embed": {"embedding_0": table}}
        return Generator(
            config,
            {"params": params},
            self.vocabulary,
            self.settings.generation,
            place=self._place,
        )

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generated]:
        """Continue prompts, see `SpeechModel.generate`."""
        pads = [prompt.ids_L == self.config.tokens.audio_pad for prompt in prompts]
        heard = [p.codes_LQ[pad_L, 0] for p, pad_L in zip(prompts, pads, strict=True)]
        numbers_V = np.unique(np.concatenate(heard)) if heard else np.zeros(0, np.int32)
        rows = 1 << max(len(numbers_V) - 1, 0).bit_length()
        table_VD = np.zeros((rows + 1, self.config.llm.width), np.float32)
        if len(numbers_V):
            table_VD[: len(numbers_V)] = [self._embeddings[number] for number in numbers_V]
        renumbered = []
        for prompt, pad_L in zip(prompts, pads, strict=True):
            codes_LQ = np.searchsorted(numbers_V, prompt.codes_LQ).astype(np.int32)
            codes_LQ = np.where(pad_L[:, None], codes_LQ, 0)
            renumbered.append(dataclasses.replace(prompt, codes_LQ=codes_LQ))
        generator = self._generator(rows)
        generator.replace_params({"audio_embed": {"embedding_0": table_VD}})
        return generator(renumbered, **options)


def load_listening_model(
    config: BaichuanAudioConfig,
    sources: Mapping[str, str],
    settings: SpeechModelSettings,
    *mesh: Any,
    quantized: bool = False,
    **options: Any,
) -> ListeningModel:
    """Load a model onto the devices, see `load_speech_model`; the projection lies beside the llm.

    Raises:
      CheckpointError: the run that the language model comes from has no projection.
      CheckpointError, ShardingError: see `load_speech_model`.
    """
    projection = _load_projection(sources["llm"])

    def make(config, variables, settings, **options) -> ListeningModel:
        params = {**variables["params"], PROJECTION: projection}
        variables = {**variables, "params": params}
        return ListeningModel(config, variables, settings, quantized=quantized, **options)

    return load_speech_model(config, sources, settings, *mesh, make=make, **options)


def _load_projection(folder: str) -> dict[str, np.ndarray]:
    """Load the projection of a run."""
    reader = Reader(folder)
    names = [f"params/{PROJECTION}/{name}" for name in ("kernel", "bias")]
    if not set(names) <= reader.arrays.keys():
        raise CheckpointError(
            f"{folder}: no {PROJECTION}, expected the language model's of a run of the stage "
            "understanding or tokenizer"
        )
    return {name.rsplit("/", 1)[-1]: reader.read(name) for name in names}
