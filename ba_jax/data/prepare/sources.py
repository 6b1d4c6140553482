"""The sources that `prepare` knows, by the names that configs call them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from ba_jax.data.prepare.listing import SourceError

SOURCES: Mapping[str, str] = {
    "manifest": "ba_jax.data.prepare.manifest:Manifest",
    "librispeech": "ba_jax.data.prepare.libri:LibriSpeech",
    "libritts": "ba_jax.data.prepare.libri:LibriTTS",
    "ljspeech": "ba_jax.data.prepare.ljspeech:LJSpeech",
    "aishell": "ba_jax.data.prepare.aishell:Aishell",
    "wenetspeech": "ba_jax.data.prepare.wenetspeech:WenetSpeech",
    "fleurs": "ba_jax.data.prepare.fleurs:Fleurs",
    "common_voice": "ba_jax.data.prepare.common_voice:CommonVoice",
    "covost2": "ba_jax.data.prepare.common_voice:Covost2",
    "text": "ba_jax.data.prepare.plain_text:PlainText",
    "embedded": "ba_jax.data.prepare.corpus:EmbeddedCorpus",
    "crawl": "ba_jax.data.prepare.crawl:Crawl",
    "synthetic": "ba_jax.data.prepare.synthetic:Synthetic",
    "spliced": "ba_jax.data.prepare.spliced:Spliced",
}
"""Kind -> module:class, imported when asked for: some need heavy tools."""


def source_class(kind: str) -> type:
    """The class of a kind of source, a frozen dataclass.

    Raises:
      SourceError: an unknown kind.
    """
    if kind not in SOURCES:
        raise SourceError(f"kind = {kind!r}, expected one of {sorted(SOURCES)}")
    module, name = SOURCES[kind].split(":")
    return getattr(importlib.import_module(module), name)
