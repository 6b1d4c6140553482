"""Benches for tests: with a made-up model and judge, and a tiny random model's checkpoints."""

import pathlib
import types

import numpy as np

from ba_jax.audio import read_audio
from ba_jax.config import from_mapping
from ba_jax.evals import runner
from ba_jax.evals.base import Bench, EvalSettings
from ba_jax.evals.suites import registry
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.sampling.session import Generated
from ba_jax.sampling.speech_model import SpeechModel
from ba_jax.sampling.synthesize import Wave
from ba_jax.types import Failure
from configs.eval import get_config
from configs.models import get_config as sizes
from tests.unit.checkpoints.small_checkpoint import save_variables
from tests.unit.models import conftest


class FakeJudge:
    """Hears what it was told; waves may have been saved with 16 bits."""

    names = {"en": "told", "zh": "told"}  # noqa: RUF012

    def __init__(self):
        self.told = []

    def hear(self, waves, languages, progress=None):
        return [
            "" if wave is None else self.of(wave.wave_S, language)
            for wave, language in zip(waves, languages, strict=True)
        ]

    def of(self, wave_S, language):
        for known_S, known, said in reversed(self.told):
            if known == language and len(known_S) == len(wave_S):
                if np.abs(known_S - wave_S).max() < 1e-3:
                    return said
        raise AssertionError(f"a wave of {len(wave_S)} samples, which nobody told of")

    def map(self, function, values):
        return map(function, values)


class LengthJudge:
    """In the place of `Judge`, without processes: hears how long a wave is."""

    names = {"en": "fake", "zh": "fake"}  # noqa: RUF012

    def __init__(self, settings):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, values):
        return map(function, values)

    def hear(self, waves, languages, progress=None):
        return ["" if wave is None else f"one {len(wave.wave_S)}" for wave in waves]


def settings(**changes) -> EvalSettings:
    """The nano model's, for a few items."""
    config = get_config("nano").to_dict()
    return from_mapping(EvalSettings, config["eval"] | {"limit": 2} | changes)


def make_bench(config, variables, settings, out, judge) -> Bench:
    """A bench around a model's variables."""
    run = getattr(judge, "map", map)
    return Bench(SpeechModel(config, variables, settings, run=run), settings, out, judge)


def bench_of(tmp_path, model, **changes):
    """A bench whose model writes `model(record)` (text, frames) for each record it is asked."""
    config = from_mapping(BaichuanAudioConfig, get_config("nano").to_dict()["model"])
    bench = make_bench(config, {}, settings(**changes), tmp_path, FakeJudge())
    bench.prompts = lambda records, task, **options: [(r, task, options) for r in records]
    bench.prompts_in_turns = lambda records: bench.prompts(records, "tts")

    def generate(prompts, what, numbers):
        found = []
        for number, (record, _, _) in zip(numbers, prompts, strict=True):
            said = model(record)
            if isinstance(said, Failure):
                found.append(said)
                continue
            words, frames = said
            codes = np.full((frames, 8), number, np.int32)
            found.append(Generated(bench.model.tokenizer.encode(words), codes, True))
        return found

    bench.generate = generate

    def speech_of(codes, numbers=None):
        return [
            None if not len(own) else Wave(np.full(480, 0.01 + own[0, 0] / 100, np.float32), 24000)
            for own in codes
        ]

    bench.speech_of = speech_of
    return bench


def tell(bench, waves, texts, languages):
    for wave, said, language in zip(waves, texts, languages, strict=True):
        bench.judge.told.append((wave.wave_S, language, said))


def recorded(part):
    """A part's recording."""
    return Wave(*read_audio(part.audio))


def run(name, bench, start="generate"):
    """A suite; by default with nothing saved before."""
    made = dict.fromkeys(runner.FOLDERS, "test")
    return types.SimpleNamespace(**runner.run(registry.SUITES[name], bench, made, start=start))


def tiny(**changes) -> dict:
    """An evaluation's config: the tiny model's sizes around the embedded tokenizer."""
    config = get_config("nano").to_dict()
    model = sizes("tiny").to_dict()
    model["tokens"] = sizes("nano").to_dict()["tokens"]
    model["llm"]["vocab_size"] = sizes("nano").llm.vocab_size
    for name in ("vq_bridge", "audio_embed", "audio_head"):
        model[name]["codebook_sizes"] = (64, 32, 16)
    generation = config["eval"]["generation"] | {"rows": 4, "max_text": 5, "max_frames": 8}
    synthesis = config["eval"]["synthesis"] | {"rows": 4, "frames": (48,), "steps": 2}
    evaluation = config["eval"] | {
        "limit": 1,
        "encode_rows": 4,
        "generation": generation,
        "synthesis": synthesis | {"iterations": 2},
    }
    return {"model": model, "eval": evaluation | changes, "compilation_cache": ""}


def write_checkpoints(folder: pathlib.Path) -> list[str]:
    """The tiny model's: tokenizer and decoders in one, the language model in another."""
    config = from_mapping(BaichuanAudioConfig, tiny()["model"])
    variables = conftest.variables.__wrapped__(config)
    for name, parts in (
        ("codec", ("audio_encoder", "vq_bridge", "audio_decoder", "flow_prenet", "flow_unet")),
        ("lm", ("llm", "audio_embed", "audio_head", "audio_encoder", "vq_bridge")),
    ):
        own = {
            collection: {part: tree[part] for part in parts if part in tree}
            for collection, tree in variables.items()
        }
        save_variables(folder / name, own)
    return [str(folder / "codec"), str(folder / "lm")]
