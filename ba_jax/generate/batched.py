"""Requests in batches, turn by turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ba_jax.generate.requests import Request
from ba_jax.generate.results import Results
from ba_jax.generate.turns import Line, TaskModel, segments_of
from ba_jax.sampling.prompt import Prompt
from ba_jax.sampling.synthesize import Wave
from ba_jax.types import Failure


def run(task: TaskModel, requests: Sequence[Request], results: Results) -> list[Line]:
    """Does requests; returns their lines in order, and saves their waves."""
    lines = [task.begin_line(request) for request in requests]
    accepted = [i for i, line in enumerate(lines) if "error" not in line]
    if task.task == "reconstruct":
        _reconstruct(task, requests, lines, accepted, results)
    elif task.chats and accepted:
        _chat(task, requests, lines, accepted, results)
    elif accepted:
        _single_turn(task, requests, lines, accepted, results)
    for line in lines:
        task.finish_line(line)
    return lines


def _reconstruct(
    task: TaskModel,
    requests: Sequence[Request],
    lines: list[Line],
    accepted: Sequence[int],
    results: Results,
) -> None:
    """Recordings to codes and back to waves."""
    codes = task.encode([requests[i].turns[0] for i in accepted])
    encoded: dict[int, np.ndarray] = {}
    for i, codes_NQ in zip(accepted, codes, strict=True):
        if isinstance(codes_NQ, Failure):
            task.fail_turn(lines[i], 0, codes_NQ)
        else:
            encoded[i] = codes_NQ
    longest = task.settings.synthesis.frames[-1]
    segments = [
        [codes_NQ[start : start + longest] for start in range(0, len(codes_NQ), longest)]
        for codes_NQ in encoded.values()
    ]
    seeds = [task.seed(requests[i]) for i in encoded]
    waves = task.model.speak(segments, seeds, [0] * len(encoded))
    for (i, codes_NQ), wave in zip(encoded.items(), waves, strict=True):
        lines[i] |= {"frames": len(codes_NQ), "complete": True}
        _save(lines[i], results, requests[i], None, wave)


def _single_turn(
    task: TaskModel,
    requests: Sequence[Request],
    lines: list[Line],
    accepted: Sequence[int],
    results: Results,
) -> None:
    """Transcripts, translations, and speech of texts."""
    codes = task.encode([requests[i].turns[0] for i in accepted])
    prompts: dict[int, Prompt | list[Prompt]] = {}
    for i, codes_NQ in zip(accepted, codes, strict=True):
        prompt = task.prompt(requests[i], 0, codes_NQ)
        if isinstance(prompt, Failure):
            task.fail_turn(lines[i], 0, prompt)
        else:
            prompts[i] = prompt
    seeds = [task.seed(requests[i]) for i in prompts]
    outputs = task.model.generate(list(prompts.values()), seeds=seeds, frame_limit=task.frame_limit)
    waves: Sequence[Wave | None] = [None] * len(outputs)
    if task.speaks:
        segments = [[generated.codes_NQ] for generated in outputs]
        waves = task.model.speak(segments, seeds, [0] * len(segments))
    for i, generated, wave in zip(prompts, outputs, waves, strict=True):
        task.add_turn(lines[i], requests[i], 0, generated)
        _save(lines[i], results, requests[i], None, wave)


def _chat(
    task: TaskModel,
    requests: Sequence[Request],
    lines: list[Line],
    accepted: Sequence[int],
    results: Results,
) -> None:
    """Conversations side by side over one cache."""
    codes = iter(task.encode([turn for i in accepted for turn in requests[i].turns]))
    codes_of = {i: [next(codes) for _ in requests[i].turns] for i in accepted}
    seeds = [task.seed(requests[i]) for i in accepted]
    session = task.model.generator.session(seeds)
    segments_before = [0] * len(accepted)
    for number in range(max(len(requests[i].turns) for i in accepted)):
        prompts: list[Prompt | None] = [None] * len(accepted)
        for row, i in enumerate(accepted):
            if "error" in lines[i] or number >= len(requests[i].turns):
                continue
            prompt = task.prompt(requests[i], number, codes_of[i][number])
            prompt = task.check_room(session, row, prompt)
            if isinstance(prompt, Failure):
                task.fail_turn(lines[i], number, prompt)
            else:
                prompts[row] = prompt
        if all(prompt is None for prompt in prompts):
            return
        session.read(prompts)
        outputs = session.generate(frame_limit=task.frame_limit)
        segments = [[] if output is None else segments_of(output) for output in outputs]
        waves = task.model.speak(segments, seeds, segments_before)
        for row, i in enumerate(accepted):
            if prompts[row] is not None:
                segments_before[row] += len(segments[row])
                turn = task.add_turn(lines[i], requests[i], number, outputs[row])
                _save(turn, results, requests[i], number, waves[row])


def _save(
    line: Line, results: Results, request: Request, turn: int | None, wave: Wave | None
) -> None:
    """Saves a wave, if there is one, and adds it to a line."""
    if wave is not None:
        path = results.wave_path(request.id, turn)
        line["audio"] = results.save(path, wave.wave_S, wave.rate)
        line["seconds"] = round(len(wave.wave_S) / wave.rate, 3)
