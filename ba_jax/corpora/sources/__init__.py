"""Corpus sources, one file a corpus layout."""
