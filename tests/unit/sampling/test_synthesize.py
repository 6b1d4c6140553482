"""Synthesis of whole segments: independent of the batch, in few shapes."""

import dataclasses

import numpy as np
import pytest

from ba_jax.sampling.batching import LengthError
from ba_jax.sampling.synthesize import SynthesisSettings, Synthesizer, keep_codebooks

SETTINGS = SynthesisSettings("griffin_lim", steps=2, iterations=4, rows=3, frames=(8, 16))


@pytest.fixture(scope="module")
def segments(config):
    rng = np.random.default_rng(0)
    sizes = config.vq_bridge.codebook_sizes
    return [rng.integers(0, sizes, (n, len(sizes))).astype(np.int32) for n in (3, 8, 5, 11, 6)]


@pytest.fixture(scope="module")
def synthesizer(config, variables):
    return Synthesizer(config, variables, SETTINGS)


def test_segments_are_independent_of_the_batch(synthesizer, segments):
    whole = synthesizer.flow_mels(segments, seeds=range(5))
    decoded = synthesizer.decode(segments)
    traces = dict(synthesizer.traces)
    assert traces == {"decode": 2, "flow": 2}
    for i in (0, 3):
        (alone,) = synthesizer.flow_mels([segments[i]], seeds=[i])
        np.testing.assert_allclose(alone, whole[i], atol=1e-3)
        (alone,) = synthesizer.decode([segments[i]])
        np.testing.assert_allclose(alone.mel_TM, decoded[i].mel_TM, atol=1e-4)
    assert synthesizer.traces == traces
    for segment, mel_TM, features in zip(segments, whole, decoded, strict=True):
        assert len(mel_TM) == 4 * len(segment) - 1
        assert len(features.mel_TM) == (8 * len(segment) - 2) * 5 // 8
    other = synthesizer.flow_mels(segments[:1], seeds=[9])[0]
    assert np.abs(other - whole[0]).max() > 1e-2


def test_waves_of_the_decoder_mel(config, variables, segments, synthesizer):
    plain = Synthesizer(config, variables, dataclasses.replace(SETTINGS, mel="decoder"))
    (wave,), (wanted,) = plain.waves(segments[:1]), synthesizer.waves_without_flow(segments[:1])
    np.testing.assert_array_equal(wave.wave_S, wanted.wave_S)
    assert wave.rate == 16000 and set(plain.traces) == {"decode"}
    with pytest.raises(ValueError, match="mel 'f0', expected one of"):
        dataclasses.replace(SETTINGS, mel="f0")
    with pytest.raises(ValueError, match="the vocoder reads the flow's mels"):
        SynthesisSettings("vocoder", mel="decoder")


def test_waves_by_griffin_lim(synthesizer, segments):
    waves = synthesizer.waves(segments[:2], seeds=[0, 1])
    assert [len(wave.wave_S) for wave in waves] == [480 * (4 * 3 - 1), 480 * (4 * 8 - 1)]
    assert {wave.rate for wave in waves} == {24000}
    plain = synthesizer.waves_without_flow(segments[:2])
    assert [len(wave.wave_S) for wave in plain] == [256 * 13, 256 * 38]
    assert {wave.rate for wave in plain} == {16000}


@pytest.mark.slow
def test_waves_by_the_vocoder(small, synthesizer, segments):
    mels = synthesizer.flow_mels(segments[:1], seeds=[5])
    settings = dataclasses.replace(SETTINGS, vocoder="vocoder", frames=(8,))
    synthesizer = Synthesizer(*small, settings)
    (wave,) = synthesizer.waves_of_mels(mels, seeds=[5])
    assert wave.wave_S.shape == (480 * (4 * 3 - 1),) and wave.rate == 24000
    assert 0 < np.abs(wave.wave_S).max() <= 0.99
    pair = synthesizer.waves_of_mels([mels[0], mels[0][:9]], seeds=[5, 6])
    np.testing.assert_allclose(pair[0].wave_S, wave.wave_S, atol=1e-4)
    assert len(pair[1].wave_S) == 480 * 9


def test_first_codebooks_alone(synthesizer, variables, segments):
    """With the first codebook alone, codes of the others have no effect."""
    first = synthesizer.decode(segments[:1], codebooks=1)[0].mel_TM
    changed = segments[0].copy()
    changed[:, 1:] = 0
    np.testing.assert_array_equal(synthesizer.decode([changed], codebooks=1)[0].mel_TM, first)
    everything = synthesizer.decode(segments[:1], codebooks=3)[0].mel_TM
    np.testing.assert_array_equal(synthesizer.decode(segments[:1])[0].mel_TM, everything)
    assert np.abs(first - everything).max() > 1e-3
    assert synthesizer.traces["decode"] <= 2  # one per padded length
    with pytest.raises(ValueError, match="4 codebooks, expected 1 to 3"):
        keep_codebooks(variables, 4)


def test_invalid_input(config, variables, synthesizer, segments):
    empty = np.zeros((0, 3), np.int32)
    with pytest.raises(LengthError, match="segment 1 is 0 long, expected 1 to 16"):
        synthesizer.decode([segments[0], empty])
    with pytest.raises(ValueError, match="model without .*flow_prenet"):
        tokenizer = Synthesizer(config.only("vq_bridge", "audio_decoder"), variables, SETTINGS)
        tokenizer.flow_mels(segments[:1])
    with pytest.raises(ValueError, match="vocoder 'x', expected one of"):
        SynthesisSettings("x")
