"""The order of draws: shares, epochs, seeds, and any place at once."""

from __future__ import annotations

import collections
import pickle
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.config import ConfigError
from ba_jax.data.examples import ExampleMaker
from ba_jax.data.mixture import Draws, Interleaved, Selection, check_mixture, check_rows

GOLDEN_DRAWS = [
    (0, 4),
    (0, 0),
    (0, 2),
    (1, 2),
    (0, 1),
    (0, 5),
    (1, 0),
    (0, 3),
    (0, 2),
    (1, 1),
    (0, 4),
    (0, 5),
]
WEIGHTS = st.lists(st.floats(0.001, 1000), min_size=1, max_size=8)


@given(WEIGHTS)
def test_every_stream_is_taken_in_order_and_as_often_as_its_weight_says(weights):
    interleaved = Interleaved(weights)
    taken = [0] * len(weights)
    for place in range(400):
        stream, number = interleaved[place]
        assert number == taken[stream]
        taken[stream] += 1
        for count, weight in zip(taken, weights, strict=True):
            assert abs(count - (place + 1) * weight / sum(weights)) < len(weights)


@given(WEIGHTS, st.integers(0, 10**13))
def test_far_places_continue_the_count(weights, place):
    interleaved = Interleaved(weights)
    reached = {}
    for at in range(place, place + 50):
        stream, number = interleaved[at]
        assert number == reached.get(stream, number)
        reached[stream] = number + 1


def test_weights_that_differ_by_half_a_percent_differ_in_the_draws():
    """Grain's own mix would round both to the same share."""
    taken = collections.Counter(Interleaved([1.0, 1.005])[i][0] for i in range(20_050))
    assert taken == {0: 10_000, 1: 10_050}


@pytest.mark.parametrize("weights", [[], [1, 0], [-1], [float("nan")], [float("inf"), 1]])
def test_invalid_weights(weights):
    with pytest.raises(ValueError, match="expected one or more numbers above 0"):
        Interleaved(weights)


def test_over_an_epoch_each_item_is_drawn_once():
    sizes, weights = [40, 7, 100], [0.2, 0.1, 0.7]
    draws = Draws(sizes, weights, seed=3)
    items = collections.defaultdict(list)
    for draw in range(2000):
        which, item = draws[draw]
        items[which].append(item)
    for which, size in enumerate(sizes):
        epochs = [items[which][i : i + size] for i in range(0, len(items[which]), size)][:-1]
        assert len(epochs) > 5
        for epoch in epochs:
            assert sorted(epoch) == list(range(size))
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # shuffled anew


def test_the_order_depends_on_the_seed_and_on_nothing_else():
    def first(seed: int, epoch: int = 0) -> list:
        draws = Draws([500], [1], seed)
        return [draws[500 * epoch + i] for i in range(60)]

    assert first(0) == first(0)
    orders = [tuple(first(seed)) for seed in range(6)]
    assert len(set(orders)) == 6
    # No seed's order is a neighbour's in another epoch (Grain's shuffle adds epoch and seed).
    assert not {tuple(first(1, e)) for e in range(6)} & set(orders[:1] + orders[2:])


def test_the_order_is_the_same_with_every_version_of_numpy():
    """A run that is resumed after an upgrade must not see its data in another order."""
    draws = Draws([6, 4], [2, 1], seed=1)
    assert [draws[i] for i in range(12)] == GOLDEN_DRAWS


def test_only_the_last_epochs_are_kept():
    draws = Draws([50], [1], seed=0)
    want = [draws[i] for i in range(0, 1000, 50)]
    assert len(draws._epochs[0]) == 2
    assert [draws[i] for i in range(0, 1000, 50)] == want


def test_members_of_one_size_are_shuffled_differently():
    draws = Draws([50, 50], [1, 1], seed=0)
    orders = collections.defaultdict(list)
    for draw in range(100):
        which, item = draws[draw]
        orders[which].append(item)
    assert orders[0] != orders[1]


