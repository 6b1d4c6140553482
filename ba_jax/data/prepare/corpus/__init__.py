"""The embedded corpus and its recipe: see `source`."""

from ba_jax.data.prepare.corpus.source import EmbeddedCorpus

__all__ = ["EmbeddedCorpus"]
