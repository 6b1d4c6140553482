"""A model at work on files, folders and lists: hears, speaks, translates, answers.

    python -m ba_jax.generate TASK --config=configs/generate.py:nano_whisper --input=PATH \
        --out=DIR --checkpoint=RUN1,RUN2,... [--stream] [--config.generate.a.b=c ...]

TASK        gives
asr         transcripts of recordings
translate   of recordings in English in Mandarin, and the other way round
tts         speech of texts
chat        answers, in speech and text, to questions in speech or text, turn by turn; what was
            heard and said stays in the model's cache
reconstruct recordings through the audio tokenizer and back

`--input` is a file, a folder or a JSONL list (`ba_jax/generate/requests.py`). OUT gets
results.jsonl, a line for each request with what came or why it failed, and audio/ with waves at
24 kHz. The same command goes on where one stopped; --retry does those again that failed. --stream
does one request after the other, tells text and writes (or plays, `generate.stream.player`) speech
as it comes, and prints the time to the first of both and the real-time factor; its waves have the
synthesis' own rate, 16 kHz where the audio decoder's mel is what is heard.

With `--distributed` (see `ba_jax.distributed`) several processes share one mesh of all their
devices, for a model larger than one host's memory: all of them do every request and the first one
writes. All need to see the checkpoints and the requests.

Exit codes: 0 all done, 1 the run failed, 2 a wrong command line, config or checkpoint, 3 some
requests failed, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags

FAILED, USER_ERROR, SOME_FAILED, INTERRUPTED = 1, 2, 3, 128 + 2
_BATCHES = 4
"""Batches of requests that need no cache of their own between two lines of results."""


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
    tell: Callable[[str], None] = lambda text: None,
    show_progress: bool = False,
) -> dict[str, int]:
    """Does all requests; returns how many there are, were done before and failed.

    Args:
      config: with `model`, `generate` and perhaps `mesh`, as `configs/generate.py` makes it.
      task: one of `requests.TASKS`.
      checkpoints: runs, checkpoints or converted folders; a component comes from the last that
        holds it.
      source: requests, see `ba_jax.generate.requests`.
      out: folder of results, see `ba_jax.generate.results`.
      stream: one by one, as they come.
      overwrite, retry: see `Results`.
      tell: is given text while it comes, with `stream`.
      show_progress: a bar on the standard error.

    Raises:
      RequestError, ResultsError, ConfigError, CheckpointError, ShardingError, TokenizerError,
      PlayerError, ValueError: see there.
    """
    import jax
    import tqdm

    from ba_jax import sharding
    from ba_jax.checkpoints.components import find, load_to_generate
    from ba_jax.config import from_mapping
    from ba_jax.generate import batched, requests, results, streamed
    from ba_jax.generate.settings import GenerateSettings
    from ba_jax.models.baichuan_audio import BaichuanAudioConfig
    from ba_jax.sampling import speech_model

    first, several = jax.process_index() == 0, jax.process_count() > 1
    model = from_mapping(BaichuanAudioConfig, config["model"])
    settings = from_mapping(GenerateSettings, config["generate"], "generate")
    mesh_settings = from_mapping(sharding.MeshSettings, config.get("mesh", {}), "mesh")
    if stream and task == "reconstruct":
        raise requests.RequestError("reconstruct with --stream: expected a task that generates")
    if stream and several:
        raise requests.RequestError("--stream with --distributed: expected one process")
    asked = requests.read_requests(task, source, settings.language, settings.system)
    needed = speech_model.components(task, settings, speech_model.hears(task, asked))
    sources = find(checkpoints, model, needed)
    # The first alone reads and writes results; the others do what it finds to be done.
    found = results.Results(
        out,
        _made_with(config, task, sources, stream),
        overwrite=overwrite,
        retry=retry,
        writes=first,
    )
    before = [found.lines.get(request.id) for request in asked]
    done = sharding.broadcast_from_first([line is not None for line in before])
    failed = sum(
        sharding.broadcast_from_first([line is not None and "error" in line for line in before])
    )
    todo = [request for request, is_done in zip(asked, done, strict=True) if not is_done]
    counts = {"requests": len(asked), "done_before": len(asked) - len(todo)}
    if todo:
        rows = {"rows": settings.rows, "encode_rows": settings.encode_rows}
        rows["synthesis.rows"] = settings.synthesis.rows
        if stream:
            mesh, place = None, lambda arrays: arrays
        else:
            mesh, place = sharding.inference_mesh(
                mesh_settings, rows, "together" if several else "apart"
            )
        worker = speech_model.Engine(
            task,
            model,
            load_to_generate(model, sources, mesh),
            settings,
            place=place,
            rows=1 if stream else None,
        )
        with tqdm.tqdm(
            total=len(asked),
            initial=counts["done_before"],
            desc=task,
            unit="request",
            disable=not show_progress,
            dynamic_ncols=True,
        ) as bar:
            if stream:
                streamer = streamed.Streamer(worker, tell)
                began = time.monotonic()
                streamer.warm_up(speech_model.hears(task, todo))
                tell(f"[warmed up in {time.monotonic() - began:.1f} s]\n")
                for request in todo:
                    found.add([streamer(request, found)])
                    bar.update()
            else:
                size = settings.rows * (1 if task == "chat" else _BATCHES)
                for start in range(0, len(todo), size):
                    some = todo[start : start + size]
                    found.add(batched.run(worker, some, found))
                    bar.update(len(some))
    failed += sum("error" in found.lines[request.id] for request in todo)
    return counts | {"failed": failed}


def _made_with(
    config: Mapping[str, Any], task: str, sources: Mapping[str, str], stream: bool
) -> dict[str, Any]:
    """What results are known again by."""
    from ba_jax.checkpoints.layout import stamp

    settings = dict(config["generate"])
    settings["stream"] = {k: v for k, v in settings["stream"].items() if k != "player"}
    for name in ("rows", "encode_rows"):  # results do not depend on them
        settings.pop(name, None)
    stamps = {name: [folder, stamp(folder)] for name, folder in sorted(sources.items())}
    return {
        "task": task,
        "stream": stream,
        "checkpoint": stamps,
        "config.model": config["model"],
        "config.generate": settings,
    }


def define_flags() -> None:
    """The command line's."""
    from ml_collections import config_flags

    from ba_jax import distributed

    config_flags.DEFINE_config_file("config", None, "A config with `model` and `generate`.")
    flags.DEFINE_list("checkpoint", None, "WORKDIRs or checkpoints; the last that holds a part.")
    flags.DEFINE_string("input", None, "File, folder or JSONL list of requests.")
    flags.DEFINE_string("out", None, "Folder of results.")
    flags.DEFINE_bool("stream", False, "One by one, told and heard while it comes.")
    flags.DEFINE_bool("overwrite", False, "Discard results of other settings in --out.")
    flags.DEFINE_bool("retry", False, "Do requests that failed again.")
    flags.DEFINE_bool("quiet", False, "No progress bar, no text.")
    distributed.define_flags()
    flags.mark_flags_as_required(["config", "checkpoint", "input", "out"])


