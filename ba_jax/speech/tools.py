"""Make speech tools by the names that configs use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from ba_jax.config import expected
from ba_jax.speech.interfaces import SpeechToolError

# Kind -> name -> (module, class); a module is imported when one of its tools is made.
TOOLS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "synthesiser": {"kokoro": ("kokoro", "Kokoro")},
    "recogniser": {"whisper": ("whisper", "Whisper")},
    "aligner": {
        "pocketsphinx": ("align", "PocketSphinxAligner"),
        "whisper": ("align", "WhisperAligner"),
    },
    "vad": {"silero": ("vad", "Silero")},
    "mos": {"dnsmos": ("opinion", "Dnsmos")},
    "speaker_encoder": {"resemblyzer": ("speakers", "Resemblyzer")},
}


def make_tool(kind: str, name: str, **options) -> Any:
    """Make a tool with the interface of its kind; `kind` and `name` are keys of TOOLS."""
    if name not in TOOLS[kind]:
        raise SpeechToolError(f"{kind} {expected(name, sorted(TOOLS[kind]))}")
    module, attribute = TOOLS[kind][name]
    tool = getattr(importlib.import_module(f"ba_jax.speech.{module}"), attribute)
    try:
        return tool(**options)
    except TypeError as error:
        raise SpeechToolError(f"{kind} {name!r} with {options}: {error}") from error
