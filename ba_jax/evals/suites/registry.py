"""The evaluations by name, and what they need of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ba_jax.evals.suite import EvalError, Suite
from ba_jax.evals.suites import asr, choice, flow_steps, qa, reconstruction, s2tt, spoken_qa, tts

SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        asr.Recognition(),
        s2tt.Translation(),
        *qa.suites(),
        tts.Speaking(),
        reconstruction.Codec(),
        reconstruction.Reconstruction(),
        flow_steps.FlowSteps(),
        *choice.suites(),
        *spoken_qa.suites(),
    )
}


def components(names: Iterable[str], vocoder: str) -> tuple[str, ...]:
    """What the named evaluations need of a model, each once.

    Raises:
      EvalError: an unknown name.
    """
    needed: dict[str, None] = {}
    for name in names:
        if name not in SUITES:
            raise EvalError(f"suite {name!r}, expected one of {sorted(SUITES)}")
        needed |= dict.fromkeys(SUITES[name].components)
        if SUITES[name].speaks and vocoder == "vocoder":
            needed["vocoder"] = None
    return tuple(needed)
