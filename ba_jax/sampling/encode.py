"""Speech encoder: recordings to codes, in batches of few shapes; long ones in pieces."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.audio.lengths import N_FFT, SAMPLE_RATE, mel_length
from ba_jax.audio.mel import WHISPER_MEL, MelGeometry, whisper_log_mel
from ba_jax.models import layers
from ba_jax.models.baichuan_audio import (
    BaichuanAudio,
    BaichuanAudioConfig,
    select_variables,
)
from ba_jax.sampling import batching
from ba_jax.sharding import to_host
from ba_jax.vocab import SPEECH_ENCODER


class Encoder:
    """Encodes waves with the model's audio tokenizer.

    Args:
      config, variables: a model with audio_encoder and vq_bridge.
      rows: batch size.
      seconds: lengths that recordings are padded to; longer recordings are cut into pieces of the
        longest.
      dtype: compute type.
      place: puts a batch's arrays (rows first) on the devices; by default where JAX puts them.
    """

    def __init__(
        self,
        config: BaichuanAudioConfig,
        variables: Mapping[str, Any],
        *,
        rows: int = 16,
        seconds: Sequence[float] = (4.0, 30.0),
        dtype: layers.Dtype = jnp.float32,
        place: Callable[[Any], Any] = lambda arrays: arrays,
    ):
        self._variables = select_variables(config, variables, SPEECH_ENCODER)
        self._model = BaichuanAudio(config.only(*SPEECH_ENCODER), dtype=dtype)
        self.rows, self._seconds, self._place = rows, tuple(sorted(seconds)), place
        self._geometry = MelGeometry(
            WHISPER_MEL.sample_rate,
            WHISPER_MEL.n_fft,
            WHISPER_MEL.hop,
            config.audio_encoder.mel_bins,
        )
        self.traces: collections.Counter = collections.Counter()

        self._none = np.zeros((0, len(config.vq_bridge.codebook_sizes)), np.int32)

        def encode(variables, mel_BTM, lengths_B):
            self.traces["encode"] += 1
            return self._model.apply(variables, mel_BTM, lengths_B, method=run)

        def run(model, mel_BTM, lengths_B):
            return self._frames(model, mel_BTM, lengths_B)

        self._encode = jax.jit(encode)

    def _frames(
        self, model: BaichuanAudio, mel_BTM: jax.Array, lengths_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Frames (B, N, ...) of mels, and their lengths; in jit."""
        return model.encode(mel_BTM, lengths_B)

    def __call__(
        self, waves: Sequence[np.ndarray], progress: Callable[[int], None] | None = None
    ) -> list[np.ndarray]:
        """Codes (N, Q), int32, of mono waves at 16 kHz; N is 0 for a wave under 60 ms.

        Args:
          waves: float (S,) each.
          progress: called with the number of pieces done after each batch.
        """
        longest = int(self._seconds[-1] * SAMPLE_RATE)
        mels: list[np.ndarray] = []
        wave_of_mel: list[int] = []
        for number, wave_S in enumerate(waves):
            for start in range(0, len(wave_S), longest):
                piece_S = wave_S[start : start + longest]
                if len(piece_S) >= N_FFT:
                    mels.append(whisper_log_mel(piece_S, self._geometry))
                    wave_of_mel.append(number)
        buckets = [mel_length(int(seconds * SAMPLE_RATE)) for seconds in self._seconds]
        codes: dict[int, np.ndarray] = {}
        sizes = [len(mel_TM) for mel_TM in mels]
        for bucket, batch in batching.batches(sizes, buckets, self.rows, "piece"):
            mel_BTM, lengths_B = batching.pad([mels[i] for i in batch], self.rows, bucket)
            arrays = self._place((mel_BTM, lengths_B))
            codes_BNQ, frames_B = to_host(self._encode(self._variables, *arrays))
            for row, i in enumerate(batch):
                codes[i] = codes_BNQ[row, : frames_B[row]]
            if progress is not None:
                progress(len(codes))
        pieces: list[list[np.ndarray]] = [[self._none] for _ in waves]
        for i, number in enumerate(wave_of_mel):
            pieces[number].append(codes[i])
        return [np.concatenate(codes_of_wave) for codes_of_wave in pieces]
