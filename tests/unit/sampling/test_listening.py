"""A model that hears features: the same text as from the embeddings that its projection implies."""

import numpy as np
import pytest

from ba_jax.audio.lengths import code_length
from ba_jax.checkpoints.layout import CheckpointError
from ba_jax.sampling.alternate import TextVocabulary
from ba_jax.sampling.listening import ListeningModel, load_listening_model
from ba_jax.sampling.loop import Generator
from ba_jax.sampling.prompt import Prompt, PromptError
from ba_jax.sampling.settings import GenerationSettings, SpeechModelSettings
from ba_jax.sampling.speech_model import SpeechModel
from ba_jax.stages.hearing import PROJECTION
from tests.unit.checkpoints.small_checkpoint import save_variables
from tests.unit.sampling.conftest import EOS

SETTINGS = SpeechModelSettings(
    tokenizer="embedded",
    generation=GenerationSettings(rows=2, lengths=(16,), max_text=4, max_frames=1),
    encode_rows=2,
    encode_seconds=(0.5,),
)


@pytest.fixture(scope="module")
def projection(config):
    rng = np.random.default_rng(0)
    shape = config.vq_bridge.code_width, config.llm.width
    return {
        "kernel": rng.normal(0, 0.02, shape).astype(np.float32),
        "bias": rng.normal(0, 0.02, shape[1]).astype(np.float32),
    }


@pytest.fixture(scope="module")
def models(config, variables, projection, writable):
    """Models that hear quantised features, and features, with the projection."""
    variables = {**variables, "params": {**variables["params"], PROJECTION: projection}}
    made = [ListeningModel(config, variables, SETTINGS, quantized=q) for q in (True, False)]
    for model in made:
        model.vocabulary = TextVocabulary(EOS, writable)
    return made


def read(config, codes):
    """A prompt of each recording: an id, its frames, two ids."""
    prompts = []
    for number, codes_NQ in enumerate(codes):
        codes_LQ = np.pad(codes_NQ, ((1, 2), (0, 0)))
        ids = [11, *[config.tokens.audio_pad] * len(codes_NQ), 12, 13 + number]
        prompts.append(Prompt(np.asarray(ids, np.int32), codes_LQ))
    return prompts


def test_quantised_features_are_heard_as_the_embeddings_of_their_codes(
    config, variables, projection, writable, models
):
    rng = np.random.default_rng(1)
    waves = [0.1 * rng.normal(size=n).astype(np.float32) for n in (8000, 5000, 7000)]
    codes = SpeechModel(config, variables, SETTINGS).encoder(waves)
    book, embeddings = variables["codebook"]["vq_bridge"], {}
    for q in range(3):
        rows_VD = np.asarray(book[f"embed_{q}"]) @ projection["kernel"] + projection["bias"] / 3
        embeddings[f"embedding_{q}"] = np.pad(rows_VD, ((0, 1), (0, 0)))
    params = {"llm": variables["params"]["llm"], "audio_embed": embeddings}
    listener = config.only("llm", "audio_embed")
    vocabulary = TextVocabulary(EOS, writable)
    generator = Generator(listener, {"params": params}, vocabulary, SETTINGS.generation)
    want = [output.ids for output in generator(read(config, codes))]

    model = models[0]
    numbers = model.encoder(waves)
    frames = [code_length(len(wave)) for wave in waves]
    assert np.concatenate(numbers).ravel().tolist() == list(range(sum(frames)))
    prompts = read(config, numbers)
    assert [output.ids for output in model.generate(prompts)] == want
    # Alone, in a table that holds its frames first.
    assert [output.ids for output in model.generate(prompts[2:])] == want[2:]
    assert len({tuple(ids) for ids in want}) == 3
    with pytest.raises(PromptError, match="asks for speech, and the model has no audio head"):
        model.generate([Prompt(prompts[0].ids_L, prompts[0].codes_LQ, wants_speech=True)])


def test_features_differ_from_their_quantised_version(models):
    wave = np.random.default_rng(2).normal(0, 0.1, 8000).astype(np.float32)
    quantised, features = (model._feature_encoder([wave])[0] for model in models)
    assert quantised.shape == features.shape == (code_length(8000), 128)
    assert np.abs(quantised - features).max() > 1e-3


def test_a_run_without_the_projection(config, tmp_path):
    save_variables(tmp_path / "run", {"params": {"llm": {"x": np.zeros(1)}}})
    with pytest.raises(CheckpointError, match="run: no text_projection, expected the language"):
        load_listening_model(config, {"llm": tmp_path / "run"}, SETTINGS)
