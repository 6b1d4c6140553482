"""Griffin-Lim: the mel of the wave is near the requested one, whole or in pieces."""

import numpy as np
import pytest

from ba_jax.audio import resample
from ba_jax.audio.griffin_lim import GriffinLimStream, griffin_lim, magnitudes
from ba_jax.audio.mel import FLOW_MEL, HIFIGAN_MEL, log_mel, mel_filterbank
from ba_jax.data.features import decode
from ba_jax.data.record import RecordSource


@pytest.fixture(scope="module")
def recording():
    """Two seconds of speech at 24 kHz."""
    source = RecordSource("embedded", "test")
    part = next(record for record in map(source.__getitem__, range(64))).parts[0]
    return decode(part.audio, part.seconds, (24000,))[0]


@pytest.fixture(scope="module")
def glide_TM():
    """Mel of gliding harmonics, 1.2 s."""
    time = np.arange(28800) / 24000
    phase = 2 * np.pi * (140 * time + 40 * time**2)
    wave_S = sum(np.sin(k * phase) / k for k in range(1, 12)) * 0.1
    return log_mel(wave_S.astype(np.float32), FLOW_MEL)


@pytest.mark.parametrize("geometry", [FLOW_MEL, HIFIGAN_MEL])
def test_speech(recording, geometry):
    wave_S = resample(recording, 24000, geometry.sample_rate)
    mel_TM = log_mel(wave_S, geometry)
    inverted_S = griffin_lim(mel_TM, geometry, iterations=32)
    assert inverted_S.shape == (len(mel_TM) * geometry.hop,) and inverted_S.dtype == np.float32
    assert np.abs(inverted_S).max() <= 1
    error_TM = np.abs(log_mel(inverted_S, geometry) - mel_TM)
    # 0.128 and 0.124 over 12 recordings of the corpus; random phases alone give over 0.3
    assert error_TM.mean() < 0.16
    # nothing breaks at the reflected ends; they are near silence, 0.41 off here
    assert error_TM[:3].mean() < 0.6 and error_TM[-3:].mean() < 0.6
    random_S = griffin_lim(mel_TM, geometry, iterations=0)
    assert np.abs(log_mel(random_S, geometry) - mel_TM).mean() > 0.3
    power = np.mean(inverted_S**2) / np.mean(wave_S[: len(inverted_S)] ** 2)
    assert 0.8 < power < 1.25


def test_magnitudes(recording):
    mel_TM = log_mel(recording, FLOW_MEL)
    magnitude_TF = magnitudes(mel_TM, FLOW_MEL)
    assert (magnitude_TF >= 0).all()
    again_TM = np.log(np.maximum(magnitude_TF @ mel_filterbank(FLOW_MEL), 1e-5))
    assert np.abs(again_TM - mel_TM).mean() < 0.01  # 0.003 over 12 recordings
    assert (magnitude_TF[:, 8000 * 1920 // 24000 + 1 :] == 0).all()  # no filter reaches there


def test_same_seed_same_wave(recording):
    mel_TM = log_mel(recording, FLOW_MEL)[:20]
    first, again, other = (griffin_lim(mel_TM, iterations=3, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_momentum_helps(recording):
    mel_TM = log_mel(recording, FLOW_MEL)

    def error(momentum):
        wave_S = griffin_lim(mel_TM, iterations=32, momentum=momentum)
        return np.abs(log_mel(wave_S, FLOW_MEL) - mel_TM).mean()

    assert error(0.99) < error(0.0)


@pytest.mark.parametrize("frames", [1, 2])
def test_short(frames):
    wave_S = griffin_lim(np.full((frames, 80), -3.0), iterations=2)
    assert wave_S.shape == (480 * frames,) and np.isfinite(wave_S).all()


def test_bad_input():
    with pytest.raises(ValueError, match=r"mel of shape \(80,\): expected \(T >= 1, 80\)"):
        griffin_lim(np.zeros(80))
    with pytest.raises(ValueError, match="NaN"):
        griffin_lim(np.full((3, 80), np.nan))
    with pytest.raises(ValueError, match="momentum = 1"):
        griffin_lim(np.zeros((3, 80)), momentum=1)


def voiced_error(wave_S, mel_TM):
    """Mean error of magnitudes above silence."""
    return np.abs(np.maximum(log_mel(wave_S, FLOW_MEL), -6) - np.maximum(mel_TM, -6)).mean()


def test_streaming_error_is_near_the_offline_error(glide_TM):
    stream = GriffinLimStream()
    parts = [stream.push(piece) for piece in np.split(glide_TM, [3, 12, 28, 44])]
    assert [len(part) for part in parts] == [0, 480 * 8, 480 * 16, 480 * 16, 480 * 16]
    parts.append(stream.push(glide_TM[:0], ends=True))
    wave_S = np.concatenate(parts)
    assert wave_S.shape == (480 * len(glide_TM),) and wave_S.dtype == np.float32
    whole = voiced_error(griffin_lim(glide_TM), glide_TM)
    random = voiced_error(griffin_lim(glide_TM, iterations=0), glide_TM)
    assert voiced_error(wave_S, glide_TM) < 0.6 * whole + 0.4 * random
    # independent pieces are further off
    alone = np.concatenate([griffin_lim(piece) for piece in np.split(glide_TM, [12, 28, 44])])
    assert voiced_error(wave_S, glide_TM) < voiced_error(alone, glide_TM)


def test_known_samples_are_continued(glide_TM):
    whole = griffin_lim(glide_TM)
    known = griffin_lim(glide_TM, known_S=whole[: 480 * 20], iterations=16)
    unknown = griffin_lim(glide_TM, iterations=16)
    after = slice(480 * 20, 480 * 21)
    error_known, error_unknown = (
        np.abs(wave_S[after] - whole[after]).mean() for wave_S in (known, unknown)
    )
    assert error_known < 0.7 * error_unknown


def test_stream_holds_the_last_frames(glide_TM):
    stream = GriffinLimStream(context=50, iterations=2)
    assert len(stream.push(glide_TM[:30])) == 480 * 26
    assert len(stream.push(glide_TM[30:], ends=True)) == 480 * (len(glide_TM) - 26)


def test_single_push_equals_griffin_lim(glide_TM):
    wave_S = GriffinLimStream(iterations=3).push(glide_TM, ends=True)
    np.testing.assert_array_equal(wave_S, griffin_lim(glide_TM, iterations=3))
    assert GriffinLimStream().push(np.zeros((0, 80), np.float32), ends=True).shape == (0,)
