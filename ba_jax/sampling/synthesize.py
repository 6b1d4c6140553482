"""Codes to speech: audio decoder, flow matching, then the vocoder or Griffin-Lim.

Speech of the decoder's refined mel alone, without the flow, shows what the flow adds.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.audio.griffin_lim import griffin_lim
from ba_jax.audio.mel import FLOW_MEL, HIFIGAN_MEL, MelGeometry
from ba_jax.config import expected
from ba_jax.models import layers
from ba_jax.models.baichuan_audio import (
    BaichuanAudio,
    BaichuanAudioConfig,
    select_variables,
)
from ba_jax.models.flow_matching import draw_noise
from ba_jax.models.flow_unet import FlowUNetConfig
from ba_jax.models.streaming import Blocks
from ba_jax.sampling import batching
from ba_jax.sharding import to_host

VOCODERS = ("vocoder", "griffin_lim")
MELS = ("flow", "decoder")


@dataclasses.dataclass(frozen=True)
class SynthesisSettings:
    """Settings of synthesis.

    Attributes:
      vocoder: "vocoder", the model's, or "griffin_lim".
      mel: source of the mel that becomes a wave: the "flow", or the audio "decoder" (Griffin-Lim
        only; a flow trained for minutes does not improve on it).
      steps, guidance: settings of the flow; None: as in the model's config.
      iterations: iterations of Griffin-Lim.
      rows: batch size.
      frames: numbers of codes that segments are padded to; the last is the longest segment.
      blocks: 50 Hz frames of the flow's attention blocks, the last one repeats; () is the U-Net's
        `chunk`. Streams synthesize block by block, see `ba_jax.sampling.stream`.
      lookback: frames before its block that a frame attends to; None: all.
      norm_frames: frames of codes that the first statistics of the decoder's norms are taken over,
        see `ba_jax.models.streaming.Blocks`; None: the whole segment, as in the reference.
      norms, norm_weight: typical statistics of the norms (`Synthesizer.measure_norms`), and their
        weight in the running statistics in frames of codes; (): none.
      hold: mel frames that a stream's vocoder waits for; None: all that a sample depends on.
    """

    vocoder: str = "vocoder"
    mel: str = "flow"
    steps: int | None = None
    guidance: float | None = None
    iterations: int = 32
    rows: int = 16
    frames: tuple[int, ...] = (32, 64, 128, 376)
    blocks: tuple[int, ...] = ()
    lookback: int | None = None
    norm_frames: int | None = None
    norms: tuple[tuple[float, float], ...] = ()
    norm_weight: float = 25.0
    hold: int | None = None

    def __post_init__(self):
        if self.vocoder not in VOCODERS:
            raise ValueError(f"vocoder {expected(self.vocoder, VOCODERS)}")
        if self.mel not in MELS:
            raise ValueError(f"mel {expected(self.mel, MELS)}")
        if self.mel == "decoder" and self.vocoder != "griffin_lim":
            raise ValueError("the vocoder reads the flow's mels: expected mel 'flow'")
        if self.rows < 1 or not self.frames or min(self.frames) < 1:
            raise ValueError(f"rows {self.rows}, frames {self.frames}: expected at least 1")
        if self.hold is not None and self.hold < 1:
            raise ValueError(f"hold {self.hold}: expected at least 1 frame")
        if self.blocks:
            self._blocks(self.blocks)

    def blocks_of(self, config: BaichuanAudioConfig) -> Blocks | None:
        """The frames that a frame may depend on; None: as in the reference.

        Raises:
          ValueError: sizes that do not fit together, see `Blocks`.
        """
        if not self.blocks and self.lookback is None and self.norm_frames is None:
            return None
        chunk = config.flow_unet.chunk if config.flow_unet else FlowUNetConfig.chunk
        return self._blocks(self.blocks or (chunk,))

    def _blocks(self, sizes: tuple[int, ...]) -> Blocks:
        weight = self.norm_weight if self.norms else 0.0
        return Blocks(sizes, self.lookback, self.norm_frames, self.norms, weight)


class Wave(NamedTuple):
    """A mono wave, float32 in [-1, 1], and its rate in Hz."""

    wave_S: np.ndarray
    rate: int


class Decoded(NamedTuple):
    """Output of the audio decoder for one segment.

    Attributes:
      hidden_TD: 50 Hz features, the input of the flow.
      mel_TM: refined log-mel in HIFIGAN_MEL's geometry.
    """

    hidden_TD: np.ndarray
    mel_TM: np.ndarray


def keep_codebooks(variables: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Variables with all codebooks after the first `count` set to zero; shapes do not change.

    Raises:
      ValueError: a count below 1 or over the number of codebooks.
    """
    codebooks = variables["codebook"]["vq_bridge"]
    total = sum(name.startswith("embed_") and name[6:].isdigit() for name in codebooks)
    if not 1 <= count <= total:
        raise ValueError(f"{count} codebooks, expected 1 to {total}")
    dropped = {f"embed_{q}": jnp.zeros_like(codebooks[f"embed_{q}"]) for q in range(count, total)}
    bridge = {**codebooks, **dropped}
    return {**variables, "codebook": {**variables["codebook"], "vq_bridge": bridge}}


