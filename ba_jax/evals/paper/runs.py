"""The runs that the tables need: found where the demo left them, or trained by its commands."""

from __future__ import annotations

import json
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from ba_jax.vocab import LANGUAGE_MODEL

SIZES: Mapping[str, str] = {"nano": "nano_whisper", "nano_scratch": "nano"}
"""Size -> the configs' argument: nano with Whisper-base as its encoder (the demo's), or without."""
STEPS: Mapping[str, int] = {
    "text": 300,
    "tokenizer": 220,
    "flow": 300,
    "single": 440,
    "stage1": 40,
    "words": 320,
    "stage2": 660,
}
"""Run -> optimiser steps, as in launch/demo.sh."""
SPEEDS: Mapping[str, float] = {"embedded_slow": 0.9, "embedded_fast": 1.1, "embedded": 1.0}
"""Dataset of codes -> how fast recordings are played."""
SPLICED: Mapping[str, object] = {
    "pieces": (1, 6),
    "utterances": 4000,
    "speakers": ("af_heart", "zf_xiaoxiao"),
    "sources": ("closed",),
}
"""Of the datasets that are put together from those words (`configs/prepare.py:spliced`)."""
SPLICED_WORDS = (1, 2)
"""Words of their pieces; the last of these datasets makes the folder of codes complete."""
_LAST = f"spliced_{SPLICED_WORDS[-1]}"
WEIGHTS = {"llm": "text", "audio_embed": "tokenizer"}


class RunError(RuntimeError):
    """A run that is not there and could not be made."""


