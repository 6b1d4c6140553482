"""Speech tools by name, as a config chooses them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from ba_jax.speech.interfaces import (
    Aligner,
    Recogniser,
    SpeakerEncoder,
    SpeechToolError,
    Synthesiser,
    VoiceActivity,
)

# Kind -> name -> (module, class); modules are imported when one of theirs is made.
TOOLS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "synthesiser": {"kokoro": ("kokoro", "Kokoro")},
    "recogniser": {"whisper": ("whisper", "Whisper")},
    "aligner": {
        "pocketsphinx": ("align", "PocketSphinxAligner"),
        "whisper": ("align", "WhisperAligner"),
    },
    "vad": {"silero": ("vad", "Silero")},
    "speaker_encoder": {"resemblyzer": ("speakers", "Resemblyzer")},
}


def _make(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    if name not in TOOLS[kind]:
        raise SpeechToolError(f"{kind} {name!r}, expected one of {sorted(TOOLS[kind])}")
    module, attribute = TOOLS[kind][name]
    tool = getattr(importlib.import_module(f"ba_jax.speech.{module}"), attribute)
    try:
        return tool(**options)
    except TypeError as error:
        raise SpeechToolError(f"{kind} {name!r} with {dict(options)}: {error}") from error


def make_synthesiser(name: str = "kokoro", **options) -> Synthesiser:
    """A synthesiser; `options` are the class's arguments.

    Raises:
      SpeechToolError: an unknown name or option, here and in all functions below.
    """
    return _make("synthesiser", name, options)


def make_recogniser(name: str = "whisper", **options) -> Recogniser:
    """A recogniser."""
    return _make("recogniser", name, options)


def make_aligner(name: str = "pocketsphinx", **options) -> Aligner:
    """An aligner."""
    return _make("aligner", name, options)


def make_vad(name: str = "silero", **options) -> VoiceActivity:
    """A finder of speech."""
    return _make("vad", name, options)


def make_speaker_encoder(name: str = "resemblyzer", **options) -> SpeakerEncoder:
    """A speaker encoder."""
    return _make("speaker_encoder", name, options)
