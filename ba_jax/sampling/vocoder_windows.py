"""The vocoder of streams: overlapping windows over mels that grow.

A window starts a receptive field before the samples to be played and ends `hold` frames after them;
the phase of the fundamental is carried from window to window. A cache for each of the vocoder's
convolutions is not worth it: it takes a tenth of the flow's work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ba_jax.models import layers
from ba_jax.models.baichuan_audio import (
    BaichuanAudio,
    BaichuanAudioConfig,
    select_variables,
)
from ba_jax.models.vocoder import WindowPosition
from ba_jax.models.vocoder_config import receptive_field
from ba_jax.sampling.synthesize import noise_keys


@dataclasses.dataclass
class VocoderWindow:
    """A segment's position in the vocoder.

    Attributes:
      mel_TM: its final mel frames from `first` on; None: none yet.
      first: first frame of the next window.
      played: frames whose samples are done.
      phase: phase of the fundamental before the next window's anchor.
      ended: no more frames follow.
    """

    mel_TM: np.ndarray | None = None
    first: int = 0
    played: int = 0
    phase: int = 0
    ended: bool = False

    @property
    def frames(self) -> int:
        """Mel frames of the segment so far."""
        return self.first + (0 if self.mel_TM is None else len(self.mel_TM))

    def extend(self, mel_TM: np.ndarray, ended: bool) -> None:
        """Append frames; `ended`: they are the last ones."""
        self.mel_TM = mel_TM if self.mel_TM is None else np.concatenate([self.mel_TM, mel_TM])
        self.ended = ended


class VocoderWindows:
    """Runs the vocoder over windows, one segment per row.

    Args:
      config, variables: a model with vocoder.
      hold: frames that a sample waits for; None: all that it depends on.
      sizes: numbers of new frames that windows have room for.
      rows: batch size.
      dtype: compute type.
      jit: compiles the window's function.
    """

    def __init__(
        self,
        config: BaichuanAudioConfig,
        variables: Mapping[str, Any],
        *,
        hold: int | None,
        sizes: Sequence[int],
        rows: int,
        dtype: layers.Dtype,
        jit: Callable[[Callable], Callable],
    ):
        self._variables = select_variables(config, variables, ("vocoder",))
        self._config, self._sizes, self._rows = config.vocoder, tuple(sizes), rows
        reach = receptive_field(self._config)
        self._before = max(reach, 2 * self._config.f0_layers)
        self._hold = reach if hold is None else min(hold, reach)
        model = BaichuanAudio(config.only("vocoder"), dtype=dtype)

        def window(variables, mel_BTM, lengths_B, position, *numbers):
            _, keys_B = noise_keys(*numbers)
            return model.apply(
                variables,
                mel_BTM,
                lengths_B,
                keys_B,
                position,
                method=lambda m, *args: m.vocoder.window(*args),
            )

        self._window = jit(window)

    def run(
        self, windows: Mapping[int, VocoderWindow], numbers: tuple[np.ndarray, np.ndarray]
    ) -> dict[int, list[np.ndarray]]:
        """Row -> pieces of the samples that have become final.

        Args:
          windows: row -> its segment.
          numbers: seeds_B and segments_B, see `noise_keys`.
        """
        samples: dict[int, list[np.ndarray]] = {row: [] for row in windows}
        while True:
            waiting = {row: self._final(w) - w.played for row, w in windows.items()}
            ready = {row: windows[row] for row, count in waiting.items() if count > 0}
            if not ready:
                return samples
            most = max(waiting.values())
            size = next((size for size in self._sizes if size >= most), self._sizes[-1])
            for row, wave_S in self.step(size, ready, numbers).items():
                samples[row].append(wave_S)

    def step(
        self,
        size: int,
        windows: Mapping[int, VocoderWindow],
        numbers: tuple[np.ndarray, np.ndarray],
    ) -> dict[int, np.ndarray]:
        """Row -> the samples of a window with room for `size` new frames."""
        room = self._before + size + self._hold
        mel_BTM = np.zeros((self._rows, room, self._config.mel_bins), np.float32)
        lengths_B = np.ones(self._rows, np.int32)
        zeros = (np.zeros(self._rows, np.int32) for _ in WindowPosition._fields)
        position = WindowPosition(*zeros)
        stop_B = np.zeros(self._rows, np.int32)
        for row, window in windows.items():
            mel_TM = window.mel_TM[:room]
            mel_BTM[row, : len(mel_TM)] = mel_TM
            # Until more frames arrive, the last one is the best guess at them.
            mel_BTM[row, len(mel_TM) :] = mel_TM[-1]
            is_last = window.ended and len(window.mel_TM) <= room
            lengths_B[row] = len(mel_TM) if is_last else room
            stop = window.frames if is_last else window.first + room - self._hold
            stop_B[row] = min(stop, self._final(window))
            position.first_B[row] = window.first
            position.phase_B[row] = window.phase
            position.anchor_B[row] = self._anchor(window.first) - window.first
            position.next_B[row] = self._anchor(self._first(stop_B[row])) - window.first
        wave_BS, phase_B = jax.device_get(
            self._window(self._variables, mel_BTM, lengths_B, position, *numbers)
        )
        samples = {}
        for row, window in windows.items():
            frames = (int(frame) - window.first for frame in (window.played, stop_B[row]))
            start, stop = (frame * self._config.frame_samples for frame in frames)
            samples[row] = wave_BS[row, start:stop]
            first = self._first(stop_B[row])
            window.mel_TM = window.mel_TM[first - window.first :]
            window.first, window.played = first, int(stop_B[row])
            window.phase = int(phase_B[row])
        return samples

    def _final(self, window: VocoderWindow) -> int:
        """Number of frames whose samples no longer change."""
        return window.frames if window.ended else max(0, window.frames - self._hold)

    def _first(self, played: int) -> int:
        """First frame of the window that continues after `played` frames."""
        return max(0, int(played) - self._before)

    def _anchor(self, first: int) -> int:
        """First frame whose f0 in a window equals that of the whole segment."""
        return first + self._config.f0_layers if first else 0
