"""Kokoro's words and their times, with a model whose durations are known."""

from __future__ import annotations

import json
import pickle
import re

import numpy as np
import pytest

from ba_jax.speech import english
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.kokoro import _LEAD, RATE, Kokoro, _with_output
from ba_jax.speech.text_norm import join_words

UNIT = 600
BEFORE, EACH, PAUSE, AFTER = 20, 4, 12, 20  # units of the silences and of a phoneme
SYMBOLS = ' ,.!?“”"():;—…ˈˌːAIOQWYTabdefhijklmnopstuvwxyzæŋɑɒɔɐəɚɛɜɤɡɥɨɪɹɻʂɕʃʊʌʒʤʧʦʨꭧðθᵊᵻʰ→↗↘↓'


class FakeSession:
    """Says every phoneme for EACH units, as noise; marks and the ends are silent.

    Like in the model, sounds come `_LEAD` before the durations say.
    """

    def __init__(self, symbols: str):
        self.symbols = symbols
        self.style = None

    def run(self, names, feeds):
        assert names == ["audio", "/encoder/Clip_output_0"]
        (ids,) = feeds["tokens"]
        assert ids[0] == ids[-1] == 0
        self.style = feeds["style"]
        units, levels = [BEFORE], [0.0]
        for number in ids[1:-1]:
            symbol = self.symbols[number - 1]
            units.append(PAUSE if symbol in ",.!?" else 2 if symbol == " " else EACH)
            levels.append(0.0 if symbol in ",.!?“”" else 0.5)
        units, levels = [*units, AFTER], [*levels, 0.0]
        random = np.random.default_rng(0)
        level_S = np.repeat(levels, np.array(units) * UNIT)
        wave_S = level_S * random.uniform(-1, 1, len(level_S))
        wave_S = np.roll(wave_S, -round(_LEAD * RATE))
        return wave_S.astype(np.float32), np.array([units], np.float32)


@pytest.fixture
def kokoro(tmp_path, monkeypatch) -> Kokoro:
    monkeypatch.setattr(english, "_cmudict", dict)  # none is fetched
    (tmp_path / "vocab.json").write_text(
        json.dumps({"vocab": {symbol: i + 1 for i, symbol in enumerate(SYMBOLS)}})
    )
    (tmp_path / "voices").mkdir()
    for number, name in enumerate(("af_one", "af_two", "bm_three", "zf_four", "jf_five")):
        style = np.full((300, 256), number, "<f4") + np.arange(300, dtype="<f4")[:, None]
        style.tofile(tmp_path / "voices" / f"{name}.bin")
    kokoro = Kokoro(tmp_path, tmp_path / "voices", silence=0.1)
    kokoro.__dict__["_session"] = FakeSession(SYMBOLS)
    return kokoro


@pytest.mark.parametrize(
    ("text", "voice"),
    [
        ("Hello, world!", "af_one"),
        ("“It costs $5 million,” he said — twice.", "bm_three"),
        ("你好，我有25%的钱。", "zf_four"),
        ("我喜欢OK！", "zf_four"),
    ],
)
def test_words_join_to_the_text_and_follow_each_other(kokoro, text, voice):
    spoken = kokoro.speak(text, voice)
    assert spoken.rate == RATE and spoken.wave_S.dtype == np.float32
    words = spoken.words
    assert join_words((word.text for word in words), kokoro.language(voice)) == text
    assert all(word.start < word.end for word in words)
    assert all(a.end <= b.start + 1e-6 for a, b in zip(words, words[1:], strict=False))
    seconds = len(spoken.wave_S) / RATE
    assert words[0].start == pytest.approx(0.1, abs=0.006)
    assert seconds - words[-1].end == pytest.approx(0.1, abs=0.006)


def test_times_are_the_durations_of_the_phonemes(kokoro):
    words = kokoro.speak("Hello, big world!", "af_one").words
    counts = [len(phonemes) for _, _, phonemes, _ in kokoro.phonemes("Hello, big world!", "af_one")]
    unit = UNIT / RATE
    hello, big, world = (count * EACH * unit for count in counts)
    assert words[0].end - words[0].start == pytest.approx(hello, abs=0.011)
    # The comma and its space are a pause, in which the space (2 units) sounds here.
    assert words[1].start - words[0].end == pytest.approx((PAUSE + 2) * unit, abs=0.011)
    # Half of the space between two words that run on belongs to each.
    assert words[1].end == words[2].start
    assert words[1].end - words[1].start == pytest.approx(big + unit, abs=0.011)
    assert words[2].end - words[2].start == pytest.approx(world + unit, abs=0.011)


def test_the_style_is_that_of_the_number_of_phonemes_and_averages(kokoro):
    counted = sum(len(a + b + c) for _, a, b, c in kokoro.phonemes("Hello", "af_one"))
    session = kokoro.__dict__["_session"]
    kokoro.speak("Hello", "af_two")
    ids = counted - 1  # without the space at the end
    assert session.style.shape == (1, 256) and session.style[0, 0] == 1 + ids - 1
    kokoro.speak("Hello", "af_one+af_two")
    assert session.style[0, 0] == 0.5 + ids - 1


def test_voices_and_languages(kokoro):
    assert kokoro.voices == {"af_one": "en", "af_two": "en", "bm_three": "en", "zf_four": "zh"}
    assert kokoro.language("af_one+af_two") == "en"


@pytest.mark.parametrize(
    ("text", "voice", "speed", "what"),
    [
        ("Hello", "af_nine", 1.0, "'af_nine'.*expected one of af_one"),
        ("Hello", "jf_five", 1.0, "'jf_five'"),
        ("Hello", "af_one+zf_four", 1.0, "one language"),
        ("Hello", "af_one+bm_three", 1.0, "accent"),
        ("Hello", "af_one+", 1.0, "''"),
        ("...", "af_one", 1.0, "says nothing"),
        ("", "zf_four", 1.0, "says nothing"),
        ("Hello", "af_one", 9.0, "speed 9.0"),
        ("Hello qqzzx", "af_one", 1.0, "'qqzzx'"),
        ("very good " * 80, "af_one", 1.0, "at most 510"),
        ("你好", "af_one", 1.0, "'你好'"),
    ],
)
def test_refusals(kokoro, text, voice, speed, what):
    with pytest.raises(SpeechToolError, match=what):
        kokoro.speak(text, voice, speed)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(SpeechToolError, match=re.escape(str(tmp_path))):
        _ = Kokoro(tmp_path, tmp_path).voices
    (tmp_path / "af_a.bin").write_bytes(b"\0" * 10)
    (tmp_path / "vocab.json").write_text('{"vocab": {}}')
    with pytest.raises(SpeechToolError, match="none of Kokoro's"):
        Kokoro(tmp_path, tmp_path).speak("Hello", "af_a")


def test_pickling_leaves_opened_files_behind(kokoro):
    _ = kokoro.voices
    again = pickle.loads(pickle.dumps(kokoro))
    assert "_session" not in again.__dict__ and again.voices == kokoro.voices


def test_an_output_is_added_to_an_onnx_file():
    # ModelProto.graph is field 7, GraphProto.output 12, ValueInfoProto.name 1.
    assert _with_output(b"model", "ab") == b"model" + b"\x3a\x06" + b"\x62\x04" + b"\x0a\x02ab"