def main(argv: list[str]) -> int:
    """Does the requests and prints how it went."""
    import jax

    from ba_jax import distributed
    from ba_jax.config import ConfigError
    from ba_jax.data.text_tokenizer import TokenizerError
    from ba_jax.distributed import use_compilation_cache
    from ba_jax.generate.requests import TASKS, RequestError
    from ba_jax.generate.results import ResultsError

    values = flags.FLAGS
    if len(argv) != 2:
        raise app.UsageError(f"arguments {argv[1:]}: expected one task of {', '.join(TASKS)}")
    logging.getLogger("absl").setLevel(logging.ERROR)
    config = values.config.to_dict()
    use_compilation_cache(config.get("compilation_cache", ""))
    command = distributed.command_line("ba_jax.generate")
    try:
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
            tell=(lambda text: None) if values.quiet else _tell,
            show_progress=not values.quiet and not values.stream,
        )
    except (ConfigError, RequestError, ResultsError, TokenizerError, ValueError) as error:
        distributed.exit_with_error(command, error, USER_ERROR)
    except (RuntimeError, OSError) as error:
        distributed.exit_with_error(command, error, FAILED)
    except KeyboardInterrupt:
        print("interrupted: run again to go on", file=sys.stderr)
        return INTERRUPTED
    before, failed = counts["done_before"], counts["failed"]
    more = f", {before} of them before" if before else ""
    if jax.process_index() == 0:
        print(f"{counts['requests']} requests{more}, {failed} failed: {values.out}/results.jsonl")
    return SOME_FAILED if failed else 0


def _tell(text: str) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        print(text, end="", flush=True)


if __name__ == "__main__":
    define_flags()
    app.run(main)
