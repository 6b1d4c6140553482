"""Recipes: the chain of commands from data to an evaluated model, one table each.

    python -m ba_jax.recipe --config=configs/recipes.py:nano               run it (launch/demo.sh)
    python -m ba_jax.recipe --config=configs/recipes.py:full --dry-run     print every command
    python -m ba_jax.recipe --config=configs/recipes.py:nano --config.long=True

  arg         what it makes
  nano        every part of a nano model on the embedded corpus, on two CPU cores, and report/
  constraint  a nano tokenizer and a language model on its codes for each b of the codebooks'
              constraint (paper, eq. 5), and a table of them
  full        the released sizes from public corpora and weights; each command is one job, on a pod
              the same on every host

Keys of nano: `model`, nano_whisper (the audio encoder starts from Whisper-base) or nano (from
scratch); `long`, two to seven times the steps; `runs` and `report`, folders; `jobs`, commands that
run side by side, as one nano step does not keep two cores busy.

Keys of constraint: `model`, `long` (the text model's steps), `runs` and `jobs` as of nano; `values`
of b; `tokenizer_steps` and `lm_steps` of each.

Keys of full: `root`, the folder of raw corpora (raw/), weights, records, codes and runs; `size`,
1b5 or 7b (the tokenizer's text loss always goes through the 1.5 B model, paper 3.1); `base`, an
original release of the same sizes that lends the export its layout, vision weights, text tokenizer
and code.
"""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict

from ba_jax.config import ConfigError, LocalPath, convert, expected
from ba_jax.recipe import Step
from ba_jax.speech.assets import asset_folder
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_ENCODER, SPEECH_TOKENIZER
from configs.mixtures import ASSISTANT

ARGUMENTS = ("nano", "constraint", "full")
# Settings that are paths.
PATHS = ("runs", "report", "root", "base")

# Optimiser steps of the nano stages: short (25 minutes on two idle cores), long.
NANO_STEPS = {
    "text": (300, 600),
    "understanding": (120, 900),
    "tokenizer": (220, 900),
    "stage1": (40, 100),
    "words": (320, 900),
    "stage2": (660, 2200),
    "flow": (300, 2000),
    "single": (440, 1200),
}
# Dataset of codes -> speed at which its recordings are played.
SPEEDS = {"embedded": 1.0, "embedded_slow": 0.9, "embedded_fast": 1.1}
# Words of a piece in the datasets of spliced speech (configs/prepare.py:spliced).
SPLICED_WORDS = (1, 2)


def get_config(name: str = "nano") -> ConfigDict:
    """Settings of a recipe.

    Raises:
      ConfigError: an unknown recipe.
    """
    if name == "nano":
        settings = {"model": "nano_whisper", "long": False, "runs": "runs", "report": "report"}
        return ConfigDict({**settings, "jobs": 2})
    if name == "constraint":
        settings = {"model": "nano_whisper", "long": False, "runs": "runs/constraint", "jobs": 2}
        steps = {"tokenizer_steps": 220, "lm_steps": 300}
        return ConfigDict({**settings, "values": (0.0, 1e-4, 1e-3, 1e-2), **steps})
    if name == "full":
        return ConfigDict({"size": "7b", "root": "/data/baichuan", "base": "", "jobs": 1})
    raise ConfigError(f"recipe {expected(name, ARGUMENTS)}")


def steps(config: ConfigDict) -> tuple[str, list[Step]]:
    """(Folder of the steps' outputs, steps in the order of their commands).

    Raises:
      ConfigError: a setting with an unknown value.
    """
    paths = {key: convert(LocalPath, config[key], key) for key in PATHS if key in config}
    if "values" in config:
        counts = config.tokenizer_steps, config.lm_steps
        return paths["runs"], constraint(config.model, config.long, config["values"], *counts)
    if "runs" in paths:
        return paths["runs"], nano(config.model, config.long, paths["report"])
    return paths["root"], full(config.size, paths["base"])


