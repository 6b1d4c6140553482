"""Crossfade of segments: the definition, and streaming against offline."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from ba_jax.audio.crossfade import Crossfader, fade_samples, join


def noise(*lengths):
    rng = np.random.default_rng(len(lengths))
    return [rng.normal(size=n).astype(np.float32) for n in lengths]


def overlap_add(waves, fade):
    """Join the segments sample by sample, as the definition says."""
    places, end, before = [], 0, 0
    for wave in waves:
        if not len(wave):
            places.append((end, 0))
            continue
        overlap = fade if min(before, len(wave)) > fade else 0
        places.append((end - overlap, overlap))
        end, before = end - overlap + len(wave), len(wave)
    out = np.zeros(end, np.float64)
    for wave, (start, overlap) in zip(waves, places, strict=True):
        for i, value in enumerate(wave):
            if i < overlap:
                share = i / (overlap - 1) if overlap > 1 else 0.0
                out[start + i] = out[start + i] * (1 - share) + value * share
            else:
                out[start + i] = value
    return out


def test_lengths():
    assert fade_samples(24000) == 240 and fade_samples(16000) == 160
    pair = noise(1000, 1000)
    assert len(join(pair)) == 1760
    assert len(join(noise(1000, 240, 1000))) == 2240  # only segments longer than the fade are faded
    assert join([]).shape == (0,)
    np.testing.assert_array_equal(join(pair[:1]), pair[0])


def test_a_constant_stays_constant():
    waves = [np.full(n, 0.5, np.float32) for n in (300, 500, 250)]
    np.testing.assert_allclose(join(waves), np.full(1050 - 480, 0.5), atol=1e-6)


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(st.lists(st.integers(0, 30), max_size=6), st.integers(0, 9), st.data())
def test_streaming_equals_offline_for_any_cuts(lengths, fade, data):
    waves = noise(*lengths)
    whole = join(waves, fade=fade)
    np.testing.assert_allclose(whole, overlap_add(waves, fade), atol=1e-6)
    fader = Crossfader(fade)
    parts, pushed = [], 0
    for wave in waves:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(wave)), max_size=4)))
        for piece in np.split(wave, cuts):
            parts.append(fader.push(piece))
            pushed += len(piece)
        assert sum(map(len, parts)) >= pushed - fade * len(waves) - 2 * fade
        parts.append(fader.end_segment())
    parts.append(fader.finish())
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_only_the_fade_is_held_back():
    fader = Crossfader()
    assert len(fader.push(np.zeros(1000))) == 760
    assert len(fader.end_segment()) == 0
    assert len(fader.push(np.zeros(240))) == 0
    assert len(fader.push(np.zeros(760))) == 760  # the fade overlaps 240 samples
    assert len(fader.finish()) == 240


def test_bad_input():
    with pytest.raises(ValueError, match="fade of -1 samples"):
        Crossfader(-1)
    with pytest.raises(ValueError, match=r"wave of shape \(2, 3\): expected \(samples,\)"):
        join([np.zeros((2, 3))])
    fader = Crossfader()
    fader.finish()
    for late in (lambda: fader.push(np.zeros(3)), fader.end_segment, fader.finish):
        with pytest.raises(ValueError, match="was finished"):
            late()
