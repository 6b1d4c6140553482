"""Runs a model on files, folders and lists: transcribes, speaks, translates, answers.

    python -m ba_jax.generate TASK --config=configs/generate.py:nano_whisper --input=PATH \
        --out=DIR --checkpoint=RUN1,RUN2,... [--stream] [--config.generate.a.b=c ...]

TASK        result
asr         transcripts of recordings
translate   translations of recordings, English to Mandarin and the other way round
tts         speech of texts
chat        answers, in speech and text, to questions in speech or text, turn by turn; earlier
            turns stay in the model's cache
reconstruct recordings through the audio tokenizer and back

`--input` is a file, a folder or a JSONL list (`ba_jax/generate/requests.py`). OUT gets
results.jsonl, a line per request with its result or error, and audio/ with waves at 24 kHz. Run the
same command again to resume; --retry repeats the requests that failed. --stream does one request
after the other, prints text and writes (or plays, `generate.stream.player`) speech as it comes, and
prints the times to the first text and the first audio and the real-time factor; its waves have the
rate of the synthesis, 16 kHz for the audio decoder's mel.

With `--distributed` (see `ba_jax.distributed`) several processes share one mesh of all their
devices, for a model larger than one host's memory: all processes do every request and the first one
writes. All need to see the checkpoints and the requests.

Exit codes: 0 all done, 1 the run failed, 2 a wrong command line, config or checkpoint, 3 some
requests failed, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import tqdm
from absl import flags

from ba_jax import cli, distributed, sharding
from ba_jax.checkpoints.components import find
from ba_jax.checkpoints.layout import stamp
from ba_jax.config import ConfigError, from_mapping
from ba_jax.data.text_tokenizer import TokenizerError
from ba_jax.generate import batched
from ba_jax.generate.requests import (
    TASKS,
    Request,
    RequestError,
    has_recordings,
    read_requests,
)
from ba_jax.generate.results import Results, ResultsError
from ba_jax.generate.settings import GenerateSettings
from ba_jax.generate.streamed import Streamer
from ba_jax.generate.turns import TaskModel
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.sampling.speech_model import load_speech_model

FAILED, SOME_FAILED = 1, 3
_BATCHES = 4
"""Batches of single-turn requests between two writes of results."""


def generate(
    config: Mapping[str, Any],
    task: str,
    checkpoints: Sequence[str],
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    stream: bool = False,
    overwrite: bool = False,
    retry: bool = False,
    write: Callable[[str], None] = lambda text: None,
    show_progress: bool = False,
) -> dict[str, int]:
    """Process all requests; return their number, and how many were done before and failed.

    Args:
      config: with `model`, `generate` and perhaps `mesh`, as `configs/generate.py` makes it.
      task: one of `requests.TASKS`.
      checkpoints: runs, checkpoints or converted folders; a component comes from the last that
        holds it.
      source: requests, see `ba_jax.generate.requests`.
      out: folder of results, see `ba_jax.generate.results`.
      stream: do requests one by one, with output as it comes.
      overwrite, retry: see `Results`.
      write: with `stream`, called with text as it comes.
      show_progress: show a bar on the standard error.

    Raises:
      RequestError, ResultsError, ConfigError, CheckpointError, ShardingError, TokenizerError,
      ValueError: for the user to correct.
      OSError: results that cannot be written (a full disk); the run can be resumed.
    """
    model_config = from_mapping(BaichuanAudioConfig, config["model"])
    settings = from_mapping(GenerateSettings, config["generate"], "generate")
    mesh = from_mapping(sharding.MeshSettings, config.get("mesh", {}), "mesh")
    several = jax.process_count() > 1
    if stream and (task == "reconstruct" or several):
        raise RequestError(
            "--stream: expected one process, and a task that generates"
            f" (task {task}, {jax.process_count()} processes)"
        )
    requests = read_requests(task, source, settings.language, settings.system)
    components = settings.components(task, has_recordings(task, requests))
    sources = find(checkpoints, model_config, components)
    # Process 0 alone reads and writes results; the others follow its list of pending requests.
    results = Results(
        out,
        _made_with(config, task, sources, stream),
        overwrite=overwrite,
        retry=retry,
        writes=jax.process_index() == 0,
    )
    lines = [results.lines.get(request.id) for request in requests]
    done = sharding.broadcast_from_first([line is not None for line in lines])
    failed = sum(
        sharding.broadcast_from_first([line is not None and "error" in line for line in lines])
    )
    pending = [request for request, is_done in zip(requests, done, strict=True) if not is_done]
    if pending:
        settings = settings.for_task(task, stream)
        model = load_speech_model(
            model_config,
            sources,
            settings,
            None if stream else mesh,
            "together" if several else "apart",
            alternation=settings.alternation_of(task),
        )
        with tqdm.tqdm(
            total=len(requests),
            initial=len(requests) - len(pending),
            desc=task,
            unit="request",
            disable=not show_progress,
            dynamic_ncols=True,
        ) as bar:
            task_model = TaskModel(task, model, settings)
            if stream:
                _run_stream(task_model, pending, results, bar, write)
            else:
                _run_batches(task_model, pending, results, bar)
    failed += sum("error" in results.lines[request.id] for request in pending)
    return {
        "requests": len(requests),
        "done_before": len(requests) - len(pending),
        "failed": failed,
    }


def _run_stream(
    task: TaskModel,
    requests: Sequence[Request],
    results: Results,
    bar: tqdm.tqdm,
    write: Callable[[str], None],
) -> None:
    """Process requests one by one."""
    streamer = Streamer(task, write)
    started = time.monotonic()
    streamer.warm_up(has_recordings(task.task, requests))
    write(f"[warmed up in {time.monotonic() - started:.1f} s]\n")
    for request in requests:
        results.add([streamer(request, results)])
        bar.update()


def _run_batches(
    task: TaskModel, requests: Sequence[Request], results: Results, bar: tqdm.tqdm
) -> None:
    """Process requests in batches; conversations share a cache, so a batch of them is one call."""
    size = task.settings.generation.rows * (1 if task.chats else _BATCHES)
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        results.add(batched.run(task, batch, results))
        bar.update(len(batch))


def _made_with(
    config: Mapping[str, Any], task: str, sources: Mapping[str, str], stream: bool
) -> dict[str, Any]:
    """Settings and weights that results depend on, to recognise results that can be resumed."""
    settings = dict(config["generate"])
    settings["stream"] = {k: v for k, v in settings.get("stream", {}).items() if k != "player"}
    # Results do not depend on batch sizes.
    generation = settings.get("generation", {})
    settings["generation"] = {k: v for k, v in generation.items() if k != "rows"}
    settings.pop("encode_rows", None)
    return {
        "task": task,
        "stream": stream,
        "checkpoint": {name: [folder, stamp(folder)] for name, folder in sorted(sources.items())},
        "config.model": config["model"],
        "config.generate": settings,
    }


def define_flags() -> None:
    """Define the command line."""
    cli.define_config("A config with `model` and `generate`.")
    cli.define_paths("checkpoint", None, "WORKDIRs or checkpoints; the last that has a component.")
    cli.define_path("input", None, "File, folder or JSONL list of requests.")
    cli.define_path("out", None, "Folder of results.")
    flags.DEFINE_bool("stream", False, "One request at a time, with output as it comes.")
    flags.DEFINE_bool("overwrite", False, "Discard results of other settings in --out.")
    flags.DEFINE_bool("retry", False, "Repeat requests that failed.")
    flags.DEFINE_bool("quiet", False, "No progress bar, no text.")
    distributed.define_flags()
    flags.mark_flags_as_required(["checkpoint", "input", "out"])


def main(argv: list[str]) -> int:
    """Process the requests and print a summary."""
    values = flags.FLAGS
    if len(argv) != 2:
        raise ConfigError(f"no task, expected one of {TASKS}")
    logging.getLogger("absl").setLevel(logging.ERROR)
    config = values.config.to_dict()
    command = distributed.command_line("ba_jax.generate")
    try:
        distributed.use_compilation_cache(config.get("compilation_cache", ""))
        distributed.initialize_from_flags(command)
        counts = generate(
            config,
            argv[1],
            values.checkpoint,
            values.input,
            values.out,
            stream=values.stream,
            overwrite=values.overwrite,
            retry=values.retry,
            write=(lambda text: None) if values.quiet else _print,
            show_progress=not values.quiet and not values.stream,
        )
    except (ConfigError, RequestError, ResultsError, TokenizerError, ValueError) as error:
        distributed.exit_with_error(command, error, cli.USAGE)
    except (RuntimeError, OSError) as error:
        distributed.exit_with_error(command, error, FAILED)
    except KeyboardInterrupt:
        return cli.interrupted("ba_jax.generate")
    before, failed = counts["done_before"], counts["failed"]
    more = f", {before} of them before" if before else ""
    if jax.process_index() == 0:
        summary = f"{counts['requests']} requests{more}, {failed} failed"
        _print(f"{summary}: {values.out}/results.jsonl\n")
    return SOME_FAILED if failed else 0


def _print(text: str) -> None:
    """Print text at once, with "?" for what the terminal's encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)


if __name__ == "__main__":
    cli.run("ba_jax.generate", define_flags, main, words=1)
