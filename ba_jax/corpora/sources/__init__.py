"""Corpus sources, one file per corpus layout."""
