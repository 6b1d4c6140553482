"""The speech encoder: pieces of long recordings, independent of the batch."""

import numpy as np
import pytest

from ba_jax.audio.lengths import code_length
from ba_jax.sampling.encode import Encoder


def test_encoder(config, variables):
    rng = np.random.default_rng(1)
    waves = [0.1 * rng.normal(size=n).astype(np.float32) for n in (16000, 5000, 40000, 300)]
    encoder = Encoder(config, variables, rows=2, seconds=(0.5, 1.0))
    codes = encoder(waves)
    # 2.5 s are cut into pieces of 1 s; 300 samples are too few for a frame
    want = [code_length(16000), code_length(5000), 2 * code_length(16000) + code_length(8000), 0]
    assert [len(codes_NQ) for codes_NQ in codes] == want
    assert encoder.traces == {"encode": 2}
    np.testing.assert_array_equal(encoder([waves[0]])[0], codes[0])
    np.testing.assert_array_equal(encoder([waves[2][:16000]])[0], codes[2][: code_length(16000)])
    assert encoder.traces == {"encode": 2}


def test_model_without_an_encoder(config, variables):
    with pytest.raises(ValueError, match="model without .*audio_encoder"):
        Encoder(config.only("vq_bridge"), variables)
