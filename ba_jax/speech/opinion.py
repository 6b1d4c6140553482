"""Networks' estimates of a listener's opinion of speech, 1 to 5.

DNSMOS: P.835 overall, signal, background, and P.808 (Reddy et al., 2021, 2022), weights in
speechmos. DistillMOS: a distilled wav2vec predictor (Stahl and Gamper, 2025), weights in
distillmos, which needs PyTorch: `pip install --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0`.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import types
from typing import Any

import numpy as np

from ba_jax.speech.interfaces import SpeechToolError, import_tool
from ba_jax.speech.waves import to_16k

RATE = 16000
SHORTEST = 0.25
"""Seconds; speechmos loops for ever on no samples."""
MOS = {
    "ovrl_mos": "dnsmos_overall",
    "sig_mos": "dnsmos_signal",
    "bak_mos": "dnsmos_background",
    "p808_mos": "dnsmos_p808",
}
"""Name in speechmos -> name here."""


def _check_wave(wave_S: np.ndarray, rate: int) -> np.ndarray:
    """The wave at 16 kHz, or SpeechToolError if it cannot be rated."""
    if len(wave_S) < SHORTEST * rate:
        raise SpeechToolError(f"{len(wave_S) / rate:.3f} s, expected at least {SHORTEST} s")
    wave_S = np.clip(to_16k(wave_S, rate), -1.0, 1.0)
    if not wave_S.any():
        raise SpeechToolError("silence")
    return wave_S


class Dnsmos:
    """Rates speech."""

    def rate(self, wave_S: np.ndarray, rate: int) -> dict[str, float]:
        """Opinions by name; the overall one is "dnsmos_overall"."""
        dnsmos = import_tool("speechmos.dnsmos", "speechmos")
        opinions = dnsmos.run(_check_wave(wave_S, rate), RATE)
        return {name: float(opinions[key]) for key, name in MOS.items()}


class DistillMos:
    """Rates speech by a second predictor, where it is installed."""

    @staticmethod
    def is_installed() -> bool:
        """Whether the package and PyTorch are there."""
        return all(importlib.util.find_spec(name) for name in ("distillmos", "torch"))

    @functools.cached_property
    def _model(self) -> Any:
        # distillmos imports torchaudio to read files, which waves in memory do not need; no
        # torchaudio loads beside the newest PyTorch.
        absent = "torchaudio" not in sys.modules
        if absent:
            sys.modules["torchaudio"] = types.ModuleType("torchaudio")
        try:
            distillmos = import_tool("distillmos", "distillmos")
        finally:
            if absent:
                del sys.modules["torchaudio"]
        return distillmos.ConvTransformerSQAModel().eval()

    def rate(self, wave_S: np.ndarray, rate: int) -> float:
        """The opinion of a wave."""
        wave_S, model = _check_wave(wave_S, rate), self._model
        torch = import_tool("torch", "torch")
        with torch.inference_mode():
            return float(model(torch.from_numpy(wave_S)[None])[0])
