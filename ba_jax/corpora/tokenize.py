"""Write the audio tokenizer's codes into a dataset, so that training need not run it.

    python -m ba_jax.corpora.tokenize --config=configs/lm_stage2.py:nano --checkpoint=DIR \
        --dataset=embedded --out=DIR

Every recording goes through the frozen audio encoder and quantiser, in float32 and in chunks of at
most 30 s, on all local devices. The new dataset has the same records, in the same order and splits,
with the files beside them (text tokenizer, licences): it replaces the old one anywhere, also with
`data.audio = "codes"`. `--speed=1.1` plays the recordings faster, so that a small corpus gives
more codes. Processes share the shards (`--distributed`). The same command resumes an interrupted
run. Exit codes: 0 the dataset is complete, 1 the run failed, 2 a wrong command line, config or
checkpoint, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags
from jax.experimental import multihost_utils

from ba_jax import cli, distributed
from ba_jax.audio.lengths import SAMPLE_RATE, code_length
from ba_jax.checkpoints.arrays import load_variables
from ba_jax.checkpoints.layout import CheckpointError, weights_folder
from ba_jax.config import ConfigError, check_at_least, check_choices, from_mapping
from ba_jax.corpora import runner
from ba_jax.corpora.chunks import EncoderInput, EncoderInputs
from ba_jax.corpora.runner import PrepareConfig, PrepareError, ShardPlan
from ba_jax.corpora.shards import WORK, Job, make_shard
from ba_jax.corpora.sources.base import Rejection, SourceError
from ba_jax.corpora.sources.tokenized import CodedRecords, TokenizedSource
from ba_jax.data import features
from ba_jax.data.features import ON_ERROR, Bucket
from ba_jax.data.record import dataset_directory
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig, variable_shapes
from ba_jax.sharding import MeshSettings, batch_sharding, make_mesh, replicated
from ba_jax.tree import flatten
from ba_jax.vocab import SPEECH_ENCODER

ITEMS_PER_SHARD = 256
# Variables of the quantiser that serve the decoder, or the quantiser's own training.
_NOT_FOR_CODES = re.compile(
    r"params/vq_bridge/decoder_proj/.*|codebook/vq_bridge/(embed_avg|cluster_size)_\d+"
)
_IN_FLIGHT = 2  # batches queued on the device before their codes are read


@dataclasses.dataclass(frozen=True)
class TokenizeSettings:
    """Settings of a run. Those after `speed` change no bytes of the dataset.

    Attributes:
      dataset: a folder, or "embedded".
      out: folder of the new dataset.
      splits, chunk_seconds, drop_audio, speed: see `TokenizedSource`. `features` mode gives the
        same frames if the longest of its buckets has `chunk_seconds`.
      bucket_seconds: lengths that chunks are padded to, a compilation each; the longest chunk
        length is added.
      batch_seconds: seconds of audio in a device's batch, padding included. On two cores 8 to 32
        are alike (a CPU-second encodes 240 s of audio with the nano model); GPUs want more.
      on_error: at a damaged record "fail", or "skip" it and list it in rejected.jsonl.
      workers: threads that decode audio ahead of the device.
      overwrite: discard the output of another run in `out`.
      show_progress: a bar on the standard error.
    """

    dataset: str
    out: str
    splits: tuple[str, ...] = ()
    chunk_seconds: float = 30.0
    drop_audio: bool = False
    speed: float = 1.0
    bucket_seconds: tuple[float, ...] = (2.0, 3.0, 5.0, 10.0, 20.0)
    batch_seconds: float = 32.0
    on_error: str = "fail"
    workers: int = 2
    overwrite: bool = False
    show_progress: bool = False

    def __post_init__(self):
        check_choices(self, on_error=ON_ERROR)
        check_at_least(self, workers=1)
        if self.batch_seconds <= 0:
            raise ValueError(f"batch_seconds = {self.batch_seconds}, expected more than 0")

    def buckets(self, devices: int) -> tuple[Bucket, ...]:
        """Buckets up to the longest chunk, each a multiple of `devices` rows."""
        longest = self.chunk_seconds
        chosen = {seconds for seconds in self.bucket_seconds if seconds < longest} | {longest}
        return features.check_buckets(
            [Bucket(s, devices * max(1, round(self.batch_seconds / s))) for s in chosen]
        )


@dataclasses.dataclass(frozen=True)
class TokenizedConfig(PrepareConfig):
    """A `PrepareConfig` whose source is `TokenizedSource`."""

    def make_source(self) -> TokenizedSource:
        """The source."""
        return from_mapping(TokenizedSource, self.source, "config.source")


class AudioTokenizer:
    """The frozen encoder and quantiser of a model on all local devices.

    The checkpoint is a folder of weights, or a training run's.
    """

    def __init__(self, config: BaichuanAudioConfig, checkpoint: str):
        lacking = [name for name in SPEECH_ENCODER if getattr(config, name) is None]
        if lacking:
            raise ConfigError(f"model: no {lacking}, expected an audio tokenizer")
        self.config = config.only(*SPEECH_ENCODER)
        mesh = make_mesh(MeshSettings(), jax.local_devices())
        self.devices = mesh.size
        self._rows = batch_sharding(mesh)
        variables = load_variables(
            weights_folder(checkpoint),
            variable_shapes(self.config),
            replicated(mesh),
            jnp.float32,
            SPEECH_ENCODER,
        )
        self.fingerprint = fingerprint(self.config, variables)
        model = BaichuanAudio(self.config)

        def encode(variables, mel_BTM, lengths_B):
            return model.apply(variables, mel_BTM, lengths_B, method="encode")

        self._variables, self._encode = variables, jax.jit(encode)

    def __call__(self, mel_BTM: np.ndarray, lengths_B: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Encode Whisper's mel to (codes_BNQ, lengths_B); rows must be a multiple of `devices`."""
        placed = jax.device_put((mel_BTM, lengths_B), self._rows)
        return self._encode(self._variables, *placed)


