"""Sequences of audio that is still to be tokenised: the same layout as with its codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.data.sequence import AudioSpan, to_sequence
from ba_jax.data.tasks import Recording, make_example
from tests.unit.data.letters import SIZES, TOKENS, Letters

ONE = {
    "asr": lambda a: (a[0], "x"),
    "aqa": lambda a: (a[0], "x"),
    "s2tt": lambda a: (a[0], "x"),
    "intlv": lambda a: ([a[0], "x", a[1], "y"],),
    "tts": lambda a: ("x", a[0]),
    "itts": lambda a: (["x", a[0], "y", a[1]],),
    "audio": lambda a: (a[0],),
    "sft": lambda a: ([("user", [a[0]]), ("assistant", ["x", a[1]])],),
}
"""Arguments of each task with audio, from two recordings."""


def sequence(task: str, audio):
    example = make_example(task, *ONE[task](audio), id="1", language="zh", source="s")
    return to_sequence(example, Letters(), SIZES)


@pytest.mark.parametrize("task", sorted(ONE))
@given(frames=st.tuples(st.integers(1, 9), st.integers(1, 9)), data=st.data())
def test_layout_is_that_of_the_codes_and_spans_are_the_audio_pads(task, frames, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    codes = [rng.integers(0, SIZES, (n, len(SIZES))) for n in frames]
    known = sequence(task, codes)
    waiting = sequence(task, [Recording(b"x", 1.0, n) for n in frames])
    assert known.spans == ()
    for name in ("ids_L", "text_target_L", "audio_target_L"):
        np.testing.assert_array_equal(getattr(known, name), getattr(waiting, name))
    pads = waiting.ids_L == TOKENS.audio_pad
    in_spans = np.zeros(len(waiting), bool)
    for span, codes_NQ in zip(waiting.spans, codes, strict=False):
        here = slice(span.start, span.start + span.frames)
        assert span.frames == len(codes_NQ)
        assert not in_spans[here].any()
        in_spans[here] = True
        np.testing.assert_array_equal(known.codes_LQ[here], codes_NQ)
    np.testing.assert_array_equal(pads, in_spans)
    assert not waiting.codes_LQ[pads].any()
    np.testing.assert_array_equal(known.codes_LQ[~pads], waiting.codes_LQ[~pads])


def test_spans_name_their_segments():
    spans = sequence("itts", [Recording(b"x", 1.0, 3), Recording(b"y", 1.0, 2)]).spans
    # x <audiogen_start> 3 frames <audiogen_end> y <audiogen_start> 2 frames
    assert spans == (AudioSpan(1, 2, 3), AudioSpan(3, 8, 2))


def test_array_types():
    options = sequence("tts", [np.ones((2, 3), np.uint16)])
    assert (options.ids_L.dtype, options.codes_LQ.dtype) == (np.int32, np.int32)
    assert (options.text_target_L.dtype, options.audio_target_L.dtype) == (bool, bool)
    assert options.codes_LQ.shape == (len(options), 3)
