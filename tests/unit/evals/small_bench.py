"""Benches for tests: with a fake model and judge, and a tiny random model's checkpoints."""

import pathlib
import types

import numpy as np

from ba_jax.audio import read_audio
from ba_jax.config import from_mapping
from ba_jax.evals import runner
from ba_jax.evals.bench import Bench
from ba_jax.evals.settings import EvalSettings
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
    """Recognises the waves in `known`; waves may have been saved with 16 bits."""

    names = {"en": "fake", "zh": "fake"}  # noqa: RUF012

    def __init__(self):
        self.known = []

    def hear(self, waves, languages, progress=None):
        return [
            "" if wave is None else self.recognise(wave.wave_S, language)
            for wave, language in zip(waves, languages, strict=True)
        ]

    def recognise(self, wave_S, language):
        for known_S, known_language, text in reversed(self.known):
            if known_language == language and len(known_S) == len(wave_S):
                if np.abs(known_S - wave_S).max() < 1e-3:
                    return text
        raise AssertionError(f"an unknown wave of {len(wave_S)} samples")

    def map(self, function, values):
        return map(function, values)


class LengthJudge:
    """Takes the place of `SpeechJudge`, without processes: hears a wave's length."""

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
    run = map if judge is None else judge.map
    return Bench(SpeechModel(config, variables, settings, run=run), settings, out, judge)


def empty_bench(folder, **changes) -> Bench:
    """A bench with the nano model's config and no variables."""
    config = from_mapping(BaichuanAudioConfig, get_config("nano").to_dict()["model"])
    return make_bench(config, {}, settings(**changes), folder, FakeJudge())


def bench_of(folder, model, **changes) -> Bench:
    """A bench whose model outputs `model(record)`, (text, frames) or a failure, for each record."""
    bench = empty_bench(folder, **changes)
    bench.make_prompts = lambda records, task, **options: records

    def generate(records, description, numbers):
        outputs = []
        for number, record in zip(numbers, records, strict=True):
            output = model(record)
            if not isinstance(output, Failure):
                text, frames = output
                codes_NQ = np.full((frames, 8), number, np.int32)
                output = Generated(bench.model.tokenizer.encode(text), codes_NQ, True)
            outputs.append(output)
        return outputs

    def say(items, description):
        return bench.ask(items, "tts", description)

    def synthesize(codes, numbers=None):
        return [
            Wave(np.full(480, 0.01 + c[0, 0] / 100, np.float32), 24000) if len(c) else None
            for c in codes
        ]

    bench.generate, bench.say, bench.synthesize = generate, say, synthesize
    return bench


def teach(bench, waves, texts, languages):
    """Teach the fake judge the texts of waves."""
    for wave, text, language in zip(waves, texts, languages, strict=True):
        bench.judge.known.append((wave.wave_S, language, text))


def recorded(part):
    """A part's recording."""
    return Wave(*read_audio(part.audio))


def run(name, bench, start="generate"):
    """Run a suite; by default without saved lines."""
    made_with = dict.fromkeys(runner.FOLDERS, "test")
    suite = registry.SUITES[name]
    return types.SimpleNamespace(**runner.run(suite, bench, made_with, start=start))


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
    """Write the tiny model: tokenizer and decoders in `codec`, the language model in `lm`."""
    config = from_mapping(BaichuanAudioConfig, tiny()["model"])
    variables = conftest.variables.__wrapped__(config)
    for name, parts in (
        ("codec", ("audio_encoder", "vq_bridge", "audio_decoder", "flow_prenet", "flow_unet")),
        ("lm", ("llm", "audio_embed", "audio_head", "audio_encoder", "vq_bridge")),
    ):
        selected = {
            collection: {part: tree[part] for part in parts if part in tree}
            for collection, tree in variables.items()
        }
        save_variables(folder / name, selected)
    return [str(folder / "codec"), str(folder / "lm")]
