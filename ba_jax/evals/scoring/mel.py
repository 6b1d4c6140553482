"""Mel errors: mean |difference| in nats, over bins and frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ba_jax.audio.mel import MelGeometry, log_mel
from ba_jax.data.features import decode
from ba_jax.data.record import Part
from ba_jax.evals.scoring import bootstrap


def recorded_mel(part: Part, geometry: MelGeometry) -> np.ndarray:
    """Compute a recording's log-mel (T, M)."""
    return log_mel(decode(part.audio, part.seconds, (geometry.sample_rate,))[0], geometry)


def mel_error(mel_TM: np.ndarray, reference_TM: np.ndarray) -> tuple[float, int]:
    """Return (sum over frames of the bins' mean |difference|, frames).

    Frames past the shorter one's end are left out: codes cover a little less than the audio.
    """
    frames = min(len(mel_TM), len(reference_TM))
    errors_T = np.abs(mel_TM[:frames] - reference_TM[:frames]).mean(axis=1, dtype=np.float64)
    return float(errors_T.sum()), frames


def error_columns(errors: Mapping[str, tuple[float, int]]) -> dict[str, dict[str, float]]:
    """Turn results of `mel_error` into a row's `mel_mae`, the mean per frame, and `mel_frames`."""
    return {
        "mel_mae": {name: total / frames for name, (total, frames) in errors.items()},
        "mel_frames": {name: frames for name, (_, frames) in errors.items()},
    }


def pooled_error(pairs: Sequence[tuple[float, int]]) -> float:
    """Return the mean over all frames of (an item's mean, its frames)."""
    return sum(mean * frames for mean, frames in pairs) / sum(frames for _, frames in pairs)


def pooled_interval(pairs: Sequence[tuple[float, int]]) -> list[float] | None:
    """Return the interval of `pooled_error`."""
    totals = [mean * frames for mean, frames in pairs]
    return bootstrap.ratio_interval(totals, [frames for _, frames in pairs])
