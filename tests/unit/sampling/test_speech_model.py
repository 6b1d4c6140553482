"""The speech model: shared parts, and joined segments of a request."""

import dataclasses

import numpy as np
import pytest

from ba_jax.audio import crossfade
from ba_jax.sampling.settings import GenerationSettings, SpeechModelSettings
from ba_jax.sampling.speech_model import SpeechModel
from ba_jax.sampling.stream import for_streaming
from ba_jax.sampling.synthesize import SynthesisSettings

SYNTHESIS = SynthesisSettings("griffin_lim", mel="decoder", iterations=1, rows=2, frames=(8,))


@pytest.fixture(scope="module")
def model(config, variables):
    return SpeechModel(
        config, variables, SpeechModelSettings(tokenizer="embedded", synthesis=SYNTHESIS)
    )


def test_segments_of_a_request_are_joined(config, model):
    rng = np.random.default_rng(0)
    sizes = model.codebook_sizes
    first, second, third = (rng.integers(0, sizes, (n, len(sizes))) for n in (3, 5, 4))
    nothing = np.zeros((0, len(sizes)), np.int32)
    joined = model.speak([[first, nothing, second], [nothing], [third]], [1, 2, 3], [0, 0, 4])
    assert joined[1] is None and model.speak([[nothing], []], [1, 2], [0, 0]) == [None, None]
    waves = model.synthesizer.waves([first, second, third])
    fade = crossfade.fade_samples(waves[0].rate)
    wanted = crossfade.join([wave.wave_S for wave in waves[:2]], fade=fade)
    np.testing.assert_allclose(joined[0].wave_S, wanted, atol=1e-5)
    np.testing.assert_allclose(joined[2].wave_S, waves[2].wave_S, atol=1e-5)


def test_synthesizers_are_built_once_per_settings(model):
    assert model.synthesizer is model.synthesizer_with(SYNTHESIS)
    other = dataclasses.replace(SYNTHESIS, iterations=2)
    assert model.synthesizer_with(other) is not model.synthesizer
    streaming = for_streaming(SYNTHESIS, (8,), 2)
    assert model.streaming_synthesizer(streaming) is model.streaming_synthesizer(streaming)


def test_capacity():
    settings = GenerationSettings(lengths=(8, 16), max_text=4, max_frames=5)
    assert settings.cache_slots() == 16 + 4 + 5 + 3
    assert dataclasses.replace(settings, capacity=40).cache_slots() == 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows 0, .*expected at least 1 of each"),
        ({"lengths": ()}, "expected at least 1 of each"),
        ({"capacity": 256}, "capacity 256, expected over 256"),
    ],
)
def test_invalid_generation_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        GenerationSettings(**changes)
