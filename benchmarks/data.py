"""The data pipeline against loading the same files as torchaudio and HF datasets do, as ratios.

    python -m benchmarks.data                       # some 2 minutes
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

import argparse
import io
import json
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence

import librosa
import numpy as np
import soundfile
import torch
import transformers

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
from benchmarks.timing import environment, table_line
from benchmarks.torch_counterparts import sinc_resample
from configs import models

ROW_LENGTH = 4096
AIM_RATIO = 2.0
AIM_CODES = 10_000.0


def first_recordings(dataset: str, split: str, count: int) -> list[Record]:
    """Return the first spoken records with text."""
    result = []
    for record in RecordSource(dataset, split):
        if record.kind == "speech" and record.parts[0].audio and record.parts[0].text:
            result.append(record)
            if len(result) == count:
                break
    return result


def write_dataset(folder: pathlib.Path, records: list[Record]) -> str:
    """Write one shard of records."""
    folder.mkdir()
    shard = write_shard(folder / shard_name("benchmark", "train", 0, 1), records)
    write_metadata(folder, "benchmark", {"train": [shard]})
    return str(folder)


class Ours:
    """Builds an epoch of our batches in each call."""

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


class Files:
    """The same recordings, a file each, in padded batches of `size`."""

    def __init__(
        self,
        folder: pathlib.Path,
        records: list[Record],
        tokenizer: str,
        resample: Callable[[np.ndarray, int], np.ndarray],
        size: int = 16,
    ):
        folder.mkdir(exist_ok=True)
        self.items, self.resample, self.size = [], resample, size
        for number, record in enumerate(records):
            path = folder / f"{number}.audio"
            path.write_bytes(record.parts[0].audio)
            text = prompt("asr", record.language) + record.parts[0].text
            self.items.append((path, text))
        self.extractor = transformers.WhisperFeatureExtractor(feature_size=128)
        self.tokenizer = load_text_tokenizer(tokenizer)

    def __call__(self) -> None:
        for start in range(0, len(self.items), self.size):
            waves, ids = [], []
            for path, text in self.items[start : start + self.size]:
                wave_S, rate = soundfile.read(path, dtype="float32")
                waves.append(self.resample(wave_S, rate))
                frames = lengths.code_length(len(waves[-1]))
                ids.append(self.tokenizer.encode(text) + [self.tokenizer.eos_id] * frames)
            self.extractor(waves, sampling_rate=lengths.SAMPLE_RATE, return_tensors="np")
            pad(ids)


class CodeFiles:
    """Codes in a .npy file each, padded."""

    def __init__(self, folder: pathlib.Path, records: list[Record], tokenizer: str, size: int = 16):
        folder.mkdir()
        self.items, self.size = [], size
        for number, record in enumerate(records):
            path = folder / f"{number}.npy"
            np.save(path, record.parts[0].codes_NQ.astype(np.uint16))
            self.items.append((path, prompt("asr", record.language) + record.parts[0].text))
        self.tokenizer = load_text_tokenizer(tokenizer)

    def __call__(self) -> None:
        for start in range(0, len(self.items), self.size):
            codes, ids = [], []
            for path, text in self.items[start : start + self.size]:
                codes.append(np.load(path))
                ids.append(self.tokenizer.encode(text) + [self.tokenizer.eos_id] * len(codes[-1]))
            pad(ids)
            longest = max(map(len, codes))
            np.stack([np.pad(c, ((0, longest - len(c)), (0, 0))) for c in codes])


def pad(ids: list[list[int]]) -> np.ndarray:
    """Pad rows of token ids to one array."""
    longest = max(map(len, ids))
    return np.asarray([row + [0] * (longest - len(row)) for row in ids], np.int32)


def torchaudio_resample(wave_S: np.ndarray, rate: int) -> np.ndarray:
    """torchaudio.functional.resample with its defaults."""
    return sinc_resample(torch.from_numpy(wave_S), rate, lengths.SAMPLE_RATE, width=6).numpy()


def librosa_resample(wave_S: np.ndarray, rate: int) -> np.ndarray:
    """librosa.resample with its defaults."""
    return librosa.resample(wave_S, orig_sr=rate, target_sr=lengths.SAMPLE_RATE)


def with_codes(records: list[Record], count: int) -> list[Record]:
    """Records with random codes in place of audio, repeated up to `count`."""
    rng = np.random.default_rng(0)
    sizes = tuple(models.get_config("nano").vq_bridge.codebook_sizes)
    result = []
    for number in range(count):
        record = records[number % len(records)]
        part = record.parts[0]
        frames = max(1, int(part.seconds * 12.5))
        part = Part(
            text=part.text,
            codes_NQ=rng.integers(0, sizes, (frames, len(sizes))),
            seconds=part.seconds,
        )
        result.append(Record(f"codes-{number}", "speech", record.language, (part,), "benchmark"))
    return result


def as_flac(records: list[Record]) -> list[Record]:
    """The same recordings, stored without loss."""
    result = []
    for record in records:
        (part,) = record.parts
        wave_S, rate = soundfile.read(io.BytesIO(part.audio), dtype="float32")
        stream = io.BytesIO()
        soundfile.write(stream, wave_S, rate, format="FLAC")
        new = Part(text=part.text, audio=stream.getvalue(), seconds=len(wave_S) / rate)
        result.append(Record(record.id, record.kind, record.language, (new,), record.source))
    return result


def compare(label: str, ours: Ours, others: dict, seconds: float, budget: float) -> list[dict]:
    """Return the rows of the table: ours against each other candidate."""
    samples = timing.interleave({"ours": ours, **others}, budget)
    # Rates a CPU-second: what a core does, whoever else uses the machine.
    cost = {name: statistics.median(spent) for name, spent in samples.cpu_seconds.items()}
    rows = []
    for name in others:
        low, ratio, high = samples.ratio(name, "ours")
        rows.append(
            {
                "files": label,
                "against": name,
                "ours_audio_seconds_per_second": seconds / cost["ours"],
                "theirs_audio_seconds_per_second": seconds / cost[name],
                "ours_tokens_per_second": ours.tokens / cost["ours"],
                "ratio": ratio,
                "ratio_quartiles": [low, high],
                "rounds": len(samples.seconds["ours"]),
                "others": samples.others,
            }
        )
    return rows


def table_row(row: dict) -> str:
    """Format a row of the Markdown table."""
    low, high = row["ratio_quartiles"]
    return table_line(
        (
            row["files"],
            f"{row['ours_audio_seconds_per_second']:,.0f}",
            f"{row['ours_tokens_per_second']:,.0f}",
            row["against"],
            f"{row['theirs_audio_seconds_per_second']:,.0f}",
            f"**{row['ratio']:.2f}** ({low:.2f}-{high:.2f}, {row['rounds']} rounds)",
            f"{row['others']:.0%}",
        )
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("--dataset", default=EMBEDDED, help="folder of records, or 'embedded'")
    parser.add_argument("--split", default="train")
    parser.add_argument("--tokenizer", default=EMBEDDED, help="file, folder, or 'embedded'")
    parser.add_argument("--recordings", type=int, default=96, help="how many, spoken with text")
    parser.add_argument("--codes", type=int, default=2000, help="records with codes")
    parser.add_argument("--seconds", type=float, default=30.0, help="timing budget a row")
    parser.add_argument("--json", type=pathlib.Path, help="also write the numbers there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    options = parse(argv)
    timing.pin_threads(1)
    torch.set_num_threads(1)
    records = first_recordings(options.dataset, options.split, options.recordings)
    if len(records) < 16:
        sys.exit(f"{options.dataset}: {len(records)} spoken records with text, expected 16 or more")
    seconds = sum(record.seconds for record in records)
    tokenizer = str(dataset_directory(options.tokenizer))
    facts = environment(1, "nano")
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"{len(records)} recordings, {seconds:.0f} s, mean {seconds / len(records):.1f} s\n")
    columns = (
        "files",
        "ours, audio-s/CPU-s",
        "tokens/CPU-s",
        "against",
        "audio-s/CPU-s",
        "ratio",
        "others",
    )
    print(table_line(columns))
    print(table_line(["---"] * len(columns)), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for label, stored in (("as stored", records), ("FLAC", as_flac(records))):
            ours = Ours(write_dataset(folder / f"records {label}", stored), tokenizer, "features")
            files = folder / f"files {label}"
            others = {
                "torchaudio": Files(files, stored, tokenizer, torchaudio_resample),
                "HF datasets": Files(files, stored, tokenizer, librosa_resample),
            }
            rows += compare(label, ours, others, seconds, options.seconds)
            for row in rows[-2:]:
                print(table_row(row), flush=True)
        coded = with_codes(records, options.codes)
        ours = Ours(write_dataset(folder / "records codes", coded), tokenizer, "codes")
        others = {"npy files": CodeFiles(folder / "files codes", coded, tokenizer)}
        coded_seconds = sum(record.seconds for record in coded)
        rows += compare("codes", ours, others, coded_seconds, options.seconds)
        print(table_row(rows[-1]))
    print(f"\naims: ratio >= {AIM_RATIO:g} with audio, codes >= {AIM_CODES:,.0f} audio-s/CPU-s")
    if options.json:
        options.json.write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
