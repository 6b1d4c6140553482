"""Recognition by Whisper: windows, repetition, and times of words."""

from __future__ import annotations

import numpy as np
import pytest

from ba_jax.speech import whisper
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.waves import RATE, SoundEdges
from ba_jax.speech.whisper import TimedPiece, Whisper, WhisperModel, words_of

NOISE = SoundEdges(np.ones(RATE * 20, np.float32), RATE)  # never silent


def test_words_take_the_times_of_their_characters():
    pieces = [
        TimedPiece(" Hel", 0.0, 0.3, 1.0),
        TimedPiece("lo", 0.3, 0.5, 1.0),
        TimedPiece(",", 0.5, 0.9, 1.0),
        TimedPiece(" big", 0.9, 1.2, 1.0),
        TimedPiece(" wor", 1.2, 1.5, 1.0),
        TimedPiece("ld", 1.5, 1.7, 1.0),
        TimedPiece(".", 1.7, 2.5, 1.0),
    ]
    words = words_of(pieces, "Hello, big world.", "en", NOISE)
    assert [(w.text, w.start, w.end) for w in words] == [
        ("Hello,", 0.0, 0.5),
        ("big", 0.9, 1.2),
        ("world.", 1.2, 1.7),
    ]


def test_a_piece_of_several_characters_is_shared_out():
    pieces = [
        TimedPiece("今天", 0.0, 0.4, 1.0),
        TimedPiece("，", 0.4, 1.0, 1.0),
        TimedPiece("好。", 1.0, 1.2, 1.0),
    ]
    words = words_of(pieces, "今天，好。", "zh", NOISE)
    assert [w.text for w in words] == ["今", "天，", "好。"]
    assert [w.start for w in words] == pytest.approx([0.0, 0.2, 1.0])
    assert [w.end for w in words] == pytest.approx([0.2, 0.4, 1.2])


