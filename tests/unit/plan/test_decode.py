"""Bytes of a step of generation."""

from __future__ import annotations

import pytest

from ba_jax.config import from_mapping
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.plan import decode
from ba_jax.vocab import LANGUAGE_MODEL
from configs import models


def test_needed_bytes_by_hand():
    """By hand: 13.05 GB of layers, 2.47 + 8 x 0.308 + 0.14 of the head, 57 kB a token."""
    config = from_mapping(BaichuanAudioConfig, models.get_config("7b")).only(*LANGUAGE_MODEL)
    frame = decode.needed_bytes(config, "frame", 1, 2048, 2)
    assert frame == pytest.approx(13.05e9 + 2.47e9 + 8 * 0.308e9 + 0.14e9 + 57344 * 2048, rel=2e-3)
    sixteen = decode.needed_bytes(config, "frame", 16, 2048, 2)
    assert sixteen - frame == 15 * 57344 * 2048
    text = decode.needed_bytes(config, "text", 1, 2048, 2)
    assert text == pytest.approx(13.05e9 + 1.09e9 + 57344 * 2048, rel=2e-3)
