"""Length arithmetic of the front end, and the modules that importing the package loads."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.audio import bridge_length, encoder_length, mel_length
from tests.processes import PATIENCE

ROOT = pathlib.Path(__file__).parents[3]


def test_known_lengths():
    with np.load(ROOT / "tests" / "data" / "frontend.npz") as arrays:
        frames = mel_length(len(arrays["wave16"]))
        assert frames == arrays["mel_frames"]
        assert encoder_length(frames) == arrays["encoder_len"]
        assert bridge_length(encoder_length(frames)) == arrays["bridge_len"]
    assert (mel_length(480_000), mel_length(10**7), mel_length(479_839)) == (3000, 3000, 2999)
    assert (encoder_length(3000), encoder_length(0), encoder_length(1)) == (1500, 0, 1)
    assert (bridge_length(1500), bridge_length(3), bridge_length(10, pooling=5)) == (375, 0, 2)


@pytest.mark.parametrize("function", [mel_length, encoder_length, bridge_length])
def test_ints_numpy_and_jax_agree(function):
    values = np.array([0, 1, 2, 3, 4, 7, 159, 160, 161, 3000, 479_999, 480_000, 480_160, 10**6])
    want = [function(int(value)) for value in values]
    assert all(type(value) is int for value in want)
    np.testing.assert_array_equal(function(values), want)
    traced = jax.jit(function)(jnp.asarray(values, jnp.int32))
    assert traced.dtype == jnp.int32
    np.testing.assert_array_equal(traced, want)


def test_encoder_length_equals_that_of_the_convolutions():
    def convolve_twice(x_BTC):
        for stride in (1, 2):
            kernel = jnp.zeros((3, 1, 1))
            x_BTC = jax.lax.conv_general_dilated(
                x_BTC, kernel, (stride,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC")
            )
        return x_BTC

    for frames in range(1, 50):
        shape = jax.eval_shape(convolve_twice, jax.ShapeDtypeStruct((1, frames, 1), jnp.float32))
        assert shape.shape[1] == encoder_length(frames)


def test_importing_and_using_the_numpy_path_loads_no_jax():
    code = """
import sys
import numpy as np
import ba_jax.audio as audio
wave = np.zeros(48000, np.float32)
audio.whisper_log_mel(audio.resample(wave, 24000, 16000))
audio.log_mel(wave)
audio.stft(wave, 16, 4, audio.hann_window(16))
loaded = {"jax", "jaxlib", "flax", "torch", "librosa", "numba"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=PATIENCE)
