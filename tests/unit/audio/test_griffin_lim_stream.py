"""Griffin-Lim in pieces: as near to the mel as in one, for any cutting."""

import numpy as np
import pytest

from ba_jax.audio.griffin_lim import griffin_lim
from ba_jax.audio.griffin_lim_stream import GriffinLimStream
from ba_jax.audio.mel import FLOW_MEL, log_mel


@pytest.fixture(scope="module")
def mel_TM():
    """Of harmonics that glide, 1.2 s."""
    time = np.arange(28800) / 24000
    phase = 2 * np.pi * (140 * time + 40 * time**2)
    wave_S = sum(np.sin(k * phase) / k for k in range(1, 12)) * 0.1
    return log_mel(wave_S.astype(np.float32), FLOW_MEL)


def error(wave_S, mel_TM):
    """Mean error of magnitudes above silence."""
    return np.abs(np.maximum(log_mel(wave_S, FLOW_MEL), -6) - np.maximum(mel_TM, -6)).mean()


def test_the_mel_is_as_near_as_in_one_piece(mel_TM):
    stream = GriffinLimStream()
    parts = [stream.push(piece) for piece in np.split(mel_TM, [3, 12, 28, 44])]
    assert [len(part) for part in parts] == [0, 480 * 8, 480 * 16, 480 * 16, 480 * 16]
    parts.append(stream.push(mel_TM[:0], ends=True))
    wave_S = np.concatenate(parts)
    assert wave_S.shape == (480 * len(mel_TM),) and wave_S.dtype == np.float32
    whole, unfit = (
        error(griffin_lim(mel_TM), mel_TM),
        error(griffin_lim(mel_TM, iterations=0), mel_TM),
    )
    assert error(wave_S, mel_TM) < 0.6 * whole + 0.4 * unfit
    # pieces that know nothing of each other are further off
    alone = np.concatenate([griffin_lim(piece) for piece in np.split(mel_TM, [12, 28, 44])])
    assert error(wave_S, mel_TM) < error(alone, mel_TM)


def test_known_samples_stay(mel_TM):
    known_S = griffin_lim(mel_TM)[: 480 * 20]
    stream = GriffinLimStream(context=50, iterations=2)
    first = stream.push(mel_TM[:30])
    again = stream.push(mel_TM[30:], ends=True)
    assert len(first) == 480 * 26 and len(again) == 480 * (len(mel_TM) - 26)
    near = griffin_lim(mel_TM, known_S=known_S, iterations=16)
    far = griffin_lim(mel_TM, iterations=16)
    # just after what is known the wave goes on as it would have
    whole = griffin_lim(mel_TM)
    after = slice(480 * 20, 480 * 21)
    assert (
        np.abs(near[after] - whole[after]).mean() < 0.7 * np.abs(far[after] - whole[after]).mean()
    )


def test_nothing_at_all():
    assert GriffinLimStream().push(np.zeros((0, 80), np.float32), ends=True).shape == (0,)