def test_words_beside_pauses_begin_and_end_with_their_sound():
    wave_S = np.zeros(RATE * 3, np.float32)
    wave_S[RATE // 2 : RATE] = 0.5  # 0.5 to 1.0
    wave_S[2 * RATE : RATE * 5 // 2] = 0.5  # 2.0 to 2.5
    pieces = [
        TimedPiece(" Yes", 0.0, 1.3, 1.0),
        TimedPiece(",", 1.3, 1.5, 1.0),
        TimedPiece(" no", 1.5, 3.0, 1.0),
    ]
    words = words_of(pieces, "Yes, no", "en", SoundEdges(wave_S, RATE))
    assert [w.start for w in words] == pytest.approx([0.5, 2.0])
    assert [w.end for w in words] == pytest.approx([1.0, 2.5])


class FakeOpened:
    """In place of `faster_whisper.WhisperModel`: outputs the given tokens."""

    def __init__(self, folder_tokenizer, texts):
        self.hf_tokenizer = folder_tokenizer
        self.model = self
        self.is_multilingual = True
        self.texts = list(texts)
        self.windows: list[int] = []
        self.options: list[dict] = []

    def feature_extractor(self, wave_S):
        return np.zeros((80, 1 + len(wave_S) // 160), np.float32)

    def encode(self, mel_MT):
        self.windows.append(mel_MT.shape[1])
        return mel_MT

    def generate(self, encoded, prompts, **options):
        self.options.append(options)
        tokens = self.hf_tokenizer.encode(self.texts.pop(0), add_special_tokens=False).ids

        class Result:
            sequences_ids = [tokens]
            no_speech_prob = 0.25

        return [Result()]

    def align(self, encoded, start, texts, frames):
        (tokens,) = texts

        class Result:
            # One token each tenth of a second, on the attention's clock of 50 a second.
            alignments = [(i, 5 * i) for i in range(len(tokens) + 1)]
            text_token_probs = [0.5] * len(tokens)

        return [Result()]


class FakeVad:
    def __init__(self, stretches):
        self.stretches = stretches

    def speech(self, wave_S, rate):
        return self.stretches


@pytest.fixture(scope="module")
def byte_tokenizer():
    """Bytes as tokens, with Whisper's special tokens after them."""
    import tokenizers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = ("endoftext", "startoftranscript", "en", "zh", "transcribe", "notimestamps")
    tokenizer.add_special_tokens([f"<|{name}|>" for name in special])
    return tokenizer


def make(byte_tokenizer, *texts, stretches=((0.0, 1.0),)):
    recogniser = Whisper("nowhere", vad=FakeVad(list(stretches)))
    opened = FakeOpened(byte_tokenizer, texts)
    recogniser._whisper.__dict__["opened"] = opened
    return recogniser, opened


def wave(seconds: float) -> np.ndarray:
    return np.full(round(seconds * RATE), 0.1, np.float32)


def test_recognition(byte_tokenizer):
    recogniser, opened = make(byte_tokenizer, " Hi you")
    heard = recogniser.recognise(wave(3.0), RATE, "en")
    assert (heard.text, heard.confidence, heard.no_speech) == ("Hi you", 0.5, 0.25)
    assert [w.text for w in heard.words] == ["Hi", "you"]
    # Seven bytes: the space, H, i, the space, ... and the attention runs ahead.
    assert heard.words[0].start == pytest.approx(0.1 + whisper._AHEAD)
    assert heard.words[1].end == pytest.approx(0.7 + whisper._AHEAD)
    assert opened.windows == [1000]


def test_mandarin_comes_in_simplified_characters(byte_tokenizer):
    recogniser, _ = make(byte_tokenizer, "電腦，好。")
    heard = recogniser.recognise(wave(3.0), RATE, "zh")
    assert heard.text == "电脑，好。"
    assert [w.text for w in heard.words] == ["电", "脑，", "好。"]
    # Three bytes a character.
    assert heard.words[1].start == pytest.approx(0.3 + whisper._AHEAD)


def test_silence_has_an_empty_transcript(byte_tokenizer):
    recogniser, opened = make(byte_tokenizer, stretches=())
    heard = recogniser.recognise(wave(3.0), RATE, "en")
    assert (heard.text, heard.words, heard.confidence, heard.no_speech) == ("", (), 0.0, 1.0)
    assert opened.windows == []


def test_a_repetitive_text_is_decoded_again(byte_tokenizer):
    recogniser, opened = make(byte_tokenizer, " and so on" * 20, " and so on.")
    assert recogniser.recognise(wave(3.0), RATE, "en").text == "and so on."
    assert [options["no_repeat_ngram_size"] for options in opened.options] == [0, 3]


@pytest.mark.parametrize(
    ("seconds", "frames"), [(0.5, 1000), (9.4, 1000), (9.6, 1500), (16.0, 2000), (30.0, 3000)]
)
def test_the_window_is_the_shortest_that_fits(byte_tokenizer, seconds, frames):
    recogniser, opened = make(byte_tokenizer, " Hi")
    recogniser.recognise(wave(seconds), RATE, "en")
    assert opened.windows == [frames]


def test_bad_waves_are_refused(byte_tokenizer):
    recogniser, _ = make(byte_tokenizer, " Hi")
    with pytest.raises(SpeechToolError, match="30.5 s of speech, expected at most 30"):
        recogniser.recognise(wave(30.5), RATE, "en")
    with pytest.raises(SpeechToolError, match="'xx', expected one of"):
        recogniser.recognise(wave(1.0), RATE, "xx")
    for bad in (np.zeros(0, np.float32), np.zeros((9, 2), np.float32), np.zeros(99, np.int16)):
        with pytest.raises(SpeechToolError):
            recogniser.recognise(bad, RATE, "en")
    with pytest.raises(SpeechToolError, match="nan"):
        recogniser.recognise(np.full(RATE, np.nan, np.float32), RATE, "en")


def test_missing_models_are_named_and_not_downloaded(tmp_path):
    with pytest.raises(SpeechToolError, match="model.bin: no such file"):
        _ = WhisperModel(tmp_path).opened
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(SpeechToolError, match="cannot be loaded"):
        _ = WhisperModel(tmp_path).opened
