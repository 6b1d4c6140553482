"""Writes the audio tokenizer's codes into a dataset, so that training need not run it.

    python -m ba_jax.corpora.tokenize --config=configs/lm_stage2.py:nano --checkpoint=DIR \
        --dataset=embedded --out=DIR

Every recording goes through the frozen audio encoder and quantiser, in float32 and in chunks of at
most 30 s, on all local devices. The new dataset has the same records, in the same order and splits,
with the files beside them (text tokenizer, licences): it can be used wherever the old one can, and
with `data.audio = "codes"`. `--speed=1.1` plays the recordings faster, so that a small corpus gives
more codes. Shards are divided among processes (`--distributed`). Run again, it
goes on where it was. Exit codes: 0 a dataset is there, 1 the run failed, 2 a wrong command line,
config or checkpoint, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from ba_jax import distributed
from ba_jax.audio.lengths import SAMPLE_RATE
from ba_jax.checkpoints.arrays import load_variables
from ba_jax.checkpoints.layout import CheckpointError, weights_folder
from ba_jax.config import ConfigError, from_mapping
from ba_jax.corpora import runner
from ba_jax.corpora.report import REPORT_MD
from ba_jax.corpora.runner import Plan, PrepareError
from ba_jax.corpora.shards import Job, ShardError, is_done, make_shard
from ba_jax.corpora.sources.base import Rejection
from ba_jax.corpora.sources.listing import SourceError
from ba_jax.corpora.tokenized import Builder, Built, Coded, TokenizedConfig
from ba_jax.data import features
from ba_jax.data.features import ON_ERROR, Bucket
from ba_jax.data.record import dataset_directory
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig, variable_shapes
from ba_jax.sharding import MeshSettings, batch_sharding, make_mesh, replicated
from ba_jax.tree import flatten
from ba_jax.vocab import SPEECH_ENCODER

FAILED, USER_ERROR, INTERRUPTED = 1, 2, 128 + 2
ITEMS_PER_SHARD = 256
# What the quantiser has for the decoder, and for its own training.
_NOT_FOR_CODES = re.compile(
    r"params/vq_bridge/decoder_proj/.*|codebook/vq_bridge/(embed_avg|cluster_size)_\d+"
)
_IN_FLIGHT = 2  # batches that the device has been given and whose codes are not yet read


@dataclasses.dataclass(frozen=True)
class TokenizeSettings:
    """How a dataset is tokenized; nothing of this changes the codes.

    Attributes:
      bucket_seconds: lengths that chunks are padded to, each one compilation; the longest length
        of a chunk comes to them.
      batch_seconds: of audio in a device's batch, padding included. On two cores 8 to 32 are
        alike (a CPU-second encodes 240 s of audio with the nano model); GPUs want more.
      on_error: at a damaged record "fail", or "skip" it and list it in rejected.jsonl.
      workers: threads that decode audio ahead of the device.
    """

    bucket_seconds: tuple[float, ...] = (2.0, 3.0, 5.0, 10.0, 20.0)
    batch_seconds: float = 32.0
    on_error: str = "fail"
    workers: int = 2

    def __post_init__(self):
        if self.on_error not in ON_ERROR:
            raise ValueError(f"on_error = {self.on_error!r}, expected one of {ON_ERROR}")
        if self.batch_seconds <= 0 or self.workers < 1:
            raise ValueError(f"{self}: expected batch_seconds > 0 and workers >= 1")

    def buckets(self, longest: float, devices: int) -> tuple[Bucket, ...]:
        """Buckets up to a length, each of as many chunks for every device."""
        chosen = {seconds for seconds in self.bucket_seconds if seconds < longest} | {longest}
        return features.check_buckets(
            [Bucket(s, devices * max(1, round(self.batch_seconds / s))) for s in chosen]
        )


class Tokenizer:
    """The frozen encoder and quantiser on all local devices.

    Args:
      config: a model's; the two components of it are used.
      checkpoint: a folder of weights, or a training run's.

    Raises:
      ConfigError: a config without one of them.
      CheckpointError: no checkpoint there, or one of other sizes.
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
        """Whisper's mel to (codes_BNQ, lengths_B); rows must be a multiple of `devices`."""
        placed = jax.device_put((mel_BTM, lengths_B), self._rows)
        return self._encode(self._variables, *placed)


