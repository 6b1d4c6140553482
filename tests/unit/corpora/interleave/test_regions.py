"""Following one voice through a recording."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.corpora.interleave.regions import (
    VoiceBook,
    Voices,
    divide_span,
    find_split,
    find_turns,
    merge_spans,
    pack_utterances,
)

ANN, BOB, EVE = np.eye(3, dtype=np.float32)


def voice(*parts: tuple[float, np.ndarray]) -> np.ndarray:
    total_D = sum(weight * voice_D for weight, voice_D in parts)
    return total_D / np.linalg.norm(total_D)


def of(voice_D, pieces: int = 2) -> np.ndarray:
    return np.stack([voice_D] * pieces)


gap_lists = st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.05, 40.0)), max_size=30)


def to_spans(rows) -> list[tuple[float, float]]:
    spans, now = [], 0.0
    for silence, length in rows:
        spans.append((now + silence, now + silence + length))
        now += silence + length
    return spans


@given(gap_lists)
def test_merging_leaves_only_long_silences(rows):
    spans = to_spans(rows)
    merged = merge_spans(spans, 0.3)
    assert all(b[0] - a[1] >= 0.3 for a, b in zip(merged, merged[1:], strict=False))
    for start, end in spans:
        assert sum(a <= start and end <= b for a, b in merged) == 1


def test_divide():
    assert divide_span((1.0, 2.0), 1.6) == [(1.0, 2.0)]
    pieces = divide_span((0.0, 5.0), 1.6)
    assert len(pieces) == 3 and pieces[0][0] == 0 and pieces[-1][1] == 5.0
    assert all(b - a == pytest.approx(5 / 3) for a, b in pieces)


def test_windows_end_in_silence():
    spans = [(0.0, 10.0), (12.0, 55.0), (58.0, 80.0), (80.5, 99.0)]
    assert find_split(spans, 100.0, gap=1.5) == 56.5
    assert find_split(spans, 102.0, gap=1.5) == 100.5
    assert find_split(spans[:1] + spans[2:], 99.0, gap=60) == pytest.approx(80.25)
    assert find_split([], 100.0, gap=1.5) == 100.0
    assert find_split([(0.0, 100.0)], 100.0, gap=1.5) is None


def test_a_turn_is_one_voice():
    spans = [(0, 3), (3.5, 6), (6.5, 9), (20, 24)]
    turns, mixed, short = find_turns(spans, [of(ANN), of(ANN), of(BOB), of(BOB)], Voices(), gap=1.5)
    assert [turn.spans for turn in turns] == [((0, 3), (3.5, 6)), ((6.5, 9),), ((20, 24),)]
    assert mixed == short == []
    assert np.allclose(turns[0].voice_D, ANN) and np.allclose(turns[2].voice_D, BOB)


def test_a_wavering_voice_stays_a_single_voice():
    wavering = [voice((1.0, ANN), (0.5, other)) for other in (BOB, EVE, BOB, EVE)]
    spans = [(i * 3.0, i * 3.0 + 2.8) for i in range(4)]
    turns, mixed, short = find_turns(spans, [of(v) for v in wavering], Voices(), gap=1.5)
    assert len(turns) == 1 and not mixed


def test_a_span_of_two_voices_is_dropped_and_ends_the_turn():
    spans = [(0, 3), (3.5, 8), (8.5, 11)]
    both = np.concatenate([of(ANN, 3), of(BOB, 2)])
    turns, mixed, short = find_turns(spans, [of(ANN), both, of(ANN)], Voices(), gap=1.5)
    assert mixed == [(3.5, 8)]
    assert [turn.spans for turn in turns] == [((0, 3),), ((8.5, 11),)]


def test_a_short_span_goes_with_the_voice_on_both_sides():
    none = np.zeros((0, 1), np.float32)
    spans = [(0, 3), (3.4, 3.7), (4, 7), (7.4, 7.7), (8, 11), (11.3, 11.6), (20, 20.3), (21, 23)]
    pieces = [of(ANN), none, of(ANN), none, of(BOB), none, none, of(BOB)]
    turns, mixed, short = find_turns(spans, pieces, Voices(), gap=1.5)
    assert [turn.spans for turn in turns] == [tuple(spans[:3]), (spans[4],), (spans[7],)]
    assert mixed == [] and short == [(7.4, 7.7), (11.3, 11.6), (20, 20.3)]


def test_a_single_piece_that_is_not_clear_goes_with_the_voice_on_both_sides():
    unclear = of(voice((1.0, ANN), (1.1, EVE)), 1)  # 0.67 to ANN
    spans = [(0, 3), (3.4, 4.4), (5, 8), (8.4, 9.4), (10, 13)]
    pieces = [of(ANN), unclear, of(ANN), unclear, of(BOB)]
    turns, mixed, short = find_turns(spans, pieces, Voices(), gap=1.5)
    assert [turn.spans for turn in turns] == [tuple(spans[:3]), (spans[4],)]
    assert mixed == [] and short == [(8.4, 9.4)]
    # Two pieces are enough to tell, and so is one that is clearly another voice.
    turns, _, short = find_turns(
        spans[:3], [of(ANN), np.repeat(unclear, 2, 0), of(ANN)], Voices(), 1.5
    )
    assert len(turns) == 3 and short == []
    turns, _, short = find_turns(spans[:3], [of(ANN), of(BOB, 1), of(ANN)], Voices(), 1.5)
    assert len(turns) == 3 and short == []


def test_voices_are_numbered_in_order_of_appearance():
    book = VoiceBook(same=0.7)
    near_ann = voice((1.0, ANN), (0.3, EVE))
    assert [book.number(v) for v in (ANN, BOB, near_ann, BOB, EVE, ANN)] == [0, 1, 0, 1, 2, 0]


@given(gap_lists)
def test_utterances_hold_all_spans_and_are_short(rows):
    spans = merge_spans(to_spans(rows), 0.3)
    groups = pack_utterances(spans, 12.0, 28.0)
    assert [span for group in groups for span in group] == spans
    for group in groups:
        assert group[-1][1] - group[0][0] <= 28.0 + 3.0 or len(group) == 1


def test_utterances_are_cut_at_the_longer_silences():
    spans = [(0, 5), (5.3, 10), (11.2, 16), (16.3, 21)]
    assert pack_utterances(spans, 12.0, 28.0) == [spans[:2], spans[2:]]