def test_any_draw_is_computed_at_once_also_after_pickling():
    draws = Draws([1000, 30], [3, 1], seed=5)
    draws[0]
    copy = pickle.loads(pickle.dumps(draws))
    begin = time.process_time()
    far = [draws[10**12 + i] for i in range(20)]
    assert time.process_time() - begin < 0.5
    assert far == [copy[10**12 + i] for i in range(20)]
    assert len(pickle.dumps(draws)) < 1000


@pytest.mark.parametrize("sizes, weights", [([], []), ([0], [1]), ([1, 2], [1])])
def test_members_without_items(sizes, weights):
    with pytest.raises(ValueError, match="expected"):
        Draws(sizes, weights, 0)


def test_places_below_zero_are_errors():
    with pytest.raises(IndexError, match="place -1, expected 0 or more"):
        Draws([3], [1], 0)[-1]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"weight": 0.0}, "d/train/asr: weight 0.0, expected a number above 0"),
        ({"weight": float("nan")}, "weight = nan: expected a number"),
        ({"languages": ("en", "French")}, "language 'French', expected a code"),
        ({"task": "dance"}, "task = 'dance', expected one of"),
        ({"task": "sft", "answers": "sung"}, "answers = 'sung'"),
        ({"turn": "system"}, "turn = 'system', expected one of"),
        ({"task": "sft", "turn": "user"}, "task 'sft' with turn = 'user', speakers = .*: only"),
    ],
)
def test_invalid_members(fields, message):
    with pytest.raises(ValueError, match=message):
        Selection.from_mapping({"dataset": "d", "task": "asr"} | fields, "member")


def test_a_member_is_read_from_one_mapping():
    values = {"dataset": "d", "task": "itts", "turn": "any", "weight": 2, "pieces": 3}
    selection = Selection.from_mapping(values, "data.mixture.a")
    assert selection == Selection("d", ExampleMaker("itts", turn="any", pieces=3), 2.0)
    assert selection.name == "d/train/itts/any/3-words"
    for wrong in ({"frames": 1}, {"tasks": "asr"}, {"weight": "2"}):
        with pytest.raises(ConfigError, match="data.mixture.a"):
            Selection.from_mapping(values | wrong, "data.mixture.a")


def test_the_key_of_cached_counts_is_that_of_earlier_versions():
    options = {"turn": "any", "pieces": 1, "fully_conditioned": True}
    maker = ExampleMaker("itts", lambda part, record: 1, **options)
    assert Selection("d", maker, 3.0, languages=("en",)).key() == {
        "dataset": "d",
        "task": "itts",
        "weight": 1,
        "split": "train",
        "languages": ("en",),
        "questions": "spoken",
        "answers": "written",
        "turn": "any",
        "pieces": 1,
        "order": 0,
        "speakers": (),
        "read_back": False,
        "given": True,
    }


def test_names_tell_members_apart():
    members = (
        Selection("d", ExampleMaker("asr")),
        Selection("d", ExampleMaker("asr"), languages=("zh",)),
        Selection("d", ExampleMaker("sft")),
        Selection("d", ExampleMaker("sft", answers="spoken")),
        Selection("d", ExampleMaker("asr", turn="user"), languages=("zh",)),
        Selection("d", ExampleMaker("tts", turn="any", speakers=("ann", "bob"))),
    )
    check_mixture(members)
    assert [m.name for m in members] == [
        "d/train/asr",
        "d/train/asr/zh",
        "d/train/sft/spoken-written",
        "d/train/sft/spoken-spoken",
        "d/train/asr/user/zh",
        "d/train/tts/any/by-ann+bob",
    ]
    with pytest.raises(ValueError, match="d/train/asr: 2 members of this name"):
        check_mixture((*members, Selection("d", ExampleMaker("asr"), weight=3.0)))
    with pytest.raises(ValueError, match="an empty mixture"):
        check_mixture(())


def test_rows_outside_of_the_batch():
    assert list(check_rows(5, None, 3)) == [0, 1, 2]
    assert list(check_rows(5, [2, 0], 3)) == [2, 0]
    with pytest.raises(IndexError, match="row 3 of step 5, expected 0 to 2"):
        check_rows(5, [3], 3)
    with pytest.raises(IndexError, match="step -1, expected 0 or more"):
        check_rows(-1, None, 3)