# Components that the understanding model has.
UNDERSTANDING = (*SPEECH_ENCODER, "llm")


def _python(module: str, *flags: str) -> tuple[str, ...]:
    return ("python", "-m", f"ba_jax.{module}", *flags)


def _init(run: str, *components: str) -> tuple[str, ...]:
    """Flags that start components from the run of another step."""
    return tuple(f"--config.init.{name}={{{run}}}" for name in components)


# --- nano ---------------------------------------------------------------------------------------


def nano(model: str, long: bool = False, report: str = "report") -> list[Step]:
    """Every part of a nano model, evaluated on held-out voices and sentences.

    Raises:
      ConfigError: an unknown model.
    """
    if model not in (models := ("nano", "nano_whisper")):
        raise ConfigError(f"model {expected(model, models)}")
    whisper = model == "nano_whisper"

    def train(name: str, config: str, *flags: str) -> Step:
        count = NANO_STEPS[name][int(long)]
        command = _python(
            "train",
            f"--config=configs/{config}",
            "--workdir={out}",
            f"--config.train.steps={count}",
            "--config.checkpoint.every=50",
            *flags,
        )
        return Step(name, [command], complete=f"checkpoints/{count}/weights")

    def evaluate(name: str, runs: tuple[str, ...], suites: str) -> Step:
        checkpoint = ",".join(f"{{{run}}}" for run in runs)
        command = _python(
            "evaluate",
            f"--config=configs/eval.py:{model}",
            f"--checkpoint={checkpoint}",
            f"--suite={suites}",
            "--out={out}",
        )
        return Step(f"eval/{name}", [command])

    def spliced(words: int) -> tuple[str, ...]:
        # Words of the assistant in a new order: they have to be read to be spoken.
        return _python(
            "corpora",
            "--config=configs/prepare.py:spliced",
            f"--out={{out}}/spliced_{words}",
            "--config.source.dataset={out}/embedded",
            f"--config.source.words=({words}, {words})",
            "--config.source.pieces=(1, 6)",
            "--config.source.utterances=4000",
            f"--config.source.speakers={ASSISTANT}",
            "--config.source.sources=('closed',)",
        )

    def tokenize(dataset: str, speed: float) -> tuple[str, ...]:
        return _python(
            "corpora.tokenize",
            f"--config=configs/tokenizer.py:{model}",
            "--checkpoint={tokenizer}",
            "--dataset=embedded",
            f"--speed={speed}",
            f"--out={{out}}/{dataset}",
        )

    codes = ("--config.data.folder={codes}", "--config.eval_data.folder={codes}")
    fresh = (*_init("text", "llm"), *_init("tokenizer", "audio_embed"))
    encoder = _init("whisper", "audio_encoder") if whisper else ()
    convert = _python(
        *("convert", "--quiet", "--overwrite", "--out", "{out}"),
        *("--source", str(asset_folder("whisper-base"))),
    )
    return [
        # A text model, so that there is a language ability to keep; the judge's weights.
        Step("assets", [_python("speech.assets", "whisper-base", "whisper-tiny.en")]),
        train("text", "lm_text.py:nano"),
        *([Step("whisper", [convert], complete="weights", after=("assets",))] if whisper else []),
        # Features that the text model understands; then the tokenizer; the corpus as its codes.
        train("understanding", f"understanding.py:{model}", *_init("text", "llm"), *encoder),
        train("tokenizer", f"tokenizer.py:{model}", *_init("understanding", *UNDERSTANDING)),
        Step(
            "codes",
            [*(tokenize(*item) for item in SPEEDS.items()), *map(spliced, SPLICED_WORDS)],
            complete=f"spliced_{SPLICED_WORDS[-1]}/dataset_info.json",
        ),
        # The language model in two stages, the second with words before sentences.
        train("stage1", "lm_stage1.py:nano_codes", *fresh, *codes),
        train("words", "lm_stage2.py:nano_words", *_init("stage1", *LANGUAGE_MODEL), *codes),
        train("stage2", "lm_stage2.py:nano_codes", *_init("words", *LANGUAGE_MODEL), *codes),
        # Speech out of codes, and the ablation with a single stage.
        train(
            "flow",
            f"flow_matching.py:{model}",
            *_init("tokenizer", "vq_bridge", "audio_decoder"),
            *codes,
        ),
        train("single", "lm_single.py:nano_codes", *fresh, *codes),
        evaluate("text_lm", ("text",), "qa_t2t"),
        evaluate("single", ("single",), "qa_t2t"),
        evaluate("tokenizer", ("tokenizer",), "codec"),
        evaluate("stage2", ("tokenizer", "flow", "stage2"), "asr,qa_s2t,qa_t2t,qa_s2s,tts"),
        Step(
            "report",
            [_python("report", "--runs={}", f"--out={report}")],
            after=("eval/text_lm", "eval/single", "eval/tokenizer", "eval/stage2"),
            always=True,
        ),
    ]


