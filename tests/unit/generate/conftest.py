"""A random model of the smallest size behind the embedded corpus' text tokenizer."""

import jax
import pytest

from ba_jax.config import from_mapping
from ba_jax.data.record import EMBEDDED, RecordSource
from ba_jax.generate import __main__ as command
from ba_jax.models.baichuan_audio import BaichuanAudioConfig, init_variables
from configs.generate import get_config
from tests.shared_models import share_speech_models
from tests.unit.checkpoints.small_checkpoint import save_variables

COMPONENTS = ("audio_encoder", "vq_bridge", "audio_decoder", "llm", "audio_embed", "audio_head")


@pytest.fixture(scope="package")
def config() -> dict:
    """The command's config, with one layer of each kind, and the rows of a stream."""
    config = get_config("nano")
    for name in ("audio_encoder", "audio_decoder", "llm", "audio_head"):
        config.model[name].layers = 1
    for name in ("flow_prenet", "flow_unet", "vocoder"):
        config.model[name] = None
    config.generate.generation.update(
        {"max_text": 6, "max_frames": 9, "rows": 1, "lengths": (64,), "capacity": 200}
    )
    config.generate.encode_rows = 1
    config.generate.alternation.update({"stretch": 3, "segment": 5, "segments": 2})
    config.generate.synthesis.update({"iterations": 2, "frames": (40,), "rows": 2})
    config.compilation_cache = ""
    return config.to_dict()


@pytest.fixture(scope="package")
def weights(config, tmp_path_factory) -> str:
    """A checkpoint of it."""
    folder = tmp_path_factory.mktemp("weights") / "all"
    save_variables(folder, _variables(config))
    return str(folder)


@pytest.fixture(scope="package")
def brief(config, tmp_path_factory) -> str:
    """Checkpoint of a model whose segments of speech end soon."""
    folder = tmp_path_factory.mktemp("weights") / "brief"
    variables = _variables(config)
    last = variables["params"]["audio_head"]["classifiers_0"]
    last["bias"] = last["bias"].at[-1].add(4.0)
    save_variables(folder, variables)
    return str(folder)


def _variables(config):
    model = from_mapping(BaichuanAudioConfig, config["model"])
    return jax.jit(lambda k: init_variables(model, k))(jax.random.key(0))


@pytest.fixture(scope="package")
def recordings(tmp_path_factory):
    """A folder with three questions."""
    folder = tmp_path_factory.mktemp("recordings")
    records = [r for r in RecordSource(EMBEDDED, "test") if r.kind == "dialogue"][:3]
    for number, record in enumerate(records):
        (folder / f"q{number}.ogg").write_bytes(record.parts[0].audio)
    return folder


@pytest.fixture(scope="package", autouse=True)
def shared_models():
    with share_speech_models(command):
        yield