class Runs:
    """Folders of runs by the demo's names.

    Args:
      folders: looked through in this order; what is missing is trained in the last.
      size: one of SIZES.
      execute: runs a command; of tests.

    Raises:
      RunError: an unknown size.
    """

    def __init__(
        self,
        folders: Sequence[pathlib.Path],
        size: str,
        execute: Callable[[Sequence[str]], None] | None = None,
    ):
        if size not in SIZES:
            raise RunError(f"size {size!r}, expected one of {sorted(SIZES)}")
        self.folders, self.size = [pathlib.Path(f) for f in folders], size
        self._execute = _call if execute is None else execute

    @property
    def model(self) -> str:
        """The configs' argument."""
        return SIZES[self.size]

    def get(self, name: str) -> pathlib.Path:
        """A run's folder, trained first if it is nowhere.

        Raises:
          RunError: an unknown name, or a command that failed.
        """
        return self._found(name, lambda target: self._commands(name, target))

    def tokenizer_of(self, codebooks: int) -> pathlib.Path:
        """A tokenizer trained with the first so many codebooks alone.

        Raises:
          RunError: a command that failed.
        """
        from configs.models import get_config

        sizes = tuple(get_config(self.model).vq_bridge.codebook_sizes[:codebooks])
        flags = [
            f"--config.model.{part}.codebook_sizes={sizes!r}".replace(" ", "")
            for part in ("vq_bridge", "audio_embed", "audio_head")
        ]
        return self._found(
            f"tokenizer_{codebooks}", lambda target: [self._tokenizer(target) + flags]
        )

    def _found(
        self, name: str, commands: Callable[[pathlib.Path], Sequence[Sequence[str]]]
    ) -> pathlib.Path:
        """The folder of that name, made by the commands if it is nowhere."""
        for folder in self.folders:
            if _is_done(folder / name):
                return folder / name
        target = self.folders[-1] / name
        for command in commands(target):
            self._execute(command)
        if not _is_done(target):
            raise RunError(
                f"{target}: the command ended, but the run is not complete: run it again"
            )
        return target

    def steps(self, name: str) -> int | None:
        """Optimiser steps of a run that is there."""
        for folder in self.folders:
            if _is_done(folder / name):
                return _steps(folder / name)
        return None

    def _commands(self, name: str, target: pathlib.Path) -> list[list[str]]:
        if name == "codes":
            return [
                *(self._codes(target, dataset) for dataset in SPEEDS),
                *(_spliced(target, words) for words in SPLICED_WORDS),
            ]
        return [self._command(name, target)]

    def _codes(self, target: pathlib.Path, dataset: str) -> list[str]:
        return _python(
            "ba_jax.corpora.tokenize",
            f"--config=configs/tokenizer.py:{self.model}",
            f"--checkpoint={self.get('tokenizer')}",
            "--dataset=embedded",
            f"--speed={SPEEDS[dataset]}",
            f"--out={target / dataset}",
        )

    def _command(self, name: str, target: pathlib.Path) -> list[str]:
        if name == "whisper":
            from ba_jax.speech import assets

            source = str(assets.ensure("whisper-base"))
            options = ["--quiet", "--overwrite", "--out", str(target), "--source", source]
            return _python("ba_jax.convert", *options)
        if name == "text":
            return self._train(name, "lm_text.py:nano", target)
        if name == "tokenizer":
            return self._tokenizer(target)
        if name == "flow":
            parts = ("audio_encoder", "vq_bridge", "audio_decoder")
            start = {part: self.get("tokenizer") for part in parts}
            return self._train(name, f"flow_matching.py:{self.model}", target, start)
        if name in ("single", "stage1", "words", "stage2"):
            config, start = {
                "single": ("lm_single.py:nano_codes", {p: self.get(r) for p, r in WEIGHTS.items()}),
                "stage1": ("lm_stage1.py:nano_codes", {p: self.get(r) for p, r in WEIGHTS.items()}),
                "words": ("lm_stage2.py:nano_words", "stage1"),
                "stage2": ("lm_stage2.py:nano_codes", "words"),
            }[name]
            if isinstance(start, str):
                start = dict.fromkeys(LANGUAGE_MODEL, self.get(start))
            codes = self.get("codes")
            data = [f"--config.{part}.folder={codes}" for part in ("data", "eval_data")]
            return self._train(name, config, target, start) + data
        raise RunError(f"run {name!r}, expected whisper, codes or one of {sorted(STEPS)}")

    def _tokenizer(self, target: pathlib.Path) -> list[str]:
        start = {"llm": self.get("text")}
        if self.model == "nano_whisper":
            start["audio_encoder"] = self.get("whisper")
        return self._train("tokenizer", f"tokenizer.py:{self.model}", target, start)

    def _train(
        self,
        name: str,
        config: str,
        target: pathlib.Path,
        start: Mapping[str, pathlib.Path] | None = None,
    ) -> list[str]:
        return _python(
            "ba_jax.train",
            f"--config=configs/{config}",
            f"--workdir={target}",
            f"--config.train.steps={STEPS[name]}",
            "--config.checkpoint.every=50",
            *(f"--config.init.{part}={folder}" for part, folder in (start or {}).items()),
        )


def _spliced(target: pathlib.Path, words: int) -> list[str]:
    return _python(
        "ba_jax.corpora",
        "--config=configs/prepare.py:spliced",
        f"--out={target / f'spliced_{words}'}",
        f"--config.source.dataset={target / 'embedded'}",
        f"--config.source.words={(words, words)}",
        *(f"--config.source.{key}={value}" for key, value in SPLICED.items()),
    )


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def _call(command: Sequence[str]) -> None:
    """Runs a command in the tree's root.

    Raises:
      RunError: it failed.
    """
    print(shlex.join(command), flush=True)
    root = pathlib.Path(__file__).resolve().parents[3]
    code = subprocess.run(command, cwd=root, check=False).returncode
    if code:
        raise RunError(f"{shlex.join(command)}: exit status {code}")


def _steps(folder: pathlib.Path) -> int | None:
    try:
        return json.loads((folder / "config.json").read_text())["train"]["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_done(folder: pathlib.Path) -> bool:
    """A run at its last step, converted weights, or a dataset."""
    if (folder / "weights").is_dir() or (folder / _LAST / "dataset_info.json").is_file():
        return True
    steps = _steps(folder)
    return steps is not None and (folder / "checkpoints" / str(steps) / "weights").is_dir()