def fingerprint(config: BaichuanAudioConfig, variables: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of all that decides the codes; they are the same while it is frozen."""
    # Whatever else the configs hold shows in the arrays' shapes.
    head = f"heads {config.audio_encoder.heads} pooling {config.vq_bridge.pooling};"
    digest = hashlib.sha256(head.encode())
    for path, array in sorted(flatten(variables).items()):
        if _NOT_FOR_CODES.fullmatch(path):
            continue
        digest.update(f"{path} {array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array.addressable_data(0)).tobytes())
    return digest.hexdigest()[:16]


def tokenize(
    tokenizer: Tokenizer,
    dataset: str,
    out: str,
    settings: TokenizeSettings,
    *,
    splits: Sequence[str] = (),
    chunk_seconds: float = 30.0,
    drop_audio: bool = False,
    speed: float = 1.0,
    overwrite: bool = False,
    show_progress: bool = False,
    host: int = 0,
    hosts: int = 1,
    barrier: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Makes a dataset with codes, or goes on making it; returns its report.

    Args:
      tokenizer: makes the codes.
      dataset: a folder, or "embedded".
      out: folder of the new dataset.
      settings: see there.
      splits: of the dataset; () for all.
      chunk_seconds: recordings are cut into chunks of at most this length, as `features` mode cuts
        them into its longest bucket's: both give the same frames if it is the same.
      drop_audio: do not keep the audio beside its codes.
      speed: how many times as fast the recordings are played, see `Tokenized`.
      overwrite: discard what another run left in `out`.
      show_progress: a bar on the standard error.
      host, hosts, barrier: which process this is, of how many that share the work and the folder,
        and what makes them wait for each other at a named place.

    Raises:
      SourceError: no such dataset or split, or `out` is the dataset itself.
      PrepareError: `out` holds something else (codes of another tokenizer), or a record is damaged.
    """
    directory = Path(out)
    if directory.resolve() == dataset_directory(dataset).resolve():
        raise SourceError(f"{out}: is the dataset itself, expected another folder")
    config = TokenizedConfig(
        "tokenized",
        {
            "dataset": dataset,
            "weights": tokenizer.fingerprint,
            "splits": list(splits),
            "chunk_seconds": chunk_seconds,
            "drop_audio": drop_audio,
            "speed": speed,
        },
        ITEMS_PER_SHARD,
    )
    met = []

    def meet(place: str) -> None:
        if barrier is not None:
            barrier(place)
        met.append(place)

    def make(plan: Plan, missing: Sequence[Job], folder: Path) -> None:
        meet("begun")
        if plan.rejected and settings.on_error == "fail":
            raise PrepareError(_refusal(plan.rejected[0]))
        own = [job for job in plan.jobs[host::hosts] if job in missing]
        _make(tokenizer, plan, own, folder, settings, show_progress)
        meet("made")

    if host == 0:
        runner.prepare(config, directory, overwrite=overwrite, make_all=make)
        for place in ("begun", "made"):
            if place not in met:
                meet(place)
        meet("finished")
        return runner.read_report(directory)
    plan = runner.make_plan(config)
    barrier("begun")
    name = plan.source.name
    missing = [job for job in plan.jobs if not is_done(job, directory, name, plan.fingerprint)]
    own = [job for job in plan.jobs[host::hosts] if job in missing]
    # Nothing is missing of a dataset that was complete: it has no side files any more.
    if (directory / runner.WORK).is_dir():
        _make(tokenizer, plan, own, directory, settings, show_progress)
    barrier("made")
    barrier("finished")
    return runner.read_report(directory)


def _refusal(rejection: Rejection) -> str:
    detail = f"{rejection.where}: {rejection.reason}: {rejection.detail}"
    return f"{detail}; --on-error=skip leaves it out. Shards that were complete are kept"


def _make(
    tokenizer: Tokenizer,
    plan: Plan,
    jobs: Sequence[Job],
    directory: Path,
    settings: TokenizeSettings,
    show_progress: bool,
) -> None:
    """Makes shards, one after the other; what is decoded for the next ones runs ahead."""
    import tqdm

    source = plan.source
    buckets = settings.buckets(source.chunk_seconds, tokenizer.devices)
    build = Builder(source, buckets, tokenizer.config.audio_encoder.mel_bins, settings.workers)
    flight: list[tuple[Built, jax.Array, jax.Array]] = []
    codes: dict[tuple[int, int, int], np.ndarray] = {}  # item, part, chunk
    damaged: dict[int, str] = {}
    with (
        features.one_blas_thread(),
        tqdm.tqdm(
            total=sum(
                sum(source.chunks(seconds))
                for job in jobs
                for item in job.items
                for seconds in item.payload.seconds
            ),
            unit_scale=1 / SAMPLE_RATE,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s of audio "
            "[{elapsed}<{remaining}]",
            desc=source.name,
            disable=not show_progress,
            dynamic_ncols=True,
        ) as bar,
    ):

        def land() -> None:
            built, codes_BNQ, lengths_B = flight.pop(0)
            codes_BNQ, lengths_B = jax.device_get((codes_BNQ, lengths_B))
            for place, chunk in enumerate(built.batch.chunks):
                if chunk.item in built.damaged:
                    continue
                frames = features.code_frames(chunk.samples)
                if lengths_B[place] != frames:
                    item = built.job.items[chunk.item]
                    raise PrepareError(
                        f"{item.where}: part {chunk.part}: {lengths_B[place]} frames of codes, "
                        f"expected {frames} of {chunk.samples} samples"
                    )
                codes[chunk.item, chunk.part, chunk.number] = codes_BNQ[place, :frames]
                bar.update(chunk.samples)

        for job, built in build(jobs):
            if built is not None:
                damaged |= built.damaged
                for item, reason in built.damaged.items():
                    if settings.on_error == "fail":
                        where, id = job.items[item].where, job.items[item].id
                        raise PrepareError(
                            _refusal(Rejection(f"{where} ({id})", "unusable audio", reason))
                        )
                flight.append((built, *tokenizer(built.mel_BTM, built.lengths_B)))
                if len(flight) > _IN_FLIGHT:
                    land()
                continue
            while flight:
                land()
            coded = Coded(source, _joined(job, codes), _by_record(job, damaged))
            make_shard(job, coded, directory, plan.fingerprint)
            codes.clear()
            damaged.clear()


def _joined(job: Job, codes: Mapping[tuple[int, int, int], np.ndarray]):
    """(record number, part) -> codes of its chunks, one after the other."""
    chunks: dict[tuple[int, int], list[np.ndarray]] = {}
    for item, part, number in sorted(codes):
        record = job.items[item].payload.index
        chunks.setdefault((record, part), []).append(codes[item, part, number])
    return {place: np.concatenate(found) for place, found in chunks.items()}


def _by_record(job: Job, damaged: Mapping[int, str]) -> dict[int, str]:
    return {job.items[item].payload.index: reason for item, reason in damaged.items()}


# --- command line ---------------------------------------------------------------------------------


def define_flags() -> None:
    """The command line's."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", None, "A config with `model`.")
    flags.DEFINE_string("checkpoint", None, "Weights, or a training run's workdir.")
    flags.DEFINE_string("dataset", "embedded", "Folder of records, or 'embedded'.")
    flags.DEFINE_string("out", None, "Folder of the dataset to make.")
    flags.DEFINE_list("splits", [], "Of the dataset; default: all.")
    flags.DEFINE_float("chunk_seconds", 30.0, "Longest chunk that is encoded at once.")
    flags.DEFINE_bool("drop_audio", False, "Leave the audio out where there are codes.")
    flags.DEFINE_float("speed", 1.0, "Play recordings so many times as fast; drops their audio.")
    flags.DEFINE_bool("overwrite", False, "Discard what another run left in --out.")
    flags.DEFINE_enum("on_error", "fail", ON_ERROR, "What to do with a damaged record.")
    default = TokenizeSettings()
    flags.DEFINE_float("batch_seconds", default.batch_seconds, "Of audio in a device's batch.")
    flags.DEFINE_integer("workers", default.workers, "Threads that decode audio.", 1)
    distributed.define_flags()
    flags.DEFINE_bool("quiet", False, "No progress bar.")
    flags.mark_flags_as_required(["config", "checkpoint", "out"])


def _parse(argv: list[str]) -> list[str]:
    """Flags as absl has them, but with hyphens allowed in their names."""
    for number, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name.startswith("--") and not name.startswith("--config"):
            argv[number] = "--" + name[2:].replace("-", "_") + equals + value
    define_flags()
    return app.parse_flags_with_usage(argv)


def _sync(place: str) -> None:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(f"ba_jax.corpora.tokenize {place}")


def _failed(command: str, error: Exception, code: int) -> int:
    if flags.FLAGS.distributed:
        distributed.exit_with_error(command, error, code)  # the others are not waited for
    print(f"error: {error}", file=sys.stderr)
    return code


def main(argv: list[str]) -> int:
    """Makes the dataset."""
    args = flags.FLAGS
    logging.getLogger("absl").setLevel(logging.ERROR)
    if argv[1:]:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    command = distributed.command_line("ba_jax.corpora.tokenize")
    try:
        joined = distributed.initialize_from_flags(command)
        if joined:
            print(joined, flush=True)
        settings = TokenizeSettings(
            batch_seconds=args.batch_seconds, on_error=args.on_error, workers=args.workers
        )
        model = from_mapping(BaichuanAudioConfig, args.config.to_dict().get("model"))
        tokenizer = Tokenizer(model, args.checkpoint)
        report = tokenize(
            tokenizer,
            args.dataset,
            args.out,
            settings,
            splits=args.splits,
            chunk_seconds=args.chunk_seconds,
            drop_audio=args.drop_audio,
            speed=args.speed,
            overwrite=args.overwrite,
            show_progress=not args.quiet,
            host=jax.process_index(),
            hosts=jax.process_count(),
            barrier=_sync if jax.process_count() > 1 else None,
        )
    except (PrepareError, ShardError, OSError) as error:
        return _failed(command, error, FAILED)
    except RuntimeError as error:
        if not distributed.is_host_loss(error):
            raise
        distributed.exit_with_error(command, error)
    except (ConfigError, CheckpointError, SourceError, ValueError) as error:
        return _failed(command, error, USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted: run again to go on", file=sys.stderr)
        return INTERRUPTED
    print((Path(args.out) / REPORT_MD).read_text(encoding="utf-8"))
    print(f"{report['records']} records, {report['hours']:.2f} h with codes in {args.out}")
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
