"""The data pipeline against loading the same files as torchaudio and HF datasets do, as ratios.

    python -m benchmarks.data                       # about 2 minutes
    python -m benchmarks.data --dataset DIR --recordings 500 --seconds 60 --json out.json

One core, no workers on either side, one run. Both sides start from the same encoded files and end
with what a training step takes: log-mels of 128 bins and token ids.

  ours       records from ArrayRecord shards, decoded, resampled, log-mels in buckets, tokens
             packed in rows (`PackedBatches.build`)
  torchaudio a file each: soundfile, resampling as torchaudio does by default (windowed sinc, width
             6), transformers' WhisperFeatureExtractor (which pads to 30 s), `tokenizers`, padding
  HF         the same with librosa's resampling (soxr), as the Audio feature of HF datasets did it
  codes      records with codes against a .npy file each, padded; no audio is decoded
"""

from __future__ import annotations

import abc
import io
import itertools
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

import librosa
import numpy as np
import soundfile
import torch
import transformers

from ba_jax import cli
from ba_jax.audio import lengths
from ba_jax.data.examples import ExampleMaker
from ba_jax.data.features import Bucket, ModelFormat
from ba_jax.data.mixture import Selection
from ba_jax.data.packed import PackedBatches, PackedSettings
from ba_jax.data.record import (
    EMBEDDED,
    Part,
    Record,
    RecordSource,
    dataset_directory,
    shard_name,
    write_metadata,
    write_shard,
)
from ba_jax.data.tasks import prompt
from ba_jax.data.text_tokenizer import load_text_tokenizer
from benchmarks import timing
from benchmarks.torch_counterparts import sinc_resample
from configs import models

ROW_LENGTH = 4096
AIMS = "\naims: ratio >= 2 with audio, codes >= 10,000 audio-s/CPU-s"
COLUMNS = {
    "files": "{files}",
    "ours, audio-s/CPU-s": "{ours_audio_seconds_per_second:,.0f}",
    "tokens/CPU-s": "{ours_tokens_per_second:,.0f}",
    "against": "{against}",
    "audio-s/CPU-s": "{theirs_audio_seconds_per_second:,.0f}",
    **timing.COLUMNS,
}


def first_recordings(dataset: str, split: str, count: int) -> list[Record]:
    """Read the first spoken records with text."""
    spoken = (
        record
        for record in RecordSource(dataset, split)
        if record.kind == "speech" and record.parts[0].audio and record.parts[0].text
    )
    return list(itertools.islice(spoken, count))


def write_dataset(folder: pathlib.Path, records: list[Record]) -> str:
    """Write records as a dataset of one shard; return its folder."""
    folder.mkdir()
    shard = write_shard(folder / shard_name("benchmark", "train", 0, 1), records)
    write_metadata(folder, "benchmark", {"train": [shard]})
    return str(folder)


class Ours:
    """Build an epoch of our batches in each call."""

    def __init__(self, dataset: str, tokenizer: str, audio: str):
        settings = PackedSettings(
            mixture=(Selection(dataset, ExampleMaker("asr")),),
            tokenizer=tokenizer,
            row_length=ROW_LENGTH,
            rows=1,
            audio=audio,
            buckets=(Bucket(3, 64), Bucket(10, 32), Bucket(30, 11)) if audio != "codes" else (),
        )
        self.batches = PackedBatches(settings, ModelFormat.of(models.get_config("nano")))
        self.rows = self.batches.members[0].rows
        self.tokens = self.batches.members[0].tokens

    def __call__(self) -> None:
        for step in range(self.rows):
            self.batches.build(step)


class Files(abc.ABC):
    """The same recordings, a file each, in padded batches of 16."""

    suffix = ".audio"

    def __init__(self, folder: pathlib.Path, records: list[Record], tokenizer: str):
        folder.mkdir(exist_ok=True)
        self.tokenizer = load_text_tokenizer(tokenizer)
        self.items = []
        for number, record in enumerate(records):
            path = folder / f"{number}{self.suffix}"
            self.write(path, record.parts[0])
            self.items.append((path, prompt("asr", record.language) + record.parts[0].text))

    @abc.abstractmethod
    def write(self, path: pathlib.Path, part: Part) -> None:
        """Write a recording."""

    @abc.abstractmethod
    def load(self, paths: Sequence[pathlib.Path]) -> list[int]:
        """Load a batch of recordings; return their frames of codes."""

    def __call__(self) -> None:
        for start in range(0, len(self.items), 16):
            paths, texts = zip(*self.items[start : start + 16], strict=True)
            counts = self.load(paths)
            ids = [
                self.tokenizer.encode(text) + [self.tokenizer.eos_id] * count
                for text, count in zip(texts, counts, strict=True)
            ]
            longest = max(map(len, ids))
            np.asarray([row + [0] * (longest - len(row)) for row in ids], np.int32)


class AudioFiles(Files):
    """Encoded audio, resampled, and its log-mels as Whisper's feature extractor pads them."""

    def __init__(self, *arguments, resample: Callable[[np.ndarray, int], np.ndarray]):
        super().__init__(*arguments)
        self.resample = resample
        self.extractor = transformers.WhisperFeatureExtractor(feature_size=128)

    def write(self, path: pathlib.Path, part: Part) -> None:
        path.write_bytes(part.audio)

    def load(self, paths: Sequence[pathlib.Path]) -> list[int]:
        waves = [self.resample(*soundfile.read(path, dtype="float32")) for path in paths]
        self.extractor(waves, sampling_rate=lengths.SAMPLE_RATE, return_tensors="np")
        return [lengths.code_length(len(wave_S)) for wave_S in waves]


