"""A dataset of a few records of every kind, in both languages, with noise and tones for speech."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from ba_jax.audio import write_audio
from ba_jax.corpora.make_tokenizer import train_sentencepiece
from ba_jax.data.features import ModelFormat
from ba_jax.data.record import Part, Record, shard_name, write_metadata, write_shard
from ba_jax.vocab import AudioTokens

CODEBOOK_SIZES = (512, 256, 128, 64, 64, 64, 64, 64)
FORMAT = ModelFormat(CODEBOOK_SIZES, 128, 2048, AudioTokens(*range(3, 12)))
"""The nano model's, see `configs/models.py`."""

TEXTS = {
    "en": ("what is two and three", "two and three is five", "the sky is blue", "come in, please"),
    "zh": ("二加三等于几", "二加三等于五", "天空是蓝色的", "请进"),
}
SECONDS = (0.5, 1.0, 2.25, 0.9, 3.1, 1.6)


@functools.cache
def speech(seconds: float, seed: int = 0, format: str = "opus", rate: int = 24000) -> bytes:
    """An encoded file of a tone in noise."""
    rng = np.random.default_rng(seed)
    time_S = np.arange(round(seconds * rate)) / rate
    wave_S = 0.3 * np.sin(2 * np.pi * (120 + 20 * (seed % 20)) * time_S)
    wave_S += 0.05 * rng.standard_normal(len(time_S))
    stream = io.BytesIO()
    write_audio(stream, wave_S.astype(np.float32), rate, format)
    return stream.getvalue()


def codes(seconds: float, seed: int = 0) -> np.ndarray:
    """Codes of as many frames as speech of that length has."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, CODEBOOK_SIZES, (max(1, int(seconds * 12.5)), len(CODEBOOK_SIZES)))


def spoken(text: str, seconds: float, seed: int, with_codes: bool = True, **fields) -> Part:
    """A part with its text, audio and, perhaps, codes."""
    codes_NQ = codes(seconds, seed) if with_codes else None
    return Part(text, speech(seconds, seed), codes_NQ, seconds, **fields)


@functools.cache
def records(repeat: int = 2) -> tuple[Record, ...]:
    """`repeat` times 7 records a language."""
    result = []
    for language, texts in TEXTS.items():
        other = TEXTS["zh" if language == "en" else "en"]

        def add(kind: str, *parts: Part, language: str = language) -> None:
            result.append(Record(f"{language}{len(result)}", kind, language, parts, "small"))

        for i in range(repeat):
            for j in range(3):
                seconds = SECONDS[(i * 3 + j) % len(SECONDS)]
                part = spoken(texts[j], seconds, i * 3 + j, translation=other[j], speaker=f"s{j}")
                add("speech", part)
            add("interleaved", *(spoken(texts[j], SECONDS[j], 50 + j) for j in range(3)))
            question = spoken(texts[0], 1.2, 60 + i, role="user")
            answer = spoken(texts[1], 1.5, 70 + i, role="assistant")
            add("dialogue", Part("be brief", role="system"), question, answer)
            add(
                "dialogue",
                question,
                answer,
                spoken(texts[3], 0.7, 80 + i, role="user"),
                dataclasses.replace(answer, text=texts[2]),
            )
            add("text", Part(texts[0]), Part(texts[1]))
    return tuple(result)


def write_dataset(
    directory: pathlib.Path, written: Sequence[Record], shards: int = 1, name: str = "small"
) -> pathlib.Path:
    """Writes a dataset's "train" split; returns its folder."""
    directory.mkdir(parents=True, exist_ok=True)
    size = -(-len(written) // shards)
    options = [
        write_shard(
            directory / shard_name(name, "train", number, shards),
            written[number * size : (number + 1) * size],
        )
        for number in range(shards)
    ]
    write_metadata(directory, name, {"train": options})
    return directory


def write_tokenizer(path: pathlib.Path) -> pathlib.Path:
    """Trains a SentencePiece tokenizer on the texts; its special tokens have the ids of FORMAT."""
    texts = [*TEXTS["en"], *TEXTS["zh"], "be brief"]
    train_sentencepiece([text for text in texts for _ in range(5)], path, 400)
    return path


def arrays(batch) -> list[np.ndarray]:
    """All arrays of a batch, in order."""
    if isinstance(batch, np.ndarray):
        return [batch]
    return [array for part in batch if part is not None for array in arrays(part)]


def digest(batch) -> str:
    """A hash of types, shapes and values."""
    result = hashlib.sha256()
    for array in arrays(batch):
        result.update(f"{array.dtype}{array.shape}".encode())
        result.update(np.ascontiguousarray(array).tobytes())
    return result.hexdigest()


def join(batches: Sequence):
    """Batches put together along their rows."""
    first = batches[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(batches)
    parts = [None if part[0] is None else join(part) for part in zip(*batches, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def damage_shard(file: pathlib.Path) -> None:
    """Flips bits in the first third of a file: of a record or two, not of its table of contents."""
    content = bytearray(file.read_bytes())
    first = len(content) // 3
    for at in range(first, first + 200):
        content[at] ^= 0x55
    file.write_bytes(content)


def digest_in_a_new_process(opened, step: int) -> str:
    """The digest of a step's batch, opened and built by a Python with another hash seed.

    And with another number of BLAS threads, as on a machine with another number of cores. `opened`
    is `(class of batches, settings)`.
    """
    code = (
        "import pickle, sys\n"
        "from tests.unit.data import small_corpus\n"
        "kind, settings = pickle.load(sys.stdin.buffer)\n"
        f"batch = kind(settings, small_corpus.FORMAT).build({step})\n"
        "print(small_corpus.digest(batch))"
    )
    root = pathlib.Path(__file__).resolve().parents[3]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONHASHSEED": "12345"}
    environment["OPENBLAS_NUM_THREADS"] = "1"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, input=pickle.dumps(opened), env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()
