"""Choice of voices: held-out voices are separate, the others are drawn evenly."""

from __future__ import annotations

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.corpora.interleave.voices import (
    HELD_OUT,
    choose_speed,
    choose_voice,
    is_held_out,
    list_voices,
)

VOICES = {
    **dict.fromkeys(["af_bella", "af_sky", "am_adam", "am_puck", "bf_emma", "bm_lewis"], "en"),
    **dict.fromkeys(["zf_xiaobei", "zf_xiaoni", "zf_xiaoxiao", "zm_yunxi", "zm_yunyang"], "zh"),
}


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("blends", [False, True])
def test_held_out_voices_speak_in_other_splits_only(language, split, blends):
    results = list_voices(VOICES, language, split, blends=blends)
    assert results == sorted(set(results))
    for voice in results:
        assert all(VOICES[name] == language for name in voice.split("+"))
        assert "zf_xiaoni" not in voice
        held_out = [name in HELD_OUT for name in voice.split("+")]
        assert all(held_out) if split != "train" else not any(held_out)


def test_blends_are_of_one_accent_and_sex():
    voices = dict.fromkeys(["af_a", "af_b", "af_c", "am_d", "bf_e"], "en")
    assert list_voices(voices, "en", "train", blends=True) == [
        "af_a", "af_a+af_b", "af_a+af_c", "af_b", "af_b+af_c", "af_c", "am_d", "bf_e",
    ]  # fmt: skip


def test_a_blend_with_a_held_out_voice_is_held_out():
    assert is_held_out("am_adam+am_puck") and is_held_out("am_puck+am_adam")
    assert not is_held_out("am_puck") and not is_held_out("am_adams")


def test_no_voice():
    with pytest.raises(ValueError, match="no voice for language 'zh' in split 'train'"):
        list_voices({"zm_yunxi": "zh", "af_bella": "en"}, "zh", "train")


def test_the_choice_is_even_and_depends_on_seed_and_id_alone():
    ids = [f"doc-{i:05d}" for i in range(4000)]
    chosen = [choose_voice(VOICES, "en", "train", seed=1, id=id) for id in ids]
    counts = collections.Counter(chosen)
    assert set(counts) == {"af_bella", "af_sky", "am_puck", "bm_lewis"}
    # Five standard deviations of a fair draw around 1000.
    assert all(abs(count - 1000) < 5 * 27.4 for count in counts.values())
    shuffled = dict(reversed(VOICES.items()))
    assert chosen == [choose_voice(shuffled, "en", "train", seed=1, id=id) for id in ids]
    other = [choose_voice(VOICES, "en", "train", seed=2, id=id) for id in ids]
    assert 0.15 < sum(a == b for a, b in zip(chosen, other, strict=True)) / 4000 < 0.35


@given(st.integers(0, 1000), st.text(max_size=10))
def test_speed_lies_between_its_bounds(seed, id):
    speed = choose_speed(0.9, 1.1, seed=seed, id=id)
    assert 0.9 <= speed <= 1.1 and speed == choose_speed(0.9, 1.1, seed=seed, id=id)