# --- constraint ---------------------------------------------------------------------------------


def constraint(
    model: str, long: bool, values: Sequence[float], tokenizer_steps: int, lm_steps: int
) -> list[Step]:
    """A tokenizer, its codes, and a language model on them, for each b; then the table.

    Raises:
      ConfigError: an unknown model.
    """
    chain = nano(model, long)
    place = [step.name for step in chain].index("tokenizer")
    (tokenizer,) = chain[place].commands

    def train(name: str, count: int, *command: str) -> Step:
        # Evaluated once, on enough batches to tell the values of b apart.
        evaluation = ("--config.train.evaluate_every=0", "--config.train.evaluate_batches=16")
        command = (*command, f"--config.train.steps={count}", *evaluation)
        return Step(name, [command], complete=f"checkpoints/{count}/weights")

    steps = chain[:place]
    for value in values:
        b = f"{value:g}"
        codes = f"{{{b}/codes}}"
        tokenize = _python(
            "corpora.tokenize",
            f"--config=configs/tokenizer.py:{model}",
            f"--checkpoint={{{b}/tokenizer}}",
            "--dataset=embedded",
            "--out={out}/embedded",
        )
        language_model = _python(
            "train",
            "--config=configs/lm_single.py:nano_plain",
            "--workdir={out}",
            *_init("text", "llm"),
            *_init(f"{b}/tokenizer", "audio_embed"),
            f"--config.data.folder={codes}",
            f"--config.eval_data.folder={codes}",
        )
        steps += [
            train(
                f"{b}/tokenizer", tokenizer_steps, *tokenizer, f"--config.stage.l2_shrink={value}"
            ),
            Step(f"{b}/codes", [tokenize], complete="embedded/dataset_info.json"),
            train(f"{b}/lm", lm_steps, *language_model),
        ]
    table = _python("evals.paper.constraint", "--runs={}", "--out={}")
    return [
        *steps,
        Step("table", [table], after=tuple(f"{value:g}/lm" for value in values), always=True),
    ]


# --- full ---------------------------------------------------------------------------------------

# Task (a member of configs/mixtures.py) -> (kind of source, its key, its place below raw/). One
# public corpus each; a mixture takes as many members as you have.
CORPORA = {
    "asr": ("librispeech", "folder", "LibriSpeech"),
    "aqa": ("manifest", "path", "questions.jsonl"),
    "s2tt": ("covost2", "folder", "covost2"),
    "intlv": ("crawl", "path", "podcasts"),
    "tts": ("libritts", "folder", "LibriTTS"),
    "itts": ("synthetic", "path", "texts"),
    "audio": ("wenetspeech", "folder", "WenetSpeech"),
    "text": ("text", "path", "texts"),
    "sft": ("manifest", "path", "dialogues.jsonl"),
}


