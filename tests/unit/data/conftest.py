"""A small dataset and its tokenizer, written once a session."""

from __future__ import annotations

import pathlib

import pytest

from tests.unit.data import small_corpus


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory) -> pathlib.Path:
    """Folder of `small_corpus.records()`, in two shards."""
    directory = tmp_path_factory.mktemp("small_corpus")
    return small_corpus.write_dataset(directory / "small", small_corpus.records(), shards=2)


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory) -> pathlib.Path:
    """File of a SentencePiece model with the nano model's special ids."""
    return small_corpus.write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "small.model")
