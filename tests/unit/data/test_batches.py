"""A config's `data` section as settings: what the members' names and folder mean."""

from __future__ import annotations

import pytest

from ba_jax.config import ConfigError
from ba_jax.data.batches import batch_settings


def data(**changes):
    mixture = {
        "b": {"dataset": "speech", "task": "asr", "weight": 2.0},
        "a": {"dataset": "/elsewhere/text", "task": "text"},
        "none": {"dataset": "speech", "task": "tts", "weight": 0},
    }
    values = {"kind": "packed", "mixture": mixture, "tokenizer": "t", "row_length": 8, "rows": 2}
    return values | {"unit": "tokens", "audio": "codes", "buckets": []} | changes


def test_members_are_in_the_order_of_their_names_without_those_of_weight_0():
    assert [s.dataset for s in batch_settings(data()).mixture] == ["/elsewhere/text", "speech"]


@pytest.mark.parametrize("folder, want", [("", "speech"), ("$DATA/codes", "/data/codes/speech")])
def test_datasets_are_in_the_folder(folder, want, monkeypatch):
    monkeypatch.setenv("DATA", "/data")
    result = batch_settings(data(folder=folder)).mixture
    assert result[1].dataset == want
    assert result[0].dataset == "/elsewhere/text"  # a whole path stays


def test_an_invalid_folder():
    with pytest.raises(ConfigError, match="data.folder = 3: expected str"):
        batch_settings(data(folder=3))
