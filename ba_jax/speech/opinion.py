"""DNSMOS: a network's estimate of a listener's opinion of speech, 1 to 5.

P.835 overall, signal, background, and P.808 (Reddy et al., 2021, 2022), weights in speechmos.
"""

from __future__ import annotations

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


class Dnsmos:
    """Rates speech."""

    def rate(self, wave_S: np.ndarray, rate: int) -> dict[str, float]:
        """Opinions by name; the overall one is "dnsmos_overall"."""
        dnsmos = import_tool("speechmos.dnsmos", "speechmos")
        if len(wave_S) < SHORTEST * rate:
            raise SpeechToolError(f"{len(wave_S) / rate:.3f} s, expected at least {SHORTEST} s")
        wave_S = np.clip(to_16k(wave_S, rate), -1.0, 1.0)
        if not wave_S.any():
            raise SpeechToolError("silence")
        opinions = dnsmos.run(wave_S, RATE)
        return {name: float(opinions[key]) for key, name in MOS.items()}
