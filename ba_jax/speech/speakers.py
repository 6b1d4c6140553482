"""Resemblyzer's speaker encoder (GE2E: three LSTM layers over mel frames) in NumPy."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ba_jax.audio import MelGeometry, hann_window, mel_filterbank, stft
from ba_jax.speech import assets
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.vad import Silero
from ba_jax.speech.waves import RATE, to_16k
from ba_jax.torch_files import TorchFileError, load_torch

_MEL = MelGeometry(RATE, n_fft=400, hop=160, n_mels=40)
_LAYERS = 3
_WIDTH = 256
_WINDOW = 160  # mel frames of a window
_STEP = 77  # frames between windows: 1.3 windows a second
_COVERAGE = 0.75  # of the last window that must be speech
_LOUDNESS = 10 ** (-30 / 20)  # RMS that quieter speech is amplified to
_MIN_SECONDS = 0.4


class Resemblyzer:
    """The speaker encoder: the cosine of two utterances of the same speaker is over 0.76.

    Over three utterances of some 3 s of each of Kokoro's 36 English and Mandarin voices: 0.87 on
    average within a voice, 0.55 between two; equal error rate 1.7 % at 0.757, and 3.9 % at 0.774
    among voices of one sex and accent. 0.07 CPU-seconds for a second of speech.
    """

    def __init__(self, model: str | os.PathLike | None = None, *, vad=None):
        self._model = model
        self._vad = vad if vad is not None else Silero(min_silence=0.2)

    def __getstate__(self):
        return {name: self.__dict__[name] for name in ("_model", "_vad")}

    @functools.cached_property
    def _weights(self) -> Mapping[str, np.ndarray]:
        path = Path(self._model or assets.ensure("resemblyzer") / "pretrained.pt")
        try:
            content, _ = load_torch(path)
        except TorchFileError as error:
            raise SpeechToolError(str(error)) from error
        weights = content.get("model_state") if isinstance(content, dict) else None
        if not isinstance(weights, dict):
            raise SpeechToolError(f"{path}: no 'model_state', expected Resemblyzer's weights")
        shapes = {"linear.weight": (_WIDTH, _WIDTH), "linear.bias": (_WIDTH,)}
        for layer in range(_LAYERS):
            shapes[f"lstm.weight_ih_l{layer}"] = (4 * _WIDTH, _WIDTH if layer else _MEL.n_mels)
            shapes[f"lstm.weight_hh_l{layer}"] = (4 * _WIDTH, _WIDTH)
            shapes[f"lstm.bias_ih_l{layer}"] = shapes[f"lstm.bias_hh_l{layer}"] = (4 * _WIDTH,)
        for name, shape in shapes.items():
            if getattr(weights.get(name), "shape", None) != shape:
                raise SpeechToolError(f"{path}: no {name} of shape {shape}")
        return {name: np.asarray(weights[name], np.float32) for name in shapes}

    def embed(self, wave_S: np.ndarray, rate: int) -> np.ndarray:
        """A unit vector (256,), float32, without negative values; needs 0.4 s of speech."""
        wave_S = to_16k(wave_S, rate)
        stretches = self._vad.speech(wave_S, RATE)
        speech = [wave_S[round(start * RATE) : round(end * RATE)] for start, end in stretches]
        wave_S = np.concatenate(speech) if speech else wave_S[:0]
        if len(wave_S) < _MIN_SECONDS * RATE:
            raise SpeechToolError(
                f"{len(wave_S) / RATE:.2f} s of speech, expected at least {_MIN_SECONDS} s"
            )
        loudness = float(np.sqrt(np.mean(np.square(wave_S))))
        mel_TM = mel_spectrogram(wave_S * max(1.0, _LOUDNESS / max(loudness, 1e-9)))
        windows_BTM = cut_windows(mel_TM, len(wave_S))
        mean_D = self.embed_windows(windows_BTM).mean(axis=0)
        return mean_D / np.linalg.norm(mean_D)

    def embed_windows(self, mel_BTM: np.ndarray) -> np.ndarray:
        """Unit vectors (B, 256) of windows of mel frames."""
        # BLAS threads would wait for each other in each of the 160 small steps.
        with self._threads.limit(limits=1, user_api="blas"):
            return self._embed_windows(mel_BTM)

    @functools.cached_property
    def _threads(self):
        import threadpoolctl

        return threadpoolctl.ThreadpoolController()

    def _embed_windows(self, mel_BTM: np.ndarray) -> np.ndarray:
        w = self._weights
        x_TBD = np.ascontiguousarray(np.moveaxis(mel_BTM, 1, 0), np.float32)
        for layer in range(_LAYERS):
            bias = w[f"lstm.bias_ih_l{layer}"] + w[f"lstm.bias_hh_l{layer}"]
            inputs_TBG = x_TBD @ w[f"lstm.weight_ih_l{layer}"].T + bias
            x_TBD = _lstm(inputs_TBG, w[f"lstm.weight_hh_l{layer}"].T)
        out_BD = np.maximum(x_TBD[-1] @ w["linear.weight"].T + w["linear.bias"], 0.0)
        return out_BD / np.maximum(np.linalg.norm(out_BD, axis=1, keepdims=True), 1e-9)


def mel_spectrogram(wave_S: np.ndarray) -> np.ndarray:
    """Power mel spectrogram (T, 40), not in decibels, of frames centred on every 10 ms."""
    spectrum_TF = stft(wave_S, _MEL.n_fft, _MEL.hop, hann_window(_MEL.n_fft), pad_mode="constant")
    power = np.abs(spectrum_TF) ** 2
    return (power @ mel_filterbank(_MEL)).astype(np.float32)


def cut_windows(mel_TM: np.ndarray, samples: int) -> np.ndarray:
    """Windows (B, 160, 40) that overlap by half; the last is padded with silence."""
    starts = list(range(0, max(1, len(mel_TM) - _WINDOW + _STEP + 1), _STEP))
    if len(starts) > 1 and samples / _MEL.hop - starts[-1] < _COVERAGE * _WINDOW:
        starts.pop()
    padding = max(0, starts[-1] + _WINDOW - len(mel_TM))
    mel_TM = np.pad(mel_TM, ((0, padding), (0, 0)))
    return np.stack([mel_TM[start : start + _WINDOW] for start in starts])


def _sigmoid(x):
    return 0.5 * np.tanh(0.5 * x) + 0.5


def _lstm(inputs_TBG: np.ndarray, recurrent_DG: np.ndarray) -> np.ndarray:
    """Hidden states (T, B, D) of one layer; gates in torch's order: input, forget, cell, output."""
    hidden_BD = np.zeros((inputs_TBG.shape[1], recurrent_DG.shape[0]), np.float32)
    cell_BD = np.zeros_like(hidden_BD)
    states = []
    for inputs_BG in inputs_TBG:
        i, f, g, o = np.split(inputs_BG + hidden_BD @ recurrent_DG, 4, axis=1)
        cell_BD = _sigmoid(f) * cell_BD + _sigmoid(i) * np.tanh(g)
        hidden_BD = _sigmoid(o) * np.tanh(cell_BD)
        states.append(hidden_BD)
    return np.stack(states)
