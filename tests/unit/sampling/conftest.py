"""A random model smaller than tiny: three codebooks."""

import pytest

from ba_jax.config import from_mapping
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from configs.models import get_config
from tests.unit.models.conftest import variables  # noqa: F401 (a fixture)


@pytest.fixture(scope="session")
def config() -> BaichuanAudioConfig:
    """The tiny sizes with three codebooks of 64, 32 and 16 codes."""
    sizes = get_config("tiny")
    for name in ("vq_bridge", "audio_embed", "audio_head"):
        sizes[name].codebook_sizes = (64, 32, 16)
    return from_mapping(BaichuanAudioConfig, sizes)
