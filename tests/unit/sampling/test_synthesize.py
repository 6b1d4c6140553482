"""Codes to waves and waves to codes: each item as if alone, in few shapes."""

import dataclasses

import numpy as np
import pytest

from ba_jax.audio.lengths import code_length
from ba_jax.sampling.batching import LengthError, batches, pad
from ba_jax.sampling.encode import Encoder
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


def test_batches():
    found = list(batches([5, 1, 9, 3], (4, 10), 2))
    assert found == [(4, [1, 3]), (10, [0, 2])]
    with pytest.raises(LengthError, match="mel 1 is 11 long, expected 1 to 10"):
        list(batches([5, 11], (4, 10), 2, "mel"))
    stacked, lengths = pad([np.ones((2, 3)), np.ones((4, 3))], 3, 5)
    assert stacked.shape == (3, 5, 3) and lengths.tolist() == [2, 4, 2]
    assert stacked.sum(axis=(1, 2)).tolist() == [6, 12, 6]


def test_items_do_not_see_each_other(synthesizer, segments):
    whole = synthesizer.flow_mels(segments, seeds=range(5))
    decoded = synthesizer.decode(segments)
    traces = dict(synthesizer.traces)
    assert traces == {"decode": 2, "flow": 2}
    for i in (0, 3):
        (alone,) = synthesizer.flow_mels([segments[i]], seeds=[i])
        np.testing.assert_allclose(alone, whole[i], atol=1e-3)
        (own,) = synthesizer.decode([segments[i]])
        np.testing.assert_allclose(own.mel_TM, decoded[i].mel_TM, atol=1e-4)
    assert synthesizer.traces == traces
    for segment, mel_TM, one in zip(segments, whole, decoded, strict=True):
        assert len(mel_TM) == 4 * len(segment) - 1
        assert len(one.mel_TM) == (8 * len(segment) - 2) * 5 // 8
    other = synthesizer.flow_mels(segments[:1], seeds=[9])[0]
    assert np.abs(other - whole[0]).max() > 1e-2


def test_waves_of_the_decoders_mel(config, variables, segments, synthesizer):
    plain = Synthesizer(config, variables, dataclasses.replace(SETTINGS, mel="decoder"))
    (made,), (wanted,) = plain.waves(segments[:1]), synthesizer.waves_without_flow(segments[:1])
    np.testing.assert_array_equal(made.wave_S, wanted.wave_S)
    assert made.rate == 16000 and set(plain.traces) == {"decode"}
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
def test_waves_by_the_vocoder(config, variables, segments):
    settings = dataclasses.replace(SETTINGS, vocoder="vocoder", frames=(8,))
    synthesizer = Synthesizer(config, variables, settings)
    mels = synthesizer.flow_mels(segments[:1], seeds=[5])
    (wave,) = synthesizer.waves_of_mels(mels, seeds=[5])
    assert wave.wave_S.shape == (480 * (4 * 3 - 1),) and wave.rate == 24000
    assert 0 < np.abs(wave.wave_S).max() <= 0.99
    pair = synthesizer.waves_of_mels([mels[0], mels[0][:9]], seeds=[5, 6])
    np.testing.assert_allclose(pair[0].wave_S, wave.wave_S, atol=1e-4)
    assert len(pair[1].wave_S) == 480 * 9


def test_fewer_codebooks(synthesizer, variables, segments):
    """The first one alone: the same as if the others were never chosen."""
    one = synthesizer.decode(segments[:1], codebooks=1)[0].mel_TM
    changed = segments[0].copy()
    changed[:, 1:] = 0
    np.testing.assert_array_equal(synthesizer.decode([changed], codebooks=1)[0].mel_TM, one)
    everything = synthesizer.decode(segments[:1], codebooks=3)[0].mel_TM
    np.testing.assert_array_equal(synthesizer.decode(segments[:1])[0].mel_TM, everything)
    assert np.abs(one - everything).max() > 1e-3
    assert synthesizer.traces["decode"] <= 2  # one a padded length
    with pytest.raises(ValueError, match="4 codebooks, expected 1 to 3"):
        keep_codebooks(variables, 4)


def test_bad_input(config, variables, synthesizer, segments):
    empty = np.zeros((0, 3), np.int32)
    with pytest.raises(LengthError, match="segment 1 is 0 long, expected 1 to 16"):
        synthesizer.decode([segments[0], empty])
    with pytest.raises(ValueError, match="model without .*flow_prenet"):
        tokenizer = Synthesizer(config.only("vq_bridge", "audio_decoder"), variables, SETTINGS)
        tokenizer.flow_mels(segments[:1])
    with pytest.raises(ValueError, match="vocoder 'x', expected one of"):
        SynthesisSettings("x")
    with pytest.raises(ValueError, match="audio_encoder"):
        Encoder(config.only("vq_bridge"), variables)


def test_encoder(config, variables):
    rng = np.random.default_rng(1)
    waves = [0.1 * rng.normal(size=n).astype(np.float32) for n in (16000, 5000, 40000, 300)]
    encoder = Encoder(config, variables, rows=2, seconds=(0.5, 1.0))
    codes = encoder(waves)
    # 2.5 s are cut into pieces of 1 s; 300 samples are too few for any frame
    want = [code_length(16000), code_length(5000), 2 * code_length(16000) + code_length(8000), 0]
    assert [len(own) for own in codes] == want
    assert encoder.traces == {"encode": 2}
    np.testing.assert_array_equal(encoder([waves[0]])[0], codes[0])
    np.testing.assert_array_equal(encoder([waves[2][:16000]])[0], codes[2][: code_length(16000)])
    assert encoder.traces == {"encode": 2}
