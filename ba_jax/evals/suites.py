"""The evaluations by name, and what each needs of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from ba_jax.evals import asr, flow_steps, qa, reconstruction, tts
from ba_jax.evals.base import Bench, EvalError, Outcome

_TEXT = ("llm", "audio_embed", "audio_head")
_ENCODE = ("audio_encoder", "vq_bridge")
_MEL = ("vq_bridge", "audio_decoder")
_DECODE = (*_MEL, "flow_prenet", "flow_unet")


@dataclasses.dataclass(frozen=True)
class Suite:
    """An evaluation.

    Attributes:
      run: does it.
      components: of the model that it uses.
      speaks: it uses the vocoder too, where that is what codes become waves by.
    """

    run: Callable[[Bench], Outcome]
    components: tuple[str, ...]
    speaks: bool = False


SUITES: Mapping[str, Suite] = {
    "asr": Suite(asr.run, _TEXT + _ENCODE),
    "qa_s2t": Suite(qa.spoken_to_text, _TEXT + _ENCODE),
    "qa_t2t": Suite(qa.text_to_text, ("llm",)),
    "qa_s2s": Suite(qa.spoken_to_spoken, _TEXT + _ENCODE + _DECODE, speaks=True),
    "tts": Suite(tts.run, _TEXT + _DECODE, speaks=True),
    "codec": Suite(reconstruction.codec, _ENCODE + _MEL),
    "reconstruction": Suite(reconstruction.run, _ENCODE + _DECODE, speaks=True),
    "flow_steps": Suite(flow_steps.run, _ENCODE + _DECODE, speaks=True),
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
