"""Griffin-Lim of a mel that comes in pieces.

Each window begins with frames that were heard already: their samples are kept as they are while the
phase of what follows is looked for, so that it fits on. A wave's phase is not unique: the result
has the mel that was asked for, as `griffin_lim`'s has, but is another wave than the whole gives.
"""

from __future__ import annotations

import numpy as np

from ba_jax.audio.crossfade import fade_samples
from ba_jax.audio.griffin_lim import griffin_lim
from ba_jax.audio.mel import FLOW_MEL, MelGeometry


class GriffinLimStream:
    """A wave from pieces of a mel.

    Args:
      geometry: of the mel.
      iterations: of each window's phase.
      context: frames already heard that a window begins with.
      hold: frames at the end of what is known that wait for more; the window of a frame's spectrum
        reaches over `n_fft / hop` frames.
    """

    def __init__(
        self,
        geometry: MelGeometry = FLOW_MEL,
        *,
        iterations: int = 32,
        context: int = 12,
        hold: int = 4,
    ):
        self.geometry, self.iterations = geometry, iterations
        self._context, self._hold = context, hold
        self._fade = fade_samples(geometry.sample_rate)
        self._mel_TM = np.zeros((0, geometry.n_mels), np.float32)
        self._first = 0  # frame that `_mel_TM` begins with
        self._given = 0  # frames given so far
        self._heard_S = np.zeros(0, np.float32)  # samples of frames _first to _given
        self._tail_S = np.zeros(0, np.float32)  # how the window before went on after them

    def push(self, mel_TM: np.ndarray, ends: bool = False) -> np.ndarray:
        """Takes the next frames, gives the samples (hop a frame) that are final.

        Args:
          mel_TM: natural-log mel of any number of frames, 0 included.
          ends: these are the last ones: all samples are given.

        Raises:
          ValueError: as `griffin_lim`.
        """
        hop = self.geometry.hop
        self._mel_TM = np.concatenate([self._mel_TM, mel_TM])
        known = self._first + len(self._mel_TM)
        upto = known if ends else known - self._hold
        if upto <= self._given:
            return np.zeros(0, np.float32)
        wave_S = griffin_lim(
            self._mel_TM,
            self.geometry,
            iterations=self.iterations,
            seed=self._first,
            known_S=self._heard_S,
        )
        start, stop = ((frame - self._first) * hop for frame in (self._given, upto))
        fade = min(self._fade, len(self._tail_S), stop - start)
        rise_S = np.linspace(0, 1, fade, dtype=np.float32)
        head_S = wave_S[start : start + fade]
        head_S[:] = self._tail_S[:fade] * (1 - rise_S) + head_S * rise_S
        given_S = wave_S[start:stop].copy()
        self._tail_S = wave_S[stop : stop + self._fade].copy()
        self._given = upto
        first = max(self._first, upto - self._context)
        heard_S = np.concatenate([self._heard_S, given_S])
        self._heard_S = heard_S[(first - self._first) * hop :]
        self._mel_TM = self._mel_TM[first - self._first :]
        self._first = first
        return given_S
