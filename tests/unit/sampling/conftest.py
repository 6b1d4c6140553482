"""A random model smaller than tiny, three codebooks, and its uncached passes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.config import from_mapping
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig
from ba_jax.sampling.prompt import Prompt
from configs.models import get_config
from tests.unit.models import conftest as models
from tests.unit.models.conftest import variables  # noqa: F401 (a fixture)

EOS = 500
SIZE = 80  # positions of the uncached pass


@pytest.fixture(scope="session")
def config() -> BaichuanAudioConfig:
    """The tiny sizes with three codebooks of 64, 32 and 16 codes."""
    sizes = get_config("tiny")
    for name in ("vq_bridge", "audio_embed", "audio_head"):
        sizes[name].codebook_sizes = (64, 32, 16)
    return from_mapping(BaichuanAudioConfig, sizes)


@pytest.fixture(scope="session")
def writable(config):
    """Ids 10 to 399."""
    mask = np.zeros(config.llm.vocab_size, bool)
    mask[10:400] = True
    return mask


def prompt(config, length, seed, **flags):
    """A text prompt with a few frames of audio in it."""
    rng = np.random.default_rng(seed)
    sizes = config.audio_embed.codebook_sizes
    ids = rng.integers(10, 400, length).astype(np.int32)
    ids[2:5] = config.tokens.audio_pad
    codes = rng.integers(0, sizes, (length, len(sizes))).astype(np.int32)
    if flags.get("speaks"):
        ids[-1] = config.tokens.audiogen_start
    return Prompt(ids, codes, **flags)


@pytest.fixture(scope="session")
def biased(config, variables):  # noqa: F811
    """Variables that end text, begin speech and end audio now and then.

    The end class of every codebook but the first has the largest logit; it must never be chosen.
    """
    params = variables["params"]
    llm, head = dict(params["llm"]), dict(params["audio_head"])
    rows = np.array([EOS, config.tokens.audiogen_start])
    llm["lm_head"] = np.array(llm["lm_head"])
    llm["lm_head"][rows] *= 2
    for q in range(3):
        classifier = dict(head[f"classifiers_{q}"])
        classifier["bias"] = np.array(classifier["bias"])
        classifier["bias"][-1] += 100 if q else 1
        head[f"classifiers_{q}"] = classifier
    return jax.device_put({**variables, "params": {**params, "llm": llm, "audio_head": head}})


@pytest.fixture(scope="session")
def small(config, variables):  # noqa: F811
    """The model with a vocoder of two stages, which compiles quickly, and its variables."""
    vocoder = dataclasses.replace(
        config.vocoder,
        base_channels=8,
        upsample_rates=(8, 15),
        upsample_kernels=(16, 21),
        resblock_kernels=(3,),
        source_resblock_kernels=(3, 3),
        dilations=(1, 3),
    )
    config = dataclasses.replace(config, vocoder=vocoder)
    vocoder_params = models.variables.__wrapped__(config.only("vocoder"))["params"]
    variables = {**variables, "params": {**variables["params"], **vocoder_params}}
    # Put on a device explicitly, like a checkpoint's: jit compiles for committed arrays.
    return config, jax.device_put(variables, jax.devices()[0])


@pytest.fixture(scope="session")
def whole_pass(config, biased):
    """(ids, codes, penalty, history) -> text logits and greedy frame at the last position.

    Without any cache: the whole sequence is read, and all depths are computed for each code.
    `history` are the frames that the penalty counts.
    """
    small = config.only("llm", "audio_embed", "audio_head")
    sizes = config.audio_head.codebook_sizes
    model = BaichuanAudio(small)

    @jax.jit
    def run(ids_BL, codes_BLQ, length, seen, penalty):
        real = (jnp.arange(SIZE) < length).astype(jnp.int32)[None]
        hidden, _ = model.apply(biased, ids_BL, codes_BLQ, None, real, method="hidden")
        last = hidden[:, length - 1]
        text = model.apply(biased, last, method="text_logits")
        frame = jnp.zeros((1, len(sizes)), jnp.int32)
        for q in range(len(sizes)):
            logits = model.apply(biased, last, frame, method="audio_logits")[q][0]
            logits = jnp.where(
                seen[q], jnp.where(logits < 0, logits * penalty, logits / penalty), logits
            )
            frame = frame.at[0, q].set(jnp.argmax(logits if q == 0 else logits[:-1]))
        return text[0], frame[0]

    def call(ids, codes, penalty=1.0, history=()):
        ids_BL = np.zeros((1, SIZE), np.int32)
        codes_BLQ = np.zeros((1, SIZE, len(sizes)), np.int32)
        ids_BL[0, : len(ids)], codes_BLQ[0, : len(ids)] = ids, codes
        seen = [np.zeros(size + 1, bool) for size in sizes]
        for frame in history:
            for q, code in enumerate(frame):
                seen[q][code] = True
        return jax.device_get(run(ids_BL, codes_BLQ, len(ids), seen, np.float32(penalty)))

    return call
