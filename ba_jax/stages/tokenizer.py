"""Tokenizer stage: encoder, quantiser and audio decoder learn codes of sound and words (paper 3.1).

The encoder's features are pooled and quantised. From them the audio decoder reconstructs the mel
(acoustics), and a frozen language model, which reads them through a trained projection in place of
the audio tokens' embeddings, predicts the text (semantics). Codebooks follow by moving averages,
outside the gradient. An item is one chunk of audio; a growing share of the items is passed on
quantised, the others with the features as they are.

    loss = mel + coarse_mel + w(step) * commitment + text, each with its weight

The reconstruction is at two scales (paper 3.1): the refined mel against HIFIGAN_MEL of the wave,
and the coarse mel, before it is resized to the refined mel's grid, against COARSE_MEL.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.data.packed import AudioChunks
from ba_jax.losses import codec as losses
from ba_jax.metrics import flops
from ba_jax.models import codebook as codebooks
from ba_jax.models import layers
from ba_jax.models.audio_decoder import AudioDecoderOutput
from ba_jax.models.baichuan_audio import BaichuanAudio
from ba_jax.models.vq_bridge import draw_used
from ba_jax.stages.base import PICTURES, Aux, StageError, Variables, check_range
from ba_jax.stages.fit_bridge import fit_bridge
from ba_jax.stages.hearing import HearingStage, merge_axes

MEL_MEAN, MEL_DEVIATION = -4.75, 2.25
"""Mean and deviation of HIFIGAN_MEL, natural log, in 27 s of the embedded corpus's speech."""


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """Settings of the stage.

    Attributes:
      weight_mel: weight of L1 + L2 of the refined mel.
      weight_coarse: weight of L1 + L2 of the coarse mel.
      weight_text: weight of the language model's cross-entropy; 0 leaves the language model out.
      weight_commitment: weight of |z - q(z)|^2, times the share of `replace_shares`.
      decay: a of the moving averages (eq. 4).
      l2_shrink: b of the constraint (eq. 5): each step multiplies all rows by 1 - b.
      gumbel_temperature: temperature of the sampling of codes, see `vq_bridge.sample_code`; 0:
        nearest.
      quantizer_dropout: share of the items that use only their first 1 to Q - 1 codebooks.
      restart_after: steps after which an unused row restarts.
      restart_candidates: frames per step from which each codebook may restart rows.
      replace_shares: share of the items that are passed on quantised, in one stage after another;
        the commitment's weight is multiplied by the same share.
      replace_steps: step at which the last of these stages begins; the others are equally long.
      kmeans_init_frames: frames of the first batches (at most an eighth from a bucket of a batch)
        that initialise a new bridge: its norm gives the features mean 0 and a common deviation of
        1, codebooks come from k-means. 0: random.

    Raises:
      ValueError: a number out of range.
    """

    weight_mel: float = 1.0
    weight_coarse: float = 1.0
    weight_text: float = 1.0
    weight_commitment: float = 1.0
    decay: float = 0.99
    l2_shrink: float = 1e-4
    gumbel_temperature: float = 0.01
    quantizer_dropout: float = 0.25
    restart_after: int = 100
    restart_candidates: int = 64
    replace_shares: tuple[float, ...] = (0.1, 0.4, 0.7, 1.0)
    replace_steps: int = 1000
    kmeans_init_frames: int = 0

    def __post_init__(self):
        check_range(self, "quantizer_dropout", high=1)
        if not self.replace_shares or not all(0 <= share <= 1 for share in self.replace_shares):
            raise ValueError(
                f"replace_shares = {self.replace_shares}, expected one or more from 0 to 1"
            )
        check_range(self, "restart_after", "restart_candidates", low=1)
        names = {field.name for field in dataclasses.fields(self)} - {"replace_shares"}
        check_range(self, *sorted(names))
        for name in ("decay", "l2_shrink"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected 0 to less than 1")
        if not (self.weight_mel or self.weight_coarse or self.weight_text):
            raise ValueError("all of weight_mel, weight_coarse and weight_text are 0")


def replaced_share(step: jax.Array | int, settings: TokenizerSettings) -> jax.Array:
    """Share of the items that are passed on quantised at a step, and of the commitment's weight."""
    shares, steps = jnp.asarray(settings.replace_shares, jnp.float32), settings.replace_steps
    last = len(settings.replace_shares) - 1
    # Stages begin at whole steps, the last at `replace_steps`.
    begins = np.asarray([-(-steps * stage // last) for stage in range(1, last + 1)], int)
    return shares[jnp.sum(jnp.asarray(step) >= begins)]


class BucketForward(NamedTuple):
    """Forward pass of the items of one bucket; I = rows * chunks.

    Attributes:
      z_INE, lengths_I: features before quantisation.
      q_INE: quantised, with straight-through gradients.
      decoded: the audio decoder's output for the features that were passed on.
      embeddings_IND: their projection to the language model's width, or None.
      updates: {"statistics", "candidates"} for the codebooks; {} in evaluation.
      replaced_I: items that were passed on quantised.
    """

    z_INE: jax.Array
    lengths_I: jax.Array
    q_INE: jax.Array
    decoded: AudioDecoderOutput
    embeddings_IND: jax.Array | None
    updates: dict[str, Any]
    replaced_I: jax.Array


class TokenizerStage(HearingStage):
    """The tokenizer stage; batches are `PackedBatch`es of mels with both targets.

    The language model's parameters are frozen by the config's rules.
    """

    name = "tokenizer"
    settings_class = TokenizerSettings

    @property
    def components(self) -> tuple[str, ...]:
        llm = ("llm",) if self.settings.weight_text else ()
        return ("audio_encoder", "vq_bridge", "audio_decoder", *llm)

    @functools.cached_property
    def _sizes(self) -> tuple[int, ...]:
        return self.config.vq_bridge.codebook_sizes

    @functools.cached_property
    def _owners(self) -> np.ndarray:
        return codebooks.candidate_owners(self._sizes, self.settings.restart_candidates)

    def init(self, key: jax.Array) -> Variables:
        """Random values; the decoder's mel begins with the mean and deviation of speech.

        From 0 its norm would need thousands of steps for the mean alone.
        """
        variables = super().init(key)
        norm = variables["params"]["audio_decoder"]["upsample2"]["norm"]
        norm["bias"] = jnp.full_like(norm["bias"], MEL_MEAN)
        norm["scale"] = jnp.full_like(norm["scale"], MEL_DEVIATION)
        return variables

    def init_extra(self, variables: Variables) -> dict[str, jax.Array]:
        """Ages of the codebooks' rows; 0 for rows that were fitted."""
        fitted = self.settings.kmeans_init_frames > 0
        return codebooks.initial_ages(self._sizes, 0 if fitted else self.settings.restart_after)

    def from_data(
        self,
        variables: Variables,
        placed: Iterator[Mapping[str, jax.Array]],
        key: jax.Array,
        fresh: Collection[str],
    ) -> Variables:
        """The bridge's norm and codebooks, see `kmeans_init_frames` and `fit_bridge`; of a bridge
        whose codebooks never trained (`understanding`) the codebooks alone."""
        frames, is_fresh = self.settings.kmeans_init_frames, "vq_bridge" in fresh
        if not frames or not (is_fresh or self._untrained(variables)):
            return variables
        return fit_bridge(self.model, self.name, variables, placed, key, frames, norm=is_fresh)

    def _untrained(self, variables: Variables) -> bool:
        """Whether the codebooks' averages are as they were initialised."""
        bridge = variables["codebook"]["vq_bridge"]
        sizes = [bridge[f"cluster_size_{q}"] for q in range(len(self._sizes))]
        return all(bool(jnp.all(size_V == 1)) for size_V in sizes)

    # On the host

    def chunk_arrays(self, chunks: AudioChunks) -> dict[str, np.ndarray]:
        """The base's arrays and the targets, with the frames that the decoder produces of them."""
        if chunks.hifigan_mel_BCTM is None or chunks.coarse_mel_BCTM is None:
            raise StageError(
                f"stage {self.name}: batches without the decoder's targets; "
                "set data.targets to ('hifigan_mel', 'coarse_mel')"
            )
        arrays, decoder = super().chunk_arrays(chunks), self.config.audio_decoder
        frames_BC = np.minimum(decoder.decoded_frames(arrays["codes"]), chunks.hifigan_lengths_BC)
        coarse_BC = np.minimum(decoder.coarse_length(arrays["codes"]), chunks.coarse_lengths_BC)
        return arrays | {
            "target": chunks.hifigan_mel_BCTM,
            "frames": frames_BC.astype(np.int32),
            "coarse_target": chunks.coarse_mel_BCTM,
            "coarse_frames": coarse_BC.astype(np.int32),
        }

    def _can_learn(self, audio: Sequence[Mapping[str, np.ndarray]], text_targets: int) -> bool:
        return text_targets > 0 or any(bucket["codes"].any() for bucket in audio)

    def flops(self, arrays: Mapping[str, Any], trained: Collection[str]) -> float:
        """FLOPs of real frames and tokens; the frozen LLM only passes gradients on."""
        codes = self.chunk_lengths(arrays, "codes")
        total = self.hearing_flops(arrays)
        total += flops.vq_distances(self.config.vq_bridge, int(codes.sum()))
        return total + float(flops.train(flops.audio_decoder(self.config.audio_decoder, codes)))

    # Forward

    def totals(self, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """ "mel" and "coarse" frames, and those of the base."""
        return super().totals(arrays) | {
            "mel": self.sum_over_chunks(arrays, lambda bucket: bucket["frames"]),
            "coarse": self.sum_over_chunks(arrays, lambda bucket: bucket["coarse_frames"]),
        }

    def _forward(
        self,
        variables: Variables,
        bucket: Mapping[str, jax.Array],
        key: jax.Array | None,
        share: jax.Array | float = 1.0,
        used: int | None = None,
    ) -> BucketForward:
        """One bucket's items through encoder, quantiser and decoder.

        Args:
          variables: the stage's.
          bucket: an entry of `arrays["audio"]`.
          key: random key of the draws; None in evaluation.
          share: share of the items that are passed on quantised.
          used: number of codebooks used in evaluation; default all.
        """
        settings, model = self.settings, self.model
        mel, mel_lengths_I = merge_axes(bucket["mel"]), merge_axes(bucket["mel_lengths"])
        items, options = mel.shape[0], {}
        replaced_I = jnp.ones((items,), bool)
        if key is not None:
            used_key, code_key, replace_key, candidate_key = jax.random.split(key, 4)
            dropout = settings.quantizer_dropout
            options["used_BQ"] = draw_used(used_key, items, len(self._sizes), dropout)
            options["key"], options["temperature"] = code_key, settings.gumbel_temperature
            replaced_I = jax.random.uniform(replace_key, (items,)) < share
        elif used is not None:
            options["used_BQ"] = jnp.tile(jnp.arange(len(self._sizes))[None] < used, (items, 1))

        def encode(model: BaichuanAudio):
            x, lengths_I = model.audio_encoder(mel, mel_lengths_I)
            z, lengths_I = model.vq_bridge.features(x, lengths_I)
            return z, lengths_I, model.vq_bridge.quantize(z, lengths_I, **options)

        z, lengths_I, quantized = model.apply(variables, method=encode)
        passed_on = jnp.where(
            replaced_I[:, None, None], quantized.z_BNE, z.astype(quantized.z_BNE.dtype)
        )
        decoded = model.apply(
            variables,
            method=lambda model: model.audio_decoder(model.vq_bridge.project(passed_on), lengths_I),
        )
        embeddings, updates = None, {}
        if self.config.llm:
            embeddings = self.project(variables, passed_on)
        if key is not None:
            valid_IN = layers.length_mask(lengths_I, z.shape[1])
            counted = valid_IN[:, :, None] & quantized.used_BQ[:, None, :]
            updates["statistics"] = codebooks.statistics(
                quantized.codes_BNQ, quantized.residuals_QBNE, counted, self._sizes
            )
            updates["candidates"] = codebooks.draw_candidates(
                candidate_key, jax.lax.stop_gradient(z), valid_IN, len(self._owners)
            )
        return BucketForward(
            z, lengths_I, quantized.z_BNE, decoded, embeddings, updates, replaced_I
        )

    def _metrics(
        self,
        variables: Variables,
        arrays: Mapping[str, Any],
        totals: Mapping[str, jax.Array],
        buckets: list[BucketForward],
        ramp: jax.Array | float,
    ) -> dict[str, jax.Array]:
        """The weighted loss as "loss", and its terms."""
        settings = self.settings
        sums: dict[str, jax.Array] = {}

        def add(name: str, values_I: jax.Array, total: str) -> None:
            sums[name] = sums.get(name, 0.0) + jnp.sum(values_I) / totals[total]

        for chunks, bucket in zip(arrays["audio"], buckets, strict=True):
            decoded = bucket.decoded
            for name, prefix, mel in (
                ("mel", "", decoded.refined_mel_BTM),
                ("coarse", "coarse_", decoded.unresized_mel_BTM),
            ):
                target = merge_axes(chunks[f"{prefix}target"])
                frames_I = merge_axes(chunks[f"{prefix}frames"])
                l1_I, l2_I = losses.mel_errors(mel, target, frames_I)
                add(f"{name}_l1", l1_I, name)
                add(f"{name}_l2", l2_I, name)
            commitment_I = losses.commitment_B(bucket.z_INE, bucket.q_INE, bucket.lengths_I)
            add("commitment", commitment_I, "codes")
            add("replaced", bucket.replaced_I & (bucket.lengths_I > 0), "items")
        metrics = dict(sums)
        terms = [
            (settings.weight_mel, sums["mel_l1"] + sums["mel_l2"]),
            (settings.weight_coarse, sums["coarse_l1"] + sums["coarse_l2"]),
            (settings.weight_commitment, ramp * sums["commitment"]),
        ]
        if self.config.llm:
            embeddings = [bucket.embeddings_IND for bucket in buckets]
            metrics |= self.text_metrics(variables, arrays, totals, embeddings)
            terms.append((settings.weight_text, metrics["text"]))
        # A term of weight 0 has no backward pass.
        return {"loss": sum(weight * term for weight, term in terms if weight), **metrics}

    def loss(
        self,
        variables: Variables,
        arrays: Mapping[str, Any],
        totals: Mapping[str, jax.Array],
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, Aux]:
        share = replaced_share(step, self.settings)
        buckets = [
            self._forward(variables, bucket, jax.random.fold_in(key, i), share)
            for i, bucket in enumerate(arrays["audio"])
        ]
        metrics = self._metrics(variables, arrays, totals, buckets, share)
        updates = functools.reduce(self.merge, [bucket.updates for bucket in buckets])
        return metrics["loss"], Aux(metrics, updates)

    # Codebooks

    def merge(self, updates: Any, more: Any) -> Any:
        """Sum of the statistics; of the candidates, a draw from both."""
        return {
            "statistics": jax.tree.map(jnp.add, updates["statistics"], more["statistics"]),
            "candidates": codebooks.merge_candidates(updates["candidates"], more["candidates"]),
        }

    def after(
        self, codebook: Any, extra: Any, updates: Any, key: jax.Array, step: jax.Array
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        """Moving averages and restarts; metrics of `codebook.usage`."""
        settings, statistics = self.settings, updates["statistics"]
        tables = codebooks.update(
            codebook["vq_bridge"], statistics, settings.decay, settings.l2_shrink
        )
        tables, ages = codebooks.restart(
            tables,
            extra,
            statistics,
            updates["candidates"],
            settings.restart_after,
            self._owners,
        )
        metrics = codebooks.usage(tables, statistics, ages, settings.restart_after)
        return {**codebook, "vq_bridge": tables}, ages, metrics

    # Evaluation

    def evaluate(
        self,
        variables: Variables,
        arrays: Mapping[str, Any],
        totals: Mapping[str, jax.Array],
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        """The loss's terms with the nearest codes, all codebooks and every item quantised.

        And "mel_mae", the refined mel's mean absolute error in nats, with all codebooks, and
        "mel_mae/1", with the first alone.
        """
        audio = arrays["audio"]
        buckets = [self._forward(variables, bucket, None) for bucket in audio]
        metrics = self._metrics(variables, arrays, totals, buckets, 1.0)
        first = 0.0
        for chunks in audio:
            mel = self._forward(variables, chunks, None, used=1).decoded.refined_mel_BTM
            target, frames_I = merge_axes(chunks["target"]), merge_axes(chunks["frames"])
            l1_I, _ = losses.mel_errors(mel, target, frames_I)
            first += jnp.sum(l1_I) / totals["mel"]
        return {**metrics, "mel_mae": metrics["mel_l1"], "mel_mae/1": first}

    @functools.cached_property
    def _draw(self):
        """A bucket's refined mel, jitted."""

        def refined(variables, bucket):
            return self._forward(variables, bucket, None).decoded.refined_mel_BTM

        return jax.jit(refined)

    def pictures(self, variables: Variables, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """ "mel/I/target" and "mel/I/refined" of the first chunks, shortest bucket first."""
        mels: dict[str, Any] = {}
        for bucket in arrays["audio"]:
            for row, place in np.argwhere(np.asarray(bucket["frames"]) > 0):
                number = len(mels) // 2
                if number == PICTURES:
                    return mels
                chunk = {
                    name: array[row : row + 1, place : place + 1] for name, array in bucket.items()
                }
                frames = int(chunk["frames"][0, 0])
                mels[f"mel/{number}/target"] = np.asarray(chunk["target"][0, 0, :frames])
                mels[f"mel/{number}/refined"] = np.asarray(self._draw(variables, chunk)[0, :frames])
        return mels