def full(size: str, base: str = "") -> list[Step]:
    """The released sizes: data, weights, tokenizer, flow, vocoder, language model, SFT, export.

    Raises:
      ConfigError: an unknown size.
    """
    if size not in (sizes := ("1b5", "7b")):
        raise ConfigError(f"size {expected(size, sizes)}")
    qwen = "Qwen2.5-7B" if size == "7b" else "Qwen2.5-1.5B"

    def prepare(task: str, kind: str, key: str, place: str) -> Step:
        flags = (f"--config=configs/prepare.py:{kind}", "--out={out}", "--workers=16")
        command = _python("corpora", *flags, f"--config.source.{key}={{raw}}/{place}")
        return Step(f"records/{task}", [command])

    def convert(name: str) -> Step:
        command = _python("convert", "--source", f"{{raw}}/{name}", "--out", "{out}")
        return Step(f"weights/{name}", [command])

    def train(name: str, config: str, *flags: str, after: tuple[str, ...] = ()) -> Step:
        command = _python("train", f"--config=configs/{config}", "--workdir={out}", *flags)
        return Step(f"runs/{name}", [command], after=after)

    def tokenize(task: str) -> Step:
        command = _python(
            "corpora.tokenize",
            f"--config=configs/lm_stage2.py:{size}",
            "--checkpoint={runs/tokenizer}",
            f"--dataset={{records/{task}}}",
            "--out={out}",
            "--drop_audio",
        )
        return Step(f"codes/{task}", [command])

    records = "--config.data.folder={records}"
    codes = "--config.data.folder={codes}"
    have_records = tuple(f"records/{task}" for task in CORPORA)
    have_codes = tuple(f"codes/{task}" for task in CORPORA)
    parts = "{runs/tokenizer},{runs/flow},{runs/vocoder},{runs/sft}"
    return [
        *(prepare(task, *source) for task, source in CORPORA.items()),
        *(convert(name) for name in dict.fromkeys(("whisper-large-v3", "Qwen2.5-1.5B", qwen))),
        # Tokenizer (3.1), flow decoder and vocoder (3.2).
        train(
            "understanding",
            "understanding.py:1b5",
            records,
            *_init("weights/whisper-large-v3", "audio_encoder"),
            *_init("weights/Qwen2.5-1.5B", "llm"),
            after=have_records,
        ),
        train(
            "tokenizer",
            "tokenizer.py:1b5",
            records,
            *_init("runs/understanding", *UNDERSTANDING),
        ),
        train(
            "flow",
            f"flow_matching.py:{size}",
            records,
            *_init("runs/tokenizer", *SPEECH_TOKENIZER),
        ),
        train("vocoder", f"vocoder.py:{size}", records, after=have_records),
        # The corpora as codes, once: the language model's stages do not run the tokenizer.
        *(tokenize(task) for task in CORPORA if task != "text"),
        Step("codes/text", [("ln", "-sfn", "{records/text}", "{out}")]),
        # The language model (3.3): audio embeddings and head, then all but its text embedding and
        # output layer.
        train(
            "stage1",
            f"lm_stage1.py:{size}",
            codes,
            *_init(f"weights/{qwen}", "llm"),
            after=have_codes,
        ),
        train("stage2", f"lm_stage2.py:{size}", codes, *_init("runs/stage1", *LANGUAGE_MODEL)),
        train("sft", f"sft.py:{size}", codes, *_init("runs/stage2", *LANGUAGE_MODEL)),
        Step(
            "eval",
            [
                _python(
                    "evaluate",
                    f"--config=configs/eval.py:{size}",
                    f"--checkpoint={parts}",
                    "--out={out}",
                )
            ],
        ),
        # Weights under the names of the release, float32 as trained (--dtype bfloat16 halves them).
        Step(
            "joined",
            [_python("convert", "join", "--checkpoint", parts, "--out", "{out}")],
        ),
        Step(
            "export",
            [
                _python(
                    *("convert", "export", "--checkpoint", "{joined}", "--out", "{out}"),
                    *(("--base", base) if base else ()),
                )
            ],
        ),
    ]
