"""Suites by name, and the components of the model that they use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ba_jax.config import ConfigError, expected
from ba_jax.evals.suite import Suite
from ba_jax.evals.suites import (
    asr,
    choice,
    flow_steps,
    qa,
    reconstruction,
    s2tt,
    spoken_qa,
    tts,
)  # fmt: skip

SUITE_MODULES = (asr, s2tt, qa, tts, reconstruction, flow_steps, choice, spoken_qa)
SUITES: Mapping[str, Suite] = {
    suite.name: suite for module in SUITE_MODULES for suite in module.SUITES
}


def components(names: Iterable[str], vocoder: str, hears: str = "codes") -> tuple[str, ...]:
    """Return the components that the named suites use, each once; of settings `vocoder`, `hears`.

    Raises:
      ConfigError: an unknown suite, or one that a model without codes cannot do.
    """
    needed: dict[str, None] = {}
    for name in names:
        if name not in SUITES:
            raise ConfigError(f"suite {expected(name, sorted(SUITES))}")
        needed |= dict.fromkeys(SUITES[name].components)
        if SUITES[name].speaks and vocoder == "vocoder":
            needed["vocoder"] = None
        if hears != "codes" and (SUITES[name].speaks or "llm" not in SUITES[name].components):
            raise ConfigError(f"suite {name}: eval.hears = {hears!r}, expected 'codes'")
    own = ("audio_embed", "audio_head") if hears != "codes" else ()
    return tuple(name for name in needed if name not in own)
