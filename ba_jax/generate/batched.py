"""Requests in batches, from turn to turn; one line of results each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ba_jax.generate.requests import Request
from ba_jax.generate.results import Results
from ba_jax.sampling.prompt import Prompt
from ba_jax.sampling.session import Generated
from ba_jax.sampling.speech_model import Engine, segments_of
from ba_jax.types import Failure

Line = dict[str, Any]


def run(engine: Engine, requests: Sequence[Request], results: Results) -> list[Line]:
    """Does requests; a line each, in order."""
    if engine.task == "reconstruct":
        return _reconstruct(engine, requests, results)
    if engine.task == "chat":
        return _chat(engine, requests, results)
    return _one_turn(engine, requests, results)


def begin(engine: Engine, request: Request) -> Line:
    """What every line has."""
    line: Line = {"id": request.id, "task": engine.task, "language": request.language}
    if request.meta is not None:
        line["meta"] = request.meta
    return line


def fail(line: Line, reason: str) -> None:
    """Marks a request as not done."""
    line |= {"error": reason, "complete": False}


def said(engine: Engine, generated: Generated) -> str:
    """The text of a turn."""
    return engine.tokenizer.decode(generated.ids).strip()


def _refused(engine: Engine, requests: Sequence[Request]) -> list[Line]:
    lines = [begin(engine, request) for request in requests]
    for line, request in zip(lines, requests, strict=True):
        if request.turns and engine.task != "chat":
            turn = request.turns[0]
            line["input"] = turn.audio or turn.text
        if request.refusal:
            fail(line, f"{request.where}: {request.refusal}")
    return lines


def _open(lines: Sequence[Line]) -> list[int]:
    return [number for number, line in enumerate(lines) if "error" not in line]


def _reconstruct(engine: Engine, requests: Sequence[Request], results: Results) -> list[Line]:
    lines = _refused(engine, requests)
    some = _open(lines)
    codes = engine.hear([requests[i].turns[0] for i in some])
    for i, own in zip(some, codes, strict=True):
        if isinstance(own, Failure):
            fail(lines[i], own.reason)
    heard = {i: own for i, own in zip(some, codes, strict=True) if not isinstance(own, Failure)}
    seeds = [engine.seed(requests[i]) for i in heard]
    waves = engine.speak([engine.cut(own) for own in heard.values()], seeds, [0] * len(heard))
    for (i, own), wave in zip(heard.items(), waves, strict=True):
        lines[i] |= {"frames": len(own), "complete": True}
        _save(lines[i], results, requests[i], wave)
    return lines


def _one_turn(engine: Engine, requests: Sequence[Request], results: Results) -> list[Line]:
    """Transcripts, translations, and speech of texts."""
    lines = _refused(engine, requests)
    some = _open(lines)
    prompts: dict[int, Prompt | list[Prompt]] = {}
    heard = engine.hear([requests[i].turns[0] for i in some]) if engine.task != "tts" else None
    for place, i in enumerate(some):
        own = None if heard is None else heard[place]
        if engine.in_turns:
            made = engine.pieces(requests[i])
        else:
            made = own if isinstance(own, Failure) else engine.prompt(requests[i], 0, own)
        if isinstance(made, Failure):
            fail(lines[i], made.reason)
        else:
            prompts[i] = made
    seeds = [engine.seed(requests[i]) for i in prompts]
    generate = engine.generator.in_turns if engine.in_turns else engine.generator
    made = generate(list(prompts.values()), seeds=seeds, frame_limit=engine.frame_limit)
    if engine.task != "tts":
        for i, generated in zip(prompts, made, strict=True):
            lines[i] |= {"text": said(engine, generated), "complete": generated.complete}
        return lines
    segments = [[generated.codes_NQ] for generated in made]
    waves = engine.speak(segments, seeds, [0] * len(segments))
    for i, generated, wave in zip(prompts, made, waves, strict=True):
        lines[i]["complete"] = generated.complete
        if wave is None:
            fail(lines[i], "the model spoke no frame")
        else:
            _save(lines[i], results, requests[i], wave)
    return lines


def _save(line: Line, results: Results, request: Request, wave) -> None:
    line["audio"] = results.save(results.wave_path(request.id), wave.wave_S, wave.rate)
    line["seconds"] = round(len(wave.wave_S) / wave.rate, 3)


def _chat(engine: Engine, requests: Sequence[Request], results: Results) -> list[Line]:
    """Conversations side by side, their audio kept in the cache."""
    lines = _refused(engine, requests)
    for line in lines:
        line["turns"] = []
    some = _open(lines)
    if not some:
        return lines
    turns = [turn for i in some for turn in requests[i].turns]
    flat = iter(engine.hear(turns) if any(turn.audio for turn in turns) else [None] * len(turns))
    codes = {i: [next(flat) for _ in requests[i].turns] for i in some}
    seeds = [engine.seed(requests[i]) for i in some]
    session = engine.generator.session(seeds)
    spoken = {i: 0 for i in some}  # segments so far
    for number in range(max(len(requests[i].turns) for i in some)):
        prompts: list[Prompt | None] = []
        for row, i in enumerate(some):
            prompts.append(None)
            if "error" in lines[i] or number >= len(requests[i].turns):
                continue
            own = codes[i][number]
            made = own if isinstance(own, Failure) else engine.prompt(requests[i], number, own)
            if not isinstance(made, Failure) and (short := lacking(session, row, len(made))):
                made = Failure(short)
            if isinstance(made, Failure):
                fail(lines[i], f"turn {number + 1}: {made.reason}")
            else:
                prompts[row] = made
        if all(prompt is None for prompt in prompts):
            break
        session.read(prompts)
        made = session.generate(frame_limit=engine.frame_limit)
        segments = [[] if one is None else segments_of(one) for one in made]
        waves = engine.speak(segments, seeds, [spoken[i] for i in some])
        for row, i in enumerate(some):
            if prompts[row] is None:
                continue
            spoken[i] += len(segments[row])
            turn = turn_line(engine, requests[i], number, made[row])
            if waves[row] is not None:
                path = results.wave_path(requests[i].id, number)
                turn["audio"] = results.save(path, *waves[row])
                turn["seconds"] = round(len(waves[row].wave_S) / waves[row].rate, 3)
            lines[i]["turns"].append(turn)
    for i in some:
        if "error" not in lines[i]:
            lines[i]["complete"] = all(turn["complete"] for turn in lines[i]["turns"])
    return lines


def lacking(session, row: int, positions: int) -> str:
    """Why a conversation cannot go on with a prompt; "" if it can."""
    # What ends a turn that was cut is read first.
    room = session.capacity - session.used[row] - 2
    if positions < room:
        return ""
    return (
        f"{positions} positions, and {max(room, 0)} are left of the {session.capacity} that "
        "`capacity` gives to a conversation"
    )


def turn_line(engine: Engine, request: Request, number: int, generated: Generated) -> Line:
    """What a turn of a chat was and gave."""
    turn = request.turns[number]
    line: Line = {"user": turn.audio or turn.text, "text": said(engine, generated)}
    if engine.settings.answers == "spoken":
        line["frames"] = int(np.sum([len(one) for one in segments_of(generated)], dtype=int))
    return line | {"complete": generated.complete}
