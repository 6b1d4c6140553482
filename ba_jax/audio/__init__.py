"""Signal processing without parameters: files, resampling, STFT, mel spectrograms, lengths.

Importing it loads NumPy and SciPy but not JAX, PyAV or libsndfile: functions with an `xp` argument
accept `jax.numpy`, and the `_batch` functions import JAX when called.
"""

from ba_jax.audio.checks import AudioError, check_wave
from ba_jax.audio.lengths import bridge_length, encoder_length, mel_length
from ba_jax.audio.mel import (
    FLOW_MEL,
    HIFIGAN_MEL,
    WHISPER_MEL,
    WHISPER_MEL_80,
    MelGeometry,
    log_mel,
    log_mel_batch,
    mel_filterbank,
    whisper_log_mel,
    whisper_log_mel_batch,
)
from ba_jax.audio.read import AudioReader, read_audio
from ba_jax.audio.resample import resample, resampled_length
from ba_jax.audio.stft import hann_window, stft
from ba_jax.audio.write import write_audio

__all__ = [
    "FLOW_MEL",
    "HIFIGAN_MEL",
    "WHISPER_MEL",
    "WHISPER_MEL_80",
    "AudioError",
    "AudioReader",
    "MelGeometry",
    "bridge_length",
    "check_wave",
    "encoder_length",
    "hann_window",
    "log_mel",
    "log_mel_batch",
    "mel_filterbank",
    "mel_length",
    "read_audio",
    "resample",
    "resampled_length",
    "stft",
    "whisper_log_mel",
    "whisper_log_mel_batch",
    "write_audio",
]