def noise_keys(seeds_B: jax.Array, segments_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Random keys of the flow's and of the vocoder's noise, one per row.

    They depend on the request's seed and the number of its segment; a frame's noise depends on the
    key and the frame's position alone. So a request gives the same audio in any batch, padding or
    pieces, up to rounding.
    """

    def pair(seed: jax.Array, segment: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(jax.random.key(seed), segment)
        return jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)

    return jax.vmap(pair)(seeds_B, segments_B)


def check_seed(seed: int) -> int:
    """Return a seed that a random key can be made of.

    Raises:
      ValueError: a seed outside 0 to 2^32 - 1.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed {seed}: expected 0 to 2^32 - 1")
    return seed


class Synthesizer:
    """Synthesizes whole segments; each of its parts compiles once per padded length.

    Args:
      config, variables: a model with vq_bridge and audio_decoder; with flow_prenet and flow_unet
        for `flow_mels`, and vocoder if the settings name it.
      settings: see `SynthesisSettings`.
      run: `map`, or its counterpart over processes, for Griffin-Lim, which keeps a core busy.
      dtype: compute type.
      place: puts a batch's arrays (rows first) on the devices; by default where JAX puts them.
    """

    def __init__(
        self,
        config: BaichuanAudioConfig,
        variables: Mapping[str, Any],
        settings: SynthesisSettings = SynthesisSettings(),
        *,
        run: Callable[[Callable, Iterable], Iterable] = map,
        dtype: layers.Dtype = jnp.float32,
        place: Callable[[Any], Any] = lambda arrays: arrays,
    ):
        self.config, self.settings = config, settings
        self.blocks = settings.blocks_of(config)
        self.traces: collections.Counter = collections.Counter()
        self._dtype, self._run, self._place = dtype, run, place
        self._variables = variables
        self._decode = self._jit("decode", ("vq_bridge", "audio_decoder"), self._decode_batch)
        self._norms = self._jit("norms", ("vq_bridge", "audio_decoder"), self._norms_batch)
        self._flow = self._jit("flow", ("flow_prenet", "flow_unet"), self._flow_batch)
        self._vocode = self._jit("vocode", ("vocoder",), self._vocode_batch)

    def _jit(self, name: str, needed: tuple[str, ...], function: Callable) -> Callable:
        """Jit a part of the model; the result takes variables and the function's arguments."""
        model = BaichuanAudio(self.config.only(*needed), dtype=self._dtype)

        def traced(variables, *args):
            self.traces[name] += 1
            return function(model, variables, *args)

        jitted = jax.jit(traced)

        def call(variables, *args):
            selected = select_variables(self.config, variables, needed)
            return to_host(jitted(selected, *self._place(args)))

        return call

    def _decode_batch(self, model, variables, codes_BNQ, lengths_B):
        out = model.apply(variables, codes_BNQ, lengths_B, blocks=self.blocks, method="decode")
        return out.hidden_BTD, out.hidden_lengths_B, out.refined_mel_BTM, out.mel_lengths_B

    def _norms_batch(self, model, variables, codes_BNQ, lengths_B):
        """Norm statistics over whole items, (norms, 2, B)."""
        _, sown = model.apply(variables, codes_BNQ, lengths_B, method="decode", mutable=["norms"])
        norms = sown["norms"]["audio_decoder"]
        count = len(self.config.audio_decoder.refine_channels)
        nodes = [norms["upsample1"]["norm"], norms["upsample2"]["norm"]]
        nodes += [norms["refine_net"][f"norm_{i}"] for i in range(count)]
        return jnp.stack([node["sums"][0] for node in nodes])

    def _flow_batch(self, model, variables, hidden_BTD, lengths_B, *numbers):
        keys_B, _ = noise_keys(*numbers)
        noise_BTM = draw_noise(keys_B, hidden_BTD.shape[1], self.config.flow_unet.mel_bins)
        return model.apply(
            variables,
            hidden_BTD,
            lengths_B,
            noise_BTM,
            steps=self.settings.steps,
            guidance=self.settings.guidance,
            blocks=self.blocks,
            method="flow_decode",
        )

    @staticmethod
    def _vocode_batch(model, variables, mel_BTM, lengths_B, *numbers):
        _, keys_B = noise_keys(*numbers)
        return model.apply(
            variables, mel_BTM, lengths_B, keys_B, method=lambda m, *args: m.vocoder(*args)[0]
        )

    # Segments of any lengths

    def decode(self, codes: Sequence[np.ndarray], *, codebooks: int | None = None) -> list[Decoded]:
        """Features and refined mels of segments of codes (N >= 1, Q).

        Args:
          codes: one array per segment.
          codebooks: number of codebooks to use; None: all.

        Raises:
          LengthError: an empty segment, or one longer than the longest padded length.
        """
        variables = self._variables
        if codebooks is not None:
            variables = keep_codebooks(variables, codebooks)
        decoded: dict[int, Decoded] = {}
        for batch, codes_BNQ, lengths_B in self._batches(codes):
            hidden, hidden_B, mel, mel_B = self._decode(variables, codes_BNQ, lengths_B)
            for row, i in enumerate(batch):
                decoded[i] = Decoded(hidden[row, : hidden_B[row]], mel[row, : mel_B[row]])
        return [decoded[i] for i in range(len(codes))]

    def measure_norms(self, codes: Sequence[np.ndarray]) -> tuple[tuple[float, float], ...]:
        """Mean and mean square at each norm of the decoder, for `SynthesisSettings.norms`.

        Averages over segments, each normalised as a whole; some dozens of segments suffice.

        Raises:
          LengthError: as `decode`.
          ValueError: no segment.
        """
        if not codes:
            raise ValueError("no segment to measure the norms on: expected at least 1")
        sums = []
        for batch, codes_BNQ, lengths_B in self._batches(codes):
            sums.append(self._norms(self._variables, codes_BNQ, lengths_B)[:, :, : len(batch)])
        means = np.concatenate(sums, axis=2).astype(np.float64).mean(axis=2)
        return tuple((float(mean), float(square)) for mean, square in means)

    def flow_mels(
        self,
        codes: Sequence[np.ndarray],
        seeds: Sequence[int] | None = None,
        segments: Sequence[int] | None = None,
    ) -> list[np.ndarray]:
        """Log-mels (T, M) of the flow in FLOW_MEL's geometry.

        Args:
          codes: one array per segment.
          seeds, segments: decide each segment's noise, see `noise_keys`; None: 0.

        Raises:
          LengthError: as `decode`.
          ValueError: a model without the flow, or a seed out of range.
        """
        decoded = self.decode(codes)
        mels: dict[int, np.ndarray] = {}
        buckets = [4 * frames - 1 for frames in self.settings.frames]
        sizes = [4 * len(codes_NQ) - 1 for codes_NQ in codes]
        for bucket, batch in batching.batches(sizes, buckets, self.settings.rows, "segment"):
            hidden_BTD, lengths_B = batching.pad(
                [decoded[i].hidden_TD for i in batch], self.settings.rows, bucket
            )
            numbers = self._numbers(batch, seeds, segments)
            mel_BTM, mel_B = self._flow(self._variables, hidden_BTD, lengths_B, *numbers)
            for row, i in enumerate(batch):
                mels[i] = mel_BTM[row, : mel_B[row]]
        return [mels[i] for i in range(len(codes))]

    def waves(
        self,
        codes: Sequence[np.ndarray],
        seeds: Sequence[int] | None = None,
        segments: Sequence[int] | None = None,
    ) -> list[Wave]:
        """Speech of segments of codes, by the mel and vocoder of the settings.

        Arguments and errors as `flow_mels`.
        """
        if self.settings.mel == "decoder":
            return self.waves_without_flow(codes)
        return self.waves_of_mels(self.flow_mels(codes, seeds, segments), seeds, segments)

    def waves_of_mels(
        self,
        mels: Sequence[np.ndarray],
        seeds: Sequence[int] | None = None,
        segments: Sequence[int] | None = None,
    ) -> list[Wave]:
        """Speech of FLOW_MEL log-mels; seeds and segments as in `flow_mels`."""
        if self.settings.vocoder == "griffin_lim":
            return self.invert(mels, FLOW_MEL)
        waves: dict[int, Wave] = {}
        buckets = [4 * frames for frames in self.settings.frames]
        sizes = [len(mel_TM) for mel_TM in mels]
        for bucket, batch in batching.batches(sizes, buckets, self.settings.rows, "mel"):
            mel_BTM, lengths_B = batching.pad([mels[i] for i in batch], self.settings.rows, bucket)
            numbers = self._numbers(batch, seeds, segments)
            wave_BS = self._vocode(self._variables, mel_BTM, lengths_B, *numbers)
            for row, i in enumerate(batch):
                wave_S = wave_BS[row, : lengths_B[row] * FLOW_MEL.hop]
                waves[i] = Wave(wave_S, FLOW_MEL.sample_rate)
        return [waves[i] for i in range(len(mels))]

    def waves_without_flow(self, codes: Sequence[np.ndarray]) -> list[Wave]:
        """Speech at 16 kHz from the decoder's refined mels, by Griffin-Lim."""
        return self.invert([decoded.mel_TM for decoded in self.decode(codes)], HIFIGAN_MEL)

    def invert(self, mels: Sequence[np.ndarray], geometry: MelGeometry) -> list[Wave]:
        """Speech of log-mels (T, M) by Griffin-Lim."""
        invert_one = functools.partial(
            griffin_lim, geometry=geometry, iterations=self.settings.iterations
        )
        # Networks overshoot in bands without speech: such peaks would be audible.
        waves = self._run(invert_one, [np.minimum(mel_TM, LOUDEST) for mel_TM in mels])
        return [Wave(wave_S, geometry.sample_rate) for wave_S in waves]

    def _batches(
        self, codes: Sequence[np.ndarray]
    ) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
        """Yield (indices, padded codes, lengths) of batches of segments."""
        sizes, rows = [len(codes_NQ) for codes_NQ in codes], self.settings.rows
        for bucket, batch in batching.batches(sizes, self.settings.frames, rows, "segment"):
            codes_BNQ, lengths_B = batching.pad([codes[i] for i in batch], rows, bucket)
            yield batch, codes_BNQ.astype(np.int32), lengths_B

    def _numbers(
        self, batch: Sequence[int], seeds: Sequence[int] | None, segments: Sequence[int] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """seeds_B and segments_B of a batch."""
        numbers = np.zeros((2, self.settings.rows), np.uint32)
        if seeds is not None:
            numbers[0, : len(batch)] = [check_seed(seeds[i]) for i in batch]
        if segments is not None:
            numbers[1, : len(batch)] = [segments[i] for i in batch]
        return numbers[0], numbers[1]


LOUDEST = 3.1
"""Highest log-mel value that is inverted: a sine of full scale reaches 3.04 in FLOW_MEL, the
embedded corpus 2.52."""
