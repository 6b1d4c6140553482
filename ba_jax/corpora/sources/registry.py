"""The sources that `prepare` knows, by the names that configs call them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from ba_jax.corpora.sources.listing import SourceError

SOURCES: Mapping[str, str] = {
    "manifest": "ba_jax.corpora.sources.manifest:Manifest",
    "librispeech": "ba_jax.corpora.sources.libri:LibriSpeech",
    "libritts": "ba_jax.corpora.sources.libri:LibriTTS",
    "ljspeech": "ba_jax.corpora.sources.ljspeech:LJSpeech",
    "aishell": "ba_jax.corpora.sources.aishell:Aishell",
    "wenetspeech": "ba_jax.corpora.sources.wenetspeech:WenetSpeech",
    "fleurs": "ba_jax.corpora.sources.fleurs:Fleurs",
    "common_voice": "ba_jax.corpora.sources.common_voice:CommonVoice",
    "covost2": "ba_jax.corpora.sources.common_voice:Covost2",
    "text": "ba_jax.corpora.sources.plain_text:PlainText",
    "embedded": "ba_jax.corpora.embedded:EmbeddedCorpus",
    "crawl": "ba_jax.corpora.sources.crawl:Crawl",
    "synthetic": "ba_jax.corpora.sources.synthetic:Synthetic",
    "spliced": "ba_jax.corpora.sources.spliced:Spliced",
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
