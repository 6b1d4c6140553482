"""Requests in batches, turn by turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ba_jax.audio import AudioError
from ba_jax.generate.requests import Request
from ba_jax.generate.results import Results
from ba_jax.generate.turns import Line, TaskModel, segments_of
from ba_jax.sampling.prompt import Prompt
from ba_jax.sampling.synthesize import Wave
from ba_jax.types import Failure

_Accepted = Sequence[tuple[Request, Line]]
"""Requests that were not refused, with their lines."""


def run(task: TaskModel, requests: Sequence[Request], results: Results) -> list[Line]:
    """Process requests; return their lines in order, and save their waves."""
    lines = [task.begin_line(request) for request in requests]
    accepted = [
        (request, line)
        for request, line in zip(requests, lines, strict=True)
        if "error" not in line
    ]
    if task.task == "reconstruct":
        _reconstruct(task, accepted, results)
    elif task.chats:
        _chat(task, accepted, results)
    else:
        _single_turn(task, accepted, results)
    for line in lines:
        task.finish_line(line)
    return lines


def _reconstruct(task: TaskModel, accepted: _Accepted, results: Results) -> None:
    """Recordings to codes and back to waves."""
    codes = task.encode([request.turns[0] for request, _ in accepted])
    encoded: list[tuple[Request, Line, np.ndarray]] = []
    for (request, line), codes_NQ in zip(accepted, codes, strict=True):
        if isinstance(codes_NQ, Failure):
            task.fail_turn(line, 0, codes_NQ)
        else:
            encoded.append((request, line, codes_NQ))
    longest = task.settings.synthesis.frames[-1]
    segments = [
        [codes_NQ[start : start + longest] for start in range(0, len(codes_NQ), longest)]
        for *_, codes_NQ in encoded
    ]
    seeds = [task.seed(request) for request, *_ in encoded]
    waves = task.model.speak(segments, seeds, [0] * len(encoded))
    for (request, line, codes_NQ), wave in zip(encoded, waves, strict=True):
        line |= {"frames": len(codes_NQ), "complete": True}
        _save(task, results, request, line, line, 0, wave)


def _single_turn(task: TaskModel, accepted: _Accepted, results: Results) -> None:
    """Transcripts, translations, and speech of texts."""
    codes = task.encode([request.turns[0] for request, _ in accepted])
    prompted: list[tuple[Request, Line, Prompt | list[Prompt]]] = []
    for (request, line), codes_NQ in zip(accepted, codes, strict=True):
        prompt = task.prompt(request, 0, codes_NQ)
        if isinstance(prompt, Failure):
            task.fail_turn(line, 0, prompt)
        else:
            prompted.append((request, line, prompt))
    seeds = [task.seed(request) for request, *_ in prompted]
    prompts = [prompt for *_, prompt in prompted]
    outputs = task.model.generate(prompts, seeds=seeds, frame_limit=task.frame_limit)
    waves: Sequence[Wave | None] = [None] * len(outputs)
    if task.speaks:
        segments = [[output.codes_NQ] for output in outputs]
        waves = task.model.speak(segments, seeds, [0] * len(segments))
    for (request, line, _), output, wave in zip(prompted, outputs, waves, strict=True):
        values = task.add_turn(line, request, 0, output)
        _save(task, results, request, line, values, 0, wave)


def _chat(task: TaskModel, accepted: _Accepted, results: Results) -> None:
    """Conversations side by side over one cache."""
    if not accepted:
        return
    codes = iter(task.encode([turn for request, _ in accepted for turn in request.turns]))
    codes_of = [[next(codes) for _ in request.turns] for request, _ in accepted]
    seeds = [task.seed(request) for request, _ in accepted]
    session = task.model.generator.session(seeds)
    segments_before = [0] * len(accepted)
    for number in range(max(len(request.turns) for request, _ in accepted)):
        prompts: list[Prompt | None] = [None] * len(accepted)
        for row, (request, line) in enumerate(accepted):
            if "error" in line or number >= len(request.turns):
                continue
            prompt = task.prompt(request, number, codes_of[row][number])
            prompt = task.check_room(session, row, prompt)
            if isinstance(prompt, Failure):
                task.fail_turn(line, number, prompt)
            else:
                prompts[row] = prompt
        if all(prompt is None for prompt in prompts):
            return
        session.read(prompts)
        outputs = session.generate(frame_limit=task.frame_limit)
        segments = [[] if output is None else segments_of(output) for output in outputs]
        waves = task.model.speak(segments, seeds, segments_before)
        for row, (request, line) in enumerate(accepted):
            if prompts[row] is not None:
                segments_before[row] += len(segments[row])
                values = task.add_turn(line, request, number, outputs[row])
                _save(task, results, request, line, values, number, waves[row])


def _save(
    task: TaskModel,
    results: Results,
    request: Request,
    line: Line,
    values: Line,
    number: int,
    wave: Wave | None,
) -> None:
    """Save a turn's wave, if there is one, and add it to the turn's values."""
    if wave is None:
        return
    path = results.wave_path(request.id, number if task.chats else None)
    try:
        values["audio"] = results.save(path, wave.wave_S, wave.rate)
        values["seconds"] = round(len(wave.wave_S) / wave.rate, 3)
    except AudioError as error:  # NaN, for example
        task.fail_turn(line, number, Failure(str(error)))
