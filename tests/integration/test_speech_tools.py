"""The real speech tools on each other: synthesised speech is recognised, aligned, distinguished."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch

from ba_jax.speech import assets, tools
from ba_jax.speech.interfaces import Spoken
from ba_jax.speech.text_norm import error_rate, join_words

TEXTS = {
    "en": [
        "When the rain stopped, we walked along the river and talked.",
        "There are 25 students in the class, and all of them like music.",
    ],
    "zh": ["今天天气很好，我们去公园散步吧。", "我妈妈在医院工作，每天早上7点起床。"],
}
VOICES = {"en": ("af_heart", "bm_george"), "zh": ("zf_xiaoxiao", "zm_yunjian")}


@pytest.fixture(scope="module")
def synthesiser():
    return tools.make_tool("synthesiser", "kokoro", silence=0.2)


@pytest.fixture(scope="module")
def utterances(synthesiser) -> dict[tuple[str, str, str], Spoken]:
    """(language, text, voice) -> spoken utterance."""
    return {
        (language, text, voice): synthesiser.speak(text, voice)
        for language, texts in TEXTS.items()
        for text in texts
        for voice in VOICES[language]
    }


def test_assets_have_their_checksums():
    for name, asset in assets.ASSETS.items():
        assert assets.digest(assets.ensure(name)) == asset.sha256


def test_voices_cover_both_languages(synthesiser):
    languages = list(synthesiser.voices.values())
    assert languages.count("en") == 28 and languages.count("zh") == 8


def test_speech_is_the_same_in_another_process(synthesiser, utterances):
    again = pickle.loads(pickle.dumps(synthesiser))
    (_, text, voice), spoken = next(iter(utterances.items()))
    np.testing.assert_array_equal(again.speak(text, voice).wave_S, spoken.wave_S)


def test_speed_and_average_voices_are_heard(synthesiser, utterances):
    text = TEXTS["zh"][0]
    first, second = (utterances["zh", text, voice] for voice in VOICES["zh"])
    fast = synthesiser.speak(text, VOICES["zh"][0], speed=1.3)
    assert 1.15 < len(first.wave_S) / len(fast.wave_S) < 1.4
    mixed = synthesiser.speak(text, "+".join(VOICES["zh"]))
    encoder = tools.make_tool("speaker_encoder", "resemblyzer")
    voices = [encoder.embed(spoken.wave_S, spoken.rate) for spoken in (first, mixed, second)]
    # The average is nearer to each voice than the two are to each other, and equals neither.
    assert voices[0] @ voices[2] < min(voices[0] @ voices[1], voices[1] @ voices[2])
    assert max(voices[0] @ voices[1], voices[1] @ voices[2]) < 0.97


def test_speech_is_recognised(utterances):
    recogniser = tools.make_tool("recogniser", "whisper")
    rates = {"en": [], "zh": []}
    for (language, text, _), spoken in utterances.items():
        heard = recogniser.recognise(spoken.wave_S, spoken.rate, language)
        rates[language].append(error_rate(text, heard.text, language))
        assert heard.confidence > 0.7 and heard.no_speech < 0.5
        assert join_words((word.text for word in heard.words), language) == heard.text
        assert all(0 <= word.start <= word.end for word in heard.words)
        assert heard.words[-1].end == pytest.approx(spoken.words[-1].end, abs=0.3)
    assert np.mean(rates["en"]) <= 0.1 and np.mean(rates["zh"]) <= 0.1
    silence_S = np.zeros(48000, np.float32)
    assert recogniser.recognise(silence_S, 24000, "en").text == ""


# The medians stated in ba_jax.speech.align, with a margin for eight utterances.
@pytest.mark.parametrize(("name", "limit"), [("pocketsphinx", 0.03), ("whisper", 0.07)])
def test_words_are_aligned(utterances, name, limit):
    aligner = tools.make_tool("aligner", name)
    errors = {"en": [], "zh": []}
    for (language, text, _), spoken in utterances.items():
        results = aligner.align(spoken.wave_S, spoken.rate, text, language)
        assert [word.text for word in results] == [word.text for word in spoken.words]
        for word, exact in zip(results, spoken.words, strict=True):
            errors[language] += [abs(word.start - exact.start), abs(word.end - exact.end)]
    assert np.median(errors["en"]) < limit and np.median(errors["zh"]) < limit


def test_speech_is_found_between_silences(utterances):
    first, *_, last = utterances.values()
    silence_S = np.zeros(24000, np.float32)
    parts = [silence_S, first.wave_S, silence_S, last.wave_S, silence_S]
    wave_S = np.concatenate(parts)
    edges = np.cumsum([len(part) for part in parts]) / 24000
    stretches = tools.make_tool("vad", "silero", min_silence=0.6).speech(wave_S, 24000)
    assert len(stretches) == 2
    for (start, end), spoken, offset in zip(
        stretches, (first, last), (edges[0], edges[2]), strict=True
    ):
        assert start == pytest.approx(offset + spoken.words[0].start, abs=0.2)
        assert end == pytest.approx(offset + spoken.words[-1].end, abs=0.2)


def test_speakers_are_distinguished(utterances):
    encoder = tools.make_tool("speaker_encoder", "resemblyzer")
    embedded = [(key[2], encoder.embed(s.wave_S, s.rate)) for key, s in utterances.items()]
    same, other = [], []
    for (voice_a, a), (voice_b, b) in itertools.combinations(embedded, 2):
        (same if voice_a == voice_b else other).append(float(a @ b))
    assert min(same) > max(other)
    assert np.mean(same) > 0.8 and np.mean(other) < 0.7


def test_the_speaker_encoder_equals_torchs(utterances):
    """On the released weights, read by torch itself."""
    from ba_jax.speech.speakers import cut_windows, mel_spectrogram
    from ba_jax.speech.waves import to_16k

    path = assets.ensure("resemblyzer") / "pretrained.pt"
    weights = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    lstm = torch.nn.LSTM(40, 256, 3, batch_first=True)
    lstm.load_state_dict({n[5:]: w for n, w in weights.items() if n.startswith("lstm.")})
    spoken = next(iter(utterances.values()))
    wave_S = to_16k(spoken.wave_S, spoken.rate)
    windows_BTM = cut_windows(mel_spectrogram(wave_S), len(wave_S))
    torch.set_num_threads(1)
    with torch.no_grad():
        _, (hidden, _) = lstm(torch.from_numpy(windows_BTM))
        out = torch.relu(hidden[-1] @ weights["linear.weight"].T + weights["linear.bias"])
        want = torch.nn.functional.normalize(out, dim=1).numpy()
    got = tools.make_tool("speaker_encoder", "resemblyzer").embed_windows(windows_BTM)
    np.testing.assert_allclose(got, want, atol=2e-6)