class CodeFiles(Files):
    """Codes, padded."""

    suffix = ".npy"

    def write(self, path: pathlib.Path, part: Part) -> None:
        np.save(path, part.codes_NQ.astype(np.uint16))

    def load(self, paths: Sequence[pathlib.Path]) -> list[int]:
        codes = [np.load(path) for path in paths]
        longest = max(map(len, codes))
        np.stack([np.pad(c, ((0, longest - len(c)), (0, 0))) for c in codes])
        return list(map(len, codes))


def torchaudio_resample(wave_S: np.ndarray, rate: int) -> np.ndarray:
    """Resample as torchaudio.functional.resample does by default."""
    return sinc_resample(torch.from_numpy(wave_S), rate, lengths.SAMPLE_RATE, width=6).numpy()


def librosa_resample(wave_S: np.ndarray, rate: int) -> np.ndarray:
    """Resample as librosa does by default."""
    return librosa.resample(wave_S, orig_sr=rate, target_sr=lengths.SAMPLE_RATE)


def with_codes(records: list[Record], count: int) -> list[Record]:
    """Replace audio by random codes; records are repeated up to `count`."""
    rng = np.random.default_rng(0)
    sizes = tuple(models.get_config("nano").vq_bridge.codebook_sizes)
    result = []
    for number, record in zip(range(count), itertools.cycle(records), strict=False):
        (part,) = record.parts
        shape = (max(1, int(part.seconds * 12.5)), len(sizes))
        part = Part(text=part.text, codes_NQ=rng.integers(0, sizes, shape), seconds=part.seconds)
        result.append(Record(f"codes-{number}", "speech", record.language, (part,), "benchmark"))
    return result


def as_flac(records: list[Record]) -> list[Record]:
    """Encode the recordings anew, without loss."""
    result = []
    for record in records:
        (part,) = record.parts
        wave_S, rate = soundfile.read(io.BytesIO(part.audio), dtype="float32")
        stream = io.BytesIO()
        soundfile.write(stream, wave_S, rate, format="FLAC")
        new = Part(text=part.text, audio=stream.getvalue(), seconds=len(wave_S) / rate)
        result.append(Record(record.id, record.kind, record.language, (new,), record.source))
    return result


def compare(
    label: str, ours: Ours, others: dict[str, Files], audio_seconds: float, budget: float
) -> Iterator[dict]:
    """Yield rows of the table: ours against each of the others."""
    samples = timing.interleave({"ours": ours, **others}, budget)
    # Rates per CPU-second: independent of other work on the machine.
    cost = {name: statistics.median(spent) for name, spent in samples.cpu_seconds.items()}
    for name in others:
        yield {
            "files": label,
            "against": name,
            "ours_audio_seconds_per_second": audio_seconds / cost["ours"],
            "theirs_audio_seconds_per_second": audio_seconds / cost[name],
            "ours_tokens_per_second": ours.tokens / cost["ours"],
            **samples.compare(name, "ours"),
        }


def measure(records: list[Record], tokenizer: str, count: int, budget: float) -> Iterator[dict]:
    """Yield all rows; `count` records have codes."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for label, stored in (("as stored", records), ("FLAC", as_flac(records))):
            ours = Ours(write_dataset(folder / f"records {label}", stored), tokenizer, "features")
            arguments = (folder / f"files {label}", stored, tokenizer)
            others = {
                "torchaudio": AudioFiles(*arguments, resample=torchaudio_resample),
                "HF datasets": AudioFiles(*arguments, resample=librosa_resample),
            }
            yield from compare(label, ours, others, sum(r.seconds for r in records), budget)
        coded = with_codes(records, count)
        ours = Ours(write_dataset(folder / "records codes", coded), tokenizer, "codes")
        others = {"npy files": CodeFiles(folder / "files codes", coded, tokenizer)}
        yield from compare("codes", ours, others, sum(r.seconds for r in coded), budget)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = cli.Parser("benchmarks.data", __doc__)
    parser.add_argument(
        "--dataset", type=cli.path, default=EMBEDDED, help="folder of records, or 'embedded'"
    )
    parser.add_argument("--split", default="train")
    parser.add_argument(
        "--tokenizer", type=cli.path, default=EMBEDDED, help="file, folder, or 'embedded'"
    )
    parser.add_argument(
        "--recordings", type=cli.at_least(1), default=96, help="spoken recordings with text"
    )
    parser.add_argument("--codes", type=cli.at_least(1), default=2000, help="records with codes")
    parser.add_argument(
        "--seconds", type=cli.at_least(0.0), default=30.0, help="timing budget of a case"
    )
    parser.add_argument("--json", type=cli.path, help="file for the numbers")
    options = parser.parse_args(argv)
    facts = timing.prepare(1)
    records = first_recordings(options.dataset, options.split, options.recordings)
    if len(records) < 16:
        sys.exit(f"{options.dataset}: {len(records)} spoken records with text, expected 16 or more")
    seconds = sum(record.seconds for record in records)
    facts |= {"recordings": len(records), "mean seconds": round(seconds / len(records), 1)}
    tokenizer = str(dataset_directory(options.tokenizer))
    rows = measure(records, tokenizer, options.codes, options.seconds)
    timing.report(facts, COLUMNS, rows, AIMS, options.json)


if __name__ == "__main__":
    main()
