"""The embedded corpus and its recipe, see `source`."""

from ba_jax.corpora.embedded.source import EmbeddedCorpus

__all__ = ["EmbeddedCorpus"]
