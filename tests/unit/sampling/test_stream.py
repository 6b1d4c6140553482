"""Streams: equal to the whole for any cuts, few shapes, limits and errors."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from ba_jax.models.vocoder_config import receptive_field
from ba_jax.sampling.batching import LengthError
from ba_jax.sampling.stream import StreamError, StreamingSynthesizer, for_streaming
from ba_jax.sampling.synthesize import SynthesisSettings, Synthesizer
from ba_jax.vocab import CodeError

SETTINGS = SynthesisSettings(
    "vocoder", steps=2, rows=2, frames=(24,), blocks=(8, 16), norm_frames=2, lookback=32
)
PLAIN = dataclasses.replace(SETTINGS, vocoder="griffin_lim", iterations=1, lookback=None)


@pytest.fixture(scope="module")
def segments(config):
    rng = np.random.default_rng(0)
    sizes = config.vq_bridge.codebook_sizes
    return [rng.integers(0, sizes, (n, len(sizes))).astype(np.int32) for n in (23, 14)]


@pytest.fixture(scope="module")
def reference(config, variables):
    """Synthesizer with the statistics of whole segments."""
    return Synthesizer(config, variables, SynthesisSettings("griffin_lim", rows=2, frames=(24,)))


@pytest.fixture(scope="module")
def synthesizer(small):
    return Synthesizer(*small, SETTINGS)


@pytest.fixture(scope="module")
def whole(synthesizer, segments):
    """Mels and waves of each segment decoded at once."""
    mels = synthesizer.flow_mels(segments, [7, 8], [0, 3])
    waves = synthesizer.waves_of_mels(mels, [7, 8], [0, 3])
    return mels, [wave.wave_S for wave in waves]


@pytest.fixture(scope="module")
def streamer(small):
    streamer = StreamingSynthesizer(*small, SETTINGS, rows=2)
    streamer.warm_up()
    assert streamer.traces == {"block": 2, "vocode": 2}
    return streamer


def pieces_of(codes, cuts):
    return [piece for piece in np.split(codes, sorted(set(cuts) - {0, len(codes)})) if len(piece)]


def mels_of(stream):
    """Collects the mels that a stream takes."""
    taken, take = [], stream._take_mel

    def taking():
        taken.append(take())
        return taken[-1]

    stream._take_mel = taking
    return taken


@pytest.mark.slow
@hypothesis.settings(deadline=None, max_examples=8)
@hypothesis.given(
    st.lists(st.integers(0, 23), max_size=6), st.lists(st.integers(0, 14), max_size=4)
)
def test_stream_equals_the_whole_for_any_cuts(streamer, segments, whole, first, second):
    """Two segments at once, each at its own place and in any row."""
    streams = [streamer.open(7, 0), streamer.open(8, 3)]
    taken = [mels_of(stream) for stream in streams]
    waiting = [pieces_of(segments[0], first), pieces_of(segments[1], second)]
    parts = [[], []]
    while any(waiting):
        active = [i for i in (0, 1) if waiting[i]]
        pushed = streamer.push([streams[i] for i in active], [waiting[i].pop(0) for i in active])
        for i, samples in zip(active, pushed, strict=True):
            assert samples.dtype == np.float32
            parts[i].append(samples)
    for i, samples in enumerate(streamer.finish(streams)):
        parts[i].append(samples)
    mels, waves = whole
    for i in (0, 1):
        np.testing.assert_allclose(np.concatenate(taken[i]), mels[i], atol=1e-4)
        np.testing.assert_allclose(np.concatenate(parts[i]), waves[i], atol=1e-3)
    assert streamer.traces == {"block": 2, "vocode": 2}
    assert streamer._block._cache_size() == streamer._vocoder._window._cache_size() == 2


def test_samples_come_long_before_the_end(streamer, small, segments):
    """Blocks of 8 and 16 frames, each with another frame of codes; then the vocoder's delay."""
    hold = receptive_field(small[0].vocoder)
    assert hold == 8
    stream = streamer.open()
    heard = [len(stream.push(segments[0][i : i + 1])) // 480 for i in range(23)]
    assert heard == [0] * 6 + [24 - hold] + ([0] * 3 + [16]) * 4
    assert len(stream.finish()) // 480 == 4 * 23 - 1 - sum(heard)


def test_noise_depends_on_the_request_and_the_frame(synthesizer, segments, whole):
    """Noise is the same alone and in another row, and differs for another seed or segment."""
    (alone,) = synthesizer.flow_mels(segments[1:], [8], [3])
    np.testing.assert_allclose(alone, whole[0][1], atol=1e-4)
    for seed, segment in ((8, 0), (7, 3)):
        (other,) = synthesizer.flow_mels(segments[1:], [seed], [segment])
        assert np.abs(other - alone).max() > 0.1
    with pytest.raises(ValueError, match=r"seed -1: expected 0 to 2\^32 - 1"):
        synthesizer.flow_mels(segments[1:], [-1])


def test_bounded_lookback(synthesizer, streamer, segments):
    """32 frames are remembered, so that the segment may last as long as there are positions."""
    free = dataclasses.replace(SETTINGS, lookback=None)
    free = Synthesizer(synthesizer.config, synthesizer._variables, free)
    pair = [synth.decode(segments[:1])[0] for synth in (synthesizer, free)]
    bounded, unbounded = (decoded.hidden_TD for decoded in pair)
    np.testing.assert_allclose(bounded[:40], unbounded[:40], atol=1e-5)
    assert np.abs(bounded[40:] - unbounded[40:]).max() > 1e-2
    assert streamer.limit == 750  # the decoder's positions: 60 s
    stream = streamer.open()
    with pytest.raises(LengthError, match=r"751 frames of codes, expected at most 750 \(60 s\)"):
        stream.push(np.zeros((751, 3), np.int32))
    stream.drop()


def test_dropped_segment_leaves_no_state(streamer, segments, whole):
    first = streamer.open(1)
    first.push(segments[0])
    first.drop()
    stream = streamer.open(8, 3)
    samples = np.concatenate([stream.push(segments[1]), stream.finish()])
    np.testing.assert_allclose(samples, whole[1][1], atol=1e-3)


def test_stream_of_the_decoder_mel(config, variables, segments, reference):
    """Convolutions look ahead and norms have running statistics; the mel equals the whole's."""
    norms = reference.measure_norms(segments)
    assert len(norms) == 2 + len(config.audio_decoder.refine_channels)
    assert all(square > mean**2 for mean, square in norms)
    settings = dataclasses.replace(PLAIN, mel="decoder", norms=norms, norm_weight=4.0)
    decoded = Synthesizer(config, variables, settings).decode(segments)
    streamer = StreamingSynthesizer(config, variables, settings)
    assert streamer.rate == 16000
    for codes, wanted in zip(segments, decoded, strict=True):
        stream = streamer.open()
        taken = mels_of(stream)
        samples = [len(stream.push(piece)) for piece in pieces_of(codes, range(0, 23, 3))]
        assert sum(samples[:-1]) > 0
        samples.append(len(stream.finish()))
        np.testing.assert_allclose(np.concatenate(taken), wanted.mel_TM, atol=1e-4)
        assert sum(samples) == 256 * len(wanted.mel_TM)
    assert streamer.traces == {"block": 2, "mels": 1}
    stream = streamer.open()
    stream.push(segments[0])
    with pytest.raises(LengthError, match=r"37 frames of codes, expected at most 24 \(1.92 s\)"):
        stream.push(segments[1])


def test_running_norms_converge_to_those_of_the_whole(config, variables, segments, reference):
    """With all codes within the lead, the features equal the reference's."""
    short = [segments[0][:4]]
    (plain,) = reference.decode(short)
    settings = dataclasses.replace(PLAIN, blocks=(16,), norm_frames=4)
    (led,) = Synthesizer(config, variables, settings).decode(short)
    np.testing.assert_allclose(led.hidden_TD, plain.hidden_TD, atol=1e-4)
    # not with what the norms see elsewhere counted in, but with what they see here
    error = {}
    for name, codes in (("here", short), ("elsewhere", segments[1:])):
        norms = reference.measure_norms(codes)
        with_norms = dataclasses.replace(settings, norms=norms, norm_frames=1, norm_weight=1e5)
        (usual,) = Synthesizer(config, variables, with_norms).decode(short)
        error[name] = np.abs(usual.hidden_TD - plain.hidden_TD).max()
    assert error["here"] < 1e-3 and error["elsewhere"] > 5e-3


def test_invalid_use(streamer, config, variables, segments):
    stream = streamer.open()
    for empty in (np.zeros((0, 3), np.int32), np.zeros(3, np.int32)):
        with pytest.raises(LengthError, match=r"expected \(N >= 1, 3\)"):
            stream.push(empty)
    with pytest.raises(CodeError):
        stream.push(np.full((2, 3), 64))
    other = streamer.open()
    with pytest.raises(StreamError, match="all 2 rows have a segment"):
        streamer.open()
    with pytest.raises(StreamError, match="listed twice"):
        streamer.push([stream, stream], segments)
    # None of these codes were accepted.
    other.drop()
    streamer.open().drop()
    assert stream.finish().shape == (0,)
    with pytest.raises(StreamError, match="was finished"):
        other.push(segments[0])
    for late in (stream.finish, lambda: stream.push(segments[0])):
        with pytest.raises(StreamError, match="was finished"):
            late()
    with pytest.raises(ValueError, match="norm_frames None: a stream cannot know"):
        StreamingSynthesizer(config, variables, SynthesisSettings())
    assert for_streaming(SynthesisSettings()).norm_frames == 4
    assert for_streaming(SETTINGS) == SETTINGS
    with pytest.raises(ValueError, match="norms with a lead of None"):
        dataclasses.replace(SETTINGS, norm_frames=None, norms=((0.0, 1.0),) * 6)
    with pytest.raises(ValueError, match="hold 0: expected at least 1"):
        dataclasses.replace(SETTINGS, hold=0)
    with pytest.raises(ValueError, match="model without"):
        tokenizer = config.only("vq_bridge", "audio_decoder")
        StreamingSynthesizer(tokenizer, variables, SETTINGS)
