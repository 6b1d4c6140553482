"""The speaker encoder in NumPy against torch."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch

from ba_jax.speech import speakers
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.speakers import Resemblyzer, cut_windows, mel_spectrogram


class AllSpeech:
    """Finds speech in all of a wave."""

    def speech(self, wave_S, rate):
        return [(0.0, len(wave_S) / rate)]


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = torch.nn.Linear(256, 256)

    def forward(self, mel_BTM):
        _, (hidden, _) = self.lstm(mel_BTM)
        out = torch.relu(self.linear(hidden[-1]))
        return out / out.norm(dim=1, keepdim=True)


@pytest.fixture(params=[True, False], ids=["zip", "before torch 1.6"])
def encoder(request, tmp_path):
    torch.manual_seed(0)
    model = Encoder()
    saved = {"step": 3, "model_state": model.state_dict(), "names": ["a", ("b", 1.5)]}
    path = tmp_path / "pretrained.pt"
    torch.save(saved, path, _use_new_zipfile_serialization=request.param)
    return model, path


def test_equals_torch(encoder):
    model, path = encoder
    mel_BTM = np.random.default_rng(0).uniform(0, 2, (3, 160, 40)).astype(np.float32)
    torch.set_num_threads(1)  # more would wait for each other
    with torch.no_grad():
        want = model(torch.from_numpy(mel_BTM)).numpy()
    np.testing.assert_allclose(Resemblyzer(path).embed_windows(mel_BTM), want, atol=2e-6)


def test_damaged_and_foreign_weights_are_refused(encoder, tmp_path):
    _, path = encoder
    cut = tmp_path / "cut.pt"
    cut.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(SpeechToolError, match="cut.pt"):
        Resemblyzer(cut).embed_windows(np.zeros((1, 160, 40), np.float32))
    torch.save({"model_state": {"linear.weight": torch.zeros(3, 3)}}, tmp_path / "small.pt")
    with pytest.raises(SpeechToolError, match=re.escape("no linear.weight of shape (256, 256)")):
        Resemblyzer(tmp_path / "small.pt").embed_windows(np.zeros((1, 160, 40), np.float32))
    with pytest.raises(SpeechToolError, match="gone.pt"):
        Resemblyzer(tmp_path / "gone.pt").embed_windows(np.zeros((1, 160, 40), np.float32))


@pytest.mark.slow
def test_mel_equals_librosas():
    import librosa

    wave_S = np.random.default_rng(0).uniform(-1, 1, 16000).astype(np.float32)
    want = librosa.feature.melspectrogram(y=wave_S, sr=16000, n_fft=400, hop_length=160, n_mels=40)
    np.testing.assert_allclose(mel_spectrogram(wave_S), want.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("seconds", "windows"), [(0.5, 1), (1.6, 1), (1.9, 1), (2.1, 2), (3.2, 3), (10.0, 12)]
)
def test_windows(seconds, windows):
    samples = round(seconds * 16000)
    mel_TM = np.ones((1 + samples // 160, 40), np.float32)
    cut = cut_windows(mel_TM, samples)
    assert cut.shape == (windows, 160, 40)
    # Windows overlap by half, and at most a quarter of the last is filled up.
    assert cut[-1].mean() >= (0.75 if windows > 1 else 0.3)


def test_embeddings_do_not_hear_loudness_or_silence(encoder):
    _, path = encoder
    wave_S = np.random.default_rng(0).uniform(-0.01, 0.01, 40000).astype(np.float32)

    class FirstHalf:
        def speech(self, wave_S, rate):
            return [(0.0, 2.5)]

    whole = Resemblyzer(path, vad=AllSpeech()).embed(wave_S, 16000)
    assert whole.shape == (256,) and whole.dtype == np.float32
    assert np.linalg.norm(whole) == pytest.approx(1.0, abs=1e-5)
    quiet = Resemblyzer(path, vad=AllSpeech()).embed(wave_S / 4, 16000)
    padded = Resemblyzer(path, vad=FirstHalf()).embed(np.pad(wave_S, (0, 40000)), 16000)
    assert whole @ quiet > 0.9999 and whole @ padded > 0.9999


def test_too_little_speech_is_refused(encoder):
    _, path = encoder
    with pytest.raises(SpeechToolError, match="0.20 s of speech, expected at least 0.4 s"):
        Resemblyzer(path, vad=AllSpeech()).embed(np.zeros(3200, np.float32), 16000)
    again = pickle.loads(pickle.dumps(Resemblyzer(path, vad=None)))
    assert again._model == path and isinstance(again._vad, speakers.Silero)