def fingerprint(config: BaichuanAudioConfig, variables: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of everything that decides the codes; unchanged while it is frozen."""
    # All other settings of the configs show in the arrays' shapes.
    head = f"heads {config.audio_encoder.heads} pooling {config.vq_bridge.pooling};"
    digest = hashlib.sha256(head.encode())
    for path, array in sorted(flatten(variables).items()):
        if _NOT_FOR_CODES.fullmatch(path):
            continue
        digest.update(f"{path} {array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array.addressable_data(0)).tobytes())
    return digest.hexdigest()[:16]


def tokenize(
    tokenizer: AudioTokenizer,
    settings: TokenizeSettings,
    *,
    host: int = 0,
    hosts: int = 1,
    barrier: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Make a dataset with codes, or resume making it; returns its report.

    Args:
      host, hosts: number of this process, and of all processes that share the work and the folder.
      barrier: makes all processes wait for each other at a named place.
    """
    directory = Path(settings.out)
    if directory.resolve() == dataset_directory(settings.dataset).resolve():
        raise SourceError(f"{settings.out}: is the dataset itself, expected another folder")
    source = {
        "dataset": settings.dataset,
        "weights": tokenizer.fingerprint,
        "splits": list(settings.splits),
        "chunk_seconds": settings.chunk_seconds,
        "drop_audio": settings.drop_audio,
        "speed": settings.speed,
    }
    config = TokenizedConfig("tokenized", source, ITEMS_PER_SHARD)
    passed: list[str] = []

    def meet(place: str) -> None:
        if place not in passed:
            barrier(place)
            passed.append(place)

    def make_shards(plan: ShardPlan, missing: Sequence[Job], folder: Path) -> None:
        meet("begun")
        if plan.rejected and settings.on_error == "fail":
            raise PrepareError(_damage_message(plan.rejected[0]))
        jobs = [job for job in plan.jobs[host::hosts] if job in missing]
        _make_shards(tokenizer, plan, jobs, folder, settings)
        meet("made")

    if host == 0:
        runner.prepare(config, directory, overwrite=settings.overwrite, run_jobs=make_shards)
    else:
        plan = runner.make_plan(config)
        meet("begun")
        # The folder of side files is missing if the dataset is complete already.
        if (directory / WORK).is_dir():
            make_shards(plan, plan.missing_jobs(directory), directory)
    for place in ("begun", "made", "finished"):
        meet(place)
    return runner.read_report(directory)


def _damage_message(rejection: Rejection) -> str:
    detail = f"{rejection.where}: {rejection.reason}: {rejection.detail}"
    return f"{detail}; --on-error=skip leaves it out. Complete shards are kept"


def _make_shards(
    tokenizer: AudioTokenizer,
    plan: ShardPlan,
    jobs: Sequence[Job],
    directory: Path,
    settings: TokenizeSettings,
) -> None:
    """Make shards one after the other; decoding runs ahead, across shards."""
    source: TokenizedSource = plan.source
    read_batches = EncoderInputs(
        source,
        settings.buckets(tokenizer.devices),
        tokenizer.config.audio_encoder.mel_bins,
        settings.workers,
    )
    in_flight: list[tuple[EncoderInput, jax.Array, jax.Array]] = []
    codes: dict[tuple[int, int, int], np.ndarray] = {}  # item, part, chunk
    damaged: dict[int, str] = {}  # item
    seconds = [s for job in jobs for item in job.items for s in item.payload.seconds]

    def collect() -> None:
        """Wait for the oldest batch on the device, and keep its codes."""
        inputs, codes_BNQ, lengths_B = in_flight.pop(0)
        codes_BNQ, lengths_B = jax.device_get((codes_BNQ, lengths_B))
        for row, chunk in enumerate(inputs.batch.chunks):
            if chunk.item in inputs.damaged:
                continue
            frames = code_length(chunk.samples)
            if lengths_B[row] != frames:
                raise PrepareError(
                    f"{inputs.job.items[chunk.item].where}: part {chunk.part}: {lengths_B[row]} "
                    f"frames of codes, expected {frames} of {chunk.samples} samples"
                )
            codes[chunk.item, chunk.part, chunk.number] = codes_BNQ[row, :frames]
            progress.update(chunk.samples)

    with (
        features.one_blas_thread(),
        tqdm.tqdm(
            total=sum(sum(source.chunks(s)) for s in seconds),
            unit_scale=1 / SAMPLE_RATE,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s of audio "
            "[{elapsed}<{remaining}]",
            desc=source.name,
            disable=not settings.show_progress,
            dynamic_ncols=True,
        ) as progress,
    ):
        for job, inputs in read_batches(jobs):
            if inputs is not None:
                damaged |= inputs.damaged
                for number, problem in inputs.damaged.items():
                    if settings.on_error == "fail":
                        where = f"{job.items[number].where} ({job.items[number].id})"
                        raise PrepareError(
                            _damage_message(Rejection(where, "unusable audio", problem))
                        )
                in_flight.append((inputs, *tokenizer(inputs.mel_BTM, inputs.lengths_B)))
                if len(in_flight) > _IN_FLIGHT:
                    collect()
                continue
            while in_flight:
                collect()
            by_record = {job.items[i].payload.index: problem for i, problem in damaged.items()}
            records = CodedRecords(source, _join_chunks(job, codes), by_record)
            make_shard(job, records, directory, plan.fingerprint)
            codes.clear()
            damaged.clear()


def _join_chunks(
    job: Job, codes: Mapping[tuple[int, int, int], np.ndarray]
) -> dict[tuple[int, int], np.ndarray]:
    """(record number, part) -> codes of its chunks, concatenated."""
    chunks: dict[tuple[int, int], list[np.ndarray]] = {}
    for item, part, number in sorted(codes):
        record = job.items[item].payload.index
        chunks.setdefault((record, part), []).append(codes[item, part, number])
    return {place: np.concatenate(pieces) for place, pieces in chunks.items()}


# --- command line ---------------------------------------------------------------------------------


def define_flags() -> None:
    """Define the command line's flags."""
    default = {field.name: field.default for field in dataclasses.fields(TokenizeSettings)}
    cli.define_config("A config with `model`.")
    cli.define_path("checkpoint", None, "Weights, or a training run's workdir.")
    cli.define_path("dataset", "embedded", "Folder of records, or 'embedded'.")
    cli.define_path("out", None, "Folder of the new dataset.")
    flags.DEFINE_list("splits", [], "Splits to encode; default: all.")
    flags.DEFINE_float("chunk_seconds", default["chunk_seconds"], "Longest chunk.")
    flags.DEFINE_bool("drop_audio", False, "Drop the audio of parts with codes.")
    flags.DEFINE_float("speed", 1.0, "Play recordings this many times as fast; drops their audio.")
    flags.DEFINE_bool("overwrite", False, "Discard the output of another run in --out.")
    flags.DEFINE_enum("on_error", "fail", ON_ERROR, "Fail at a damaged record, or skip it.")
    flags.DEFINE_float("batch_seconds", default["batch_seconds"], "Of audio in a device's batch.")
    flags.DEFINE_integer("workers", default["workers"], "Threads that decode audio.", 1)
    distributed.define_flags()
    flags.DEFINE_bool("quiet", False, "Show no progress bar.")
    flags.mark_flags_as_required(["checkpoint", "out"])


def _settings_from_flags(args) -> TokenizeSettings:
    names = {field.name for field in dataclasses.fields(TokenizeSettings)}
    values = {name: getattr(args, name) for name in names & set(args)}
    return TokenizeSettings(
        **values | {"splits": tuple(args.splits), "show_progress": not args.quiet}
    )


def main(argv: list[str]) -> int:
    """Make the dataset."""
    args = flags.FLAGS
    logging.getLogger("absl").setLevel(logging.ERROR)
    command = distributed.command_line("ba_jax.corpora.tokenize")
    try:
        joined = distributed.initialize_from_flags(command)
        if joined:
            print(joined, flush=True)
        settings = _settings_from_flags(args)
        model = from_mapping(BaichuanAudioConfig, args.config.to_dict().get("model"))
        tokenizer = AudioTokenizer(model, args.checkpoint)
        report = tokenize(
            tokenizer,
            settings,
            host=jax.process_index(),
            hosts=jax.process_count(),
            barrier=multihost_utils.sync_global_devices,  # returns at once in a single process
        )
    except (PrepareError, OSError) as error:
        distributed.exit_with_error(command, error, runner.FAILED)
    except RuntimeError as error:
        if not distributed.is_host_loss(error):
            raise
        distributed.exit_with_error(command, error)
    except (ConfigError, CheckpointError, SourceError, ValueError) as error:
        distributed.exit_with_error(command, error, cli.USAGE)
    except KeyboardInterrupt:
        return cli.interrupted("ba_jax.corpora.tokenize")
    runner.print_report(report, args.out, " with codes")
    return 0


if __name__ == "__main__":
    cli.run("ba_jax.corpora.tokenize", define_flags, main)
