"""Teacher-forced log-likelihoods of given text and codes.

Batches are padded to few lengths, so that little is compiled. Logits are computed for the targets
alone and chunk by chunk (`losses.lm.sum_over_chunks`), so that those of a whole batch are never in
memory.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax import sharding
from ba_jax.data.sequence import TokenSequence
from ba_jax.losses.lm import compact, cross_entropy, sum_over_chunks
from ba_jax.models import layers
from ba_jax.models.baichuan_audio import (
    BaichuanAudio,
    BaichuanAudioConfig,
    select_variables,
)
from ba_jax.sampling import batching
from ba_jax.sharding import to_host
from ba_jax.vocab import LANGUAGE_MODEL, AudioTokens

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
"""Lengths that sequences are padded to."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """A sequence to score.

    Attributes:
      ids_L: int32.
      codes_LQ: int32; read at `audio_pad` only.
      text_L: positions whose text ids are scored.
      audio_L: positions whose codes are scored.
    """

    ids_L: np.ndarray
    codes_LQ: np.ndarray
    text_L: np.ndarray
    audio_L: np.ndarray

    def __len__(self) -> int:
        return len(self.ids_L)

    @classmethod
    def of(cls, sequence: TokenSequence, tokens: AudioTokens, eos_id: int) -> Scored:
        """Score a training sequence's targets, except the ids that begin or end a segment."""
        ids_L = sequence.ids_L
        return cls(
            ids_L,
            sequence.codes_LQ,
            sequence.text_target_L & (ids_L != eos_id) & (ids_L != tokens.audiogen_start),
            sequence.audio_target_L & (ids_L == tokens.audio_pad),
        )

    def without_first(self, count: int) -> Scored:
        """The sequence with its first `count` scored text ids no longer scored."""
        text_L = self.text_L.copy()
        text_L[np.flatnonzero(text_L)[:count]] = False
        return dataclasses.replace(self, text_L=text_L)


class Likelihood(NamedTuple):
    """Log-likelihood of a sequence, in nats.

    Attributes:
      text, tokens: log-likelihood of the text, and its number of tokens.
      audio, codes: log-likelihood of the codes of all codebooks, and their number.
    """

    text: float
    tokens: int
    audio: float
    codes: int

    @property
    def total(self) -> float:
        """Log-likelihood of text and codes together."""
        return self.text + self.audio

    @property
    def mean(self) -> float:
        """Mean log-likelihood per text token or code.

        Raises:
          ValueError: nothing was scored.
        """
        count = self.tokens + self.codes
        if not count:
            raise ValueError(
                "mean log-likelihood of 0 tokens and codes: expected at least one scored target"
            )
        return self.total / count


