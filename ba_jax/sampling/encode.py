"""Recordings to codes, in batches of few shapes."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.audio import lengths as audio_lengths
from ba_jax.audio.mel import WHISPER_MEL, MelGeometry, whisper_log_mel
from ba_jax.models import layers
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig
from ba_jax.sampling import batching
from ba_jax.sharding import to_host


class Encoder:
    """Codes of waves, as the model's audio tokenizer gives them.

    Args:
      config, variables: a model with audio_encoder and vq_bridge.
      rows: batch size.
      seconds: lengths that recordings are padded to; longer ones are cut into pieces of the last.
      dtype: compute type.
      place: puts a batch's arrays (rows first) on the devices; by default where JAX puts them.
    """

    def __init__(
        self,
        config: BaichuanAudioConfig,
        variables: dict[str, Any],
        *,
        rows: int = 16,
        seconds: Sequence[float] = (4.0, 30.0),
        dtype: layers.Dtype = jnp.float32,
        place: Callable[[Any], Any] = lambda arrays: arrays,
    ):
        needed = ("audio_encoder", "vq_bridge")
        absent = [name for name in needed if getattr(config, name) is None]
        if absent:
            raise ValueError(f"model without {absent}: expected {needed}")
        self._model = BaichuanAudio(config.only(*needed), dtype=dtype)
        self._variables = {
            collection: {name: tree[name] for name in needed if name in tree}
            for collection, tree in variables.items()
        }
        self.rows, self._seconds, self._place = rows, tuple(sorted(seconds)), place
        self._geometry = MelGeometry(
            WHISPER_MEL.sample_rate,
            WHISPER_MEL.n_fft,
            WHISPER_MEL.hop,
            config.audio_encoder.mel_bins,
        )
        self.traces: collections.Counter = collections.Counter()

        def encode(variables, mel_BTM, lengths_B):
            self.traces["encode"] += 1
            return self._model.apply(variables, mel_BTM, lengths_B, method="encode")

        self._encode = jax.jit(encode)

    def __call__(
        self, waves: Sequence[np.ndarray], progress: Callable[[int], None] | None = None
    ) -> list[np.ndarray]:
        """Codes (N, Q), int32, of mono waves at 16 kHz; N may be 0 for one under 60 ms.

        Args:
          waves: float (S,) each.
          progress: called with the number of pieces done after each batch.
        """
        longest = int(self._seconds[-1] * audio_lengths.SAMPLE_RATE)
        mels: list[np.ndarray] = []
        owners: list[int] = []
        for number, wave_S in enumerate(waves):
            pieces = [wave_S[i : i + longest] for i in range(0, len(wave_S), longest)]
            for piece in pieces:
                if len(piece) >= audio_lengths.N_FFT:
                    mels.append(whisper_log_mel(piece, self._geometry))
                    owners.append(number)
        buckets = [
            audio_lengths.mel_length(int(s * audio_lengths.SAMPLE_RATE)) for s in self._seconds
        ]
        found: dict[int, np.ndarray] = {}
        for bucket, some in batching.batches([len(m) for m in mels], buckets, self.rows, "piece"):
            mel_BTM, lengths_B = batching.pad([mels[i] for i in some], self.rows, bucket)
            arrays = self._place((mel_BTM, lengths_B))
            codes_BNQ, frames_B = to_host(self._encode(self._variables, *arrays))
            for row, i in enumerate(some):
                found[i] = codes_BNQ[row, : frames_B[row]]
            if progress is not None:
                progress(len(found))
        codebooks = len(self._model.config.vq_bridge.codebook_sizes)
        result = []
        for number in range(len(waves)):
            own = [found[i] for i, owner in enumerate(owners) if owner == number]
            result.append(np.concatenate(own) if own else np.zeros((0, codebooks), np.int32))
        return result
