"""Measures of a wave's sound, against a recording of the same words or by itself.

    pesq_wb   ITU-T P.862.2 (wideband PESQ), package pesq: 1.0 to 4.6
    stoi      short-time objective intelligibility (Taal et al., 2011), package pystoi: to 1
    dnsmos, distillmos    networks' estimates of a listener's opinion, 1 to 5, the second where it
              is installed, see `ba_jax.speech.opinion`

All are measured at 16 kHz. The first two compare; both waves are cut to the shorter one's length.
"""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ba_jax.audio.resample import resample
from ba_jax.evals.items import EvalError
from ba_jax.evals.scoring import bootstrap
from ba_jax.sampling.synthesize import Wave
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.opinion import MOS, SHORTEST, DistillMos, Dnsmos
from ba_jax.types import Failure

RATE = 16000
DECLARED = {
    "pesq_wb": "pesq, ITU-T P.862.2 wideband, 16 kHz",
    "stoi": "pystoi, not extended, 16 kHz",
    "dnsmos": "speechmos: DNSMOS P.835 and P.808, 16 kHz",
    "distillmos": "distillmos, 16 kHz, where it is installed",
}
_PACKAGES = ("pesq", "pystoi", "speechmos", "onnxruntime", "requests")
_SHORTEST = SHORTEST  # PESQ refuses less too
MEASURES = ("pesq_wb", "stoi", *MOS.values(), "distillmos")


def require() -> None:
    """Raise EvalError if a package is not installed."""
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            raise EvalError(
                f"reconstruction: {name} is not installed: pip install 'ba_jax[eval]'"
            ) from None


WavePair = tuple[Wave | Failure | None, Wave | Failure | None]
"""A wave, and the recording that it should sound like."""


def measure(waves: WavePair) -> dict[str, float | str]:
    """Measure a wave: MEASURES and `dnsmos_overall_on_reference`; `NAME_failed` is the reason."""
    results: dict[str, float | str] = {}
    wave_S, reference_S = (_resample_to_16k(wave) for wave in waves)
    length = min(len(wave_S), len(reference_S))
    for name, function in (("pesq_wb", _pesq), ("stoi", _stoi)):
        if length < _SHORTEST * RATE:
            value = f"{length / RATE:.3f} s, expected at least {_SHORTEST} s"
        elif not reference_S.any():
            value = "a reference of silence"
        else:
            value = function(wave_S[:length], reference_S[:length])
        results |= {f"{name}_failed": value} if isinstance(value, str) else {name: value}
    for heard_S, suffix in ((wave_S, ""), (reference_S, "_on_reference")):
        opinions = _dnsmos(heard_S)
        if isinstance(opinions, str):
            results["dnsmos" + suffix + "_failed"] = opinions
        elif suffix:
            results["dnsmos_overall" + suffix] = opinions["dnsmos_overall"]
        else:
            results |= opinions
    if (opinion := _distillmos(wave_S)) is not None:
        results |= {"distillmos_failed" if isinstance(opinion, str) else "distillmos": opinion}
    return results


def _resample_to_16k(wave: Wave | Failure | None) -> np.ndarray:
    if wave is None or isinstance(wave, Failure):
        return np.zeros(0, np.float32)
    wave_S = wave.wave_S if wave.rate == RATE else resample(wave.wave_S, wave.rate, RATE)
    return np.clip(wave_S, -1.0, 1.0).astype(np.float32)


def _pesq(wave_S: np.ndarray, reference_S: np.ndarray) -> float | str:
    import pesq

    try:
        value = float(pesq.pesq(RATE, reference_S, wave_S, "wb"))
    except (pesq.PesqError, ValueError, ZeroDivisionError) as error:
        message = error.args[0] if error.args else error
        return message.decode() if isinstance(message, bytes) else str(message)
    return value if math.isfinite(value) else f"{value}"


def _stoi(wave_S: np.ndarray, reference_S: np.ndarray) -> float | str:
    import pystoi

    # It warns, and returns 1e-5, if too little of the reference is louder than silence.
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            value = float(pystoi.stoi(reference_S, wave_S, RATE, extended=False))
        except (RuntimeWarning, ValueError) as error:
            return str(error).split(".")[0]
    return value if math.isfinite(value) else f"{value}"


def _dnsmos(wave_S: np.ndarray) -> dict[str, float] | str:
    try:
        return Dnsmos().rate(wave_S, RATE)
    except SpeechToolError as error:
        return str(error)


@functools.cache
def _second_predictor() -> DistillMos | None:
    return DistillMos() if DistillMos.is_installed() else None


def _distillmos(wave_S: np.ndarray) -> float | str | None:
    predictor = _second_predictor()
    try:
        return None if predictor is None else predictor.rate(wave_S, RATE)
    except SpeechToolError as error:
        return str(error)


def figures(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return means with intervals, over the items that have the measure, and counts of failures."""
    results: dict[str, Any] = {}
    for name in (*MEASURES, "dnsmos_overall_on_reference"):
        values = [measures[name] for measures in measured if name in measures]
        results |= bootstrap.mean_figures(f"reconstruction_{name}", values)
    for name in ("pesq_wb", "stoi", "dnsmos", "distillmos"):
        key = f"{name}_failed"
        results[f"reconstruction_{key}"] = sum(key in measures for measures in measured)
    results["reconstruction_sound"] = dict(DECLARED)
    return results