class Scorer:
    """Scores sequences; compiles once per padded length and number of targets (powers of two).

    Args:
      config, variables: a model with llm; for audio, with audio_embed and audio_head too.
      rows: batch size.
      lengths: lengths that sequences are padded to; a longer sequence is an error.
      chunk: number of a row's targets whose logits are computed at a time.
      dtype: compute type.
      place: puts a batch's arrays (rows first) on the devices; by default where JAX puts them.
    """

    def __init__(
        self,
        config: BaichuanAudioConfig,
        variables: Mapping[str, Any],
        *,
        rows: int = 16,
        lengths: Sequence[int] = LENGTHS,
        chunk: int = 32,
        dtype: layers.Dtype = jnp.float32,
        place: Callable[[Any], Any] = lambda arrays: arrays,
    ):
        present = [p for p in LANGUAGE_MODEL if p in variables["params"]]
        if "llm" not in present:
            raise ValueError("variables without llm: expected a language model")
        self.config = config.only(*present)
        self.rows, self.lengths, self.chunk = rows, tuple(sorted(lengths)), chunk
        self._place = place
        self.traces: collections.Counter = collections.Counter()
        self._variables = select_variables(self.config, variables, present)
        self._model = BaichuanAudio(self.config, dtype=dtype)
        run = sharding.under_mesh(sharding.mesh_of(self._variables), self._batch)
        self._run = jax.jit(run, static_argnames=("texts", "frames"))

    def __call__(
        self, items: Sequence[Scored], progress: Callable[[int], None] | None = None
    ) -> list[Likelihood]:
        """Likelihoods of sequences, in order.

        Args:
          items: sequences with at least one target, none of them at the first position.
          progress: called with the number of items done after each batch.

        Raises:
          LengthError: an item that is empty or longer than the last of `lengths`.
          ValueError: no target, a target at the first position, or audio for a model without it.
        """
        for number, item in enumerate(items):
            self._check(number, item)
        likelihoods: dict[int, Likelihood] = {}
        sizes = [len(item) for item in items]
        for bucket, indices in batching.batches(sizes, self.lengths, self.rows, "sequence"):
            batch = [items[i] for i in indices]
            ids_BL, lengths_B = batching.pad([item.ids_L for item in batch], self.rows, bucket)
            codes_BLQ, _ = batching.pad([item.codes_LQ for item in batch], self.rows, bucket)
            text_BL, _ = batching.pad([item.text_L for item in batch], self.rows, bucket)
            audio_BL, _ = batching.pad([item.audio_L for item in batch], self.rows, bucket)
            texts, frames = (_room(mask_BL, bucket) for mask_BL in (text_BL, audio_BL))
            codes_BLQ = codes_BLQ if self._has_audio(batch) else None
            arrays = self._place((ids_BL, codes_BLQ, lengths_B, text_BL, audio_BL))
            text_B, audio_B = to_host(
                self._run(self._variables, *arrays, texts=texts, frames=frames)
            )
            for row, i in enumerate(indices):
                codes = int(items[i].audio_L.sum()) * items[i].codes_LQ.shape[1]
                tokens = int(items[i].text_L.sum())
                likelihoods[i] = Likelihood(float(text_B[row]), tokens, float(audio_B[row]), codes)
            if progress is not None:
                progress(len(likelihoods))
        return [likelihoods[i] for i in range(len(items))]

    def _has_audio(self, items: Sequence[Scored]) -> bool:
        pad = self.config.tokens.audio_pad
        return any((item.ids_L == pad).any() for item in items)

    def _check(self, number: int, item: Scored) -> None:
        if not item.text_L.any() and not item.audio_L.any():
            raise ValueError(f"sequence {number}: no position is scored, expected at least one")
        if len(item) and (item.text_L[0] or item.audio_L[0]):
            raise ValueError(
                f"sequence {number}: its first position is scored, expected a position before it"
            )
        if self.config.audio_embed is None and self._has_audio([item]):
            raise ValueError(f"sequence {number} has audio, but the model has no audio_embed")
        if self.config.audio_head is None and item.audio_L.any():
            raise ValueError(
                f"sequence {number} has codes to score, but the model has no audio_head"
            )

    def _batch(
        self, variables, ids_BL, codes_BLQ, lengths_B, text_BL, audio_BL, *, texts, frames
    ) -> tuple[jax.Array, jax.Array]:
        """Log-likelihoods (B,) of text and codes; at most `texts` and `frames` targets per row."""
        self.traces["score"] += 1
        model, length = self._model, ids_BL.shape[1]
        segments_BL = (jnp.arange(length)[None] < lengths_B[:, None]).astype(jnp.int32)
        hidden_BLD, _ = model.apply(
            variables, ids_BL, codes_BLQ, None, segments_BL, method="hidden"
        )

        def text(mask_BN, hidden_BND, ids_BN):
            logits_BNV = model.apply(variables, hidden_BND, method="text_logits")
            return cross_entropy(logits_BNV, ids_BN).sums(mask_BN).loss

        def audio(mask_BN, hidden_BND, codes_BNQ):
            codes_BNQ = jnp.where(mask_BN[:, :, None], codes_BNQ, 0)
            logits = model.apply(
                variables,
                hidden_BND.reshape(-1, hidden_BND.shape[-1]),
                codes_BNQ.reshape(-1, codes_BNQ.shape[-1]),
                method="audio_logits",
            )
            return sum(
                cross_entropy(logits_XV.reshape(*mask_BN.shape, -1), codes_BNQ[:, :, q])
                .sums(mask_BN)
                .loss
                for q, logits_XV in enumerate(logits)
            )

        def loss(function, room, target_BL, values_BL):
            if not room:
                return jnp.zeros(len(ids_BL))
            # Position i predicts i + 1.
            gathered = compact(target_BL[:, 1:], room, hidden_BLD[:, :-1], values_BL[:, 1:])
            return sum_over_chunks(function, self.chunk, *gathered)

        return (
            -loss(text, texts, text_BL, ids_BL),
            -loss(audio, frames, audio_BL, codes_BLQ),
        )


def _room(mask_BL: np.ndarray, length: int) -> int:
    """The power of two, at most `length`, that bounds each row's number of targets; 0 for none."""
    most = int(mask_BL.sum(axis=1).max())
    return min(length, 1 << (most - 1).bit_length()) if most else 0
