"""A batch of conversations over one cache: read, generate or stream, read on.

What was read and produced stays in the cache, audio included, so a turn costs its own length. A
turn ends with the end of text, as in training (`ba_jax.data.sequence`): where the model did not
come to it (a limit, or a listener who broke in), it is read before the next prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ba_jax.sampling.alternate import DONE, SPEAKING, WRITING, Limits, Turn
from ba_jax.sampling.prompt import Prompt, PromptError
from ba_jax.sampling.step import State, Stepper
from ba_jax.sharding import to_host
from ba_jax.vocab import check_codes, check_token_ids

TEXT, SEGMENT, FRAME, SEGMENT_END, END = "text", "segment", "frame", "segment_end", "end"
EVERYTHING = np.iinfo(np.int32).max


class Event(NamedTuple):
    """Something that a row did.

    Attributes:
      row: which.
      kind: TEXT (an id), SEGMENT (speech begins), FRAME, SEGMENT_END, END (of the turn).
      token_id: of a TEXT.
      codes_Q: of a FRAME, int32.
      complete: of a SEGMENT_END or END: it ended by itself, not at a limit.
    """

    row: int
    kind: str
    token_id: int = -1
    codes_Q: np.ndarray | None = None
    complete: bool = True


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of text or a segment of speech.

    Attributes:
      ids: of text; None for speech.
      codes_NQ: of speech, int32, without the end class; None for text.
      complete: it ended by itself, not at a limit.
    """

    ids: list[int] | None = None
    codes_NQ: np.ndarray | None = None
    complete: bool = True

    @property
    def is_audio(self) -> bool:
        return self.codes_NQ is not None


@dataclasses.dataclass(frozen=True)
class Generated:
    """What a prompt gave.

    Attributes:
      ids: all text, without the token that ended it.
      codes_NQ: all frames of audio, int32, without the end class; (0, Q) if it did not speak.
      complete: it ended by itself, not at a limit.
      pieces: the text and the segments of speech in order.
    """

    ids: list[int]
    codes_NQ: np.ndarray
    complete: bool
    pieces: tuple[Piece, ...] = ()


def collect(events: Iterable[Event], codebooks: int) -> dict[int, Generated]:
    """Row -> what its events amount to; of a row without END what there is, not complete."""
    pieces: dict[int, list[Piece]] = {}
    complete: dict[int, bool] = {}
    open_frames: dict[int, list[np.ndarray]] = {}

    def close(row: int, whole: bool) -> None:
        frames = open_frames.pop(row)
        codes_NQ = np.reshape(np.asarray(frames, np.int32), (-1, codebooks))
        pieces[row].append(Piece(codes_NQ=codes_NQ, complete=whole))

    for event in events:
        own = pieces.setdefault(event.row, [])
        if event.kind == TEXT:
            if not own or own[-1].is_audio:
                own.append(Piece(ids=[]))
            own[-1].ids.append(event.token_id)
        elif event.kind == SEGMENT:
            open_frames[event.row] = []
        elif event.kind == FRAME:
            open_frames[event.row].append(event.codes_Q)
        elif event.kind == SEGMENT_END:
            close(event.row, event.complete)
        else:
            complete[event.row] = event.complete
    for row in list(open_frames):
        close(row, False)
    return {
        row: Generated(
            [token_id for piece in own if not piece.is_audio for token_id in piece.ids],
            np.concatenate(
                [
                    np.zeros((0, codebooks), np.int32),
                    *(piece.codes_NQ for piece in own if piece.is_audio),
                ]
            ),
            complete.get(row, False),
            tuple(own),
        )
        for row, own in pieces.items()
    }


@dataclasses.dataclass
class _Told:
    """How much of a row's turn was told: ids, frames, segments begun, whether one is open."""

    text: int = 0
    frames: int = 0
    segments: int = 0
    inside: bool = False
    ended: bool = False


class _Snapshot(NamedTuple):
    """A state's small arrays, on the host."""

    turn: Turn
    begins_BG2: np.ndarray
    cuts_BG: np.ndarray


class Session:
    """Conversations of the rows of a batch.

    Args:
      stepper: model and compiled functions.
      lengths: what prompts are padded to; a longer one is read in parts.
      seeds: one a conversation, at most the stepper's rows. A seed and what was read decide what
        comes, whatever the other rows do.

    Raises:
      ValueError: no seed, or more than there are rows.
    """

    def __init__(self, stepper: Stepper, lengths: Sequence[int], seeds: Sequence[int]):
        if not 1 <= len(seeds) <= stepper.rows:
            raise ValueError(f"{len(seeds)} seeds, expected 1 to {stepper.rows}: one a row")
        self._stepper, self._lengths = stepper, tuple(sorted(lengths))
        self._count = len(seeds)
        self._seeds_B = np.zeros(stepper.rows, np.uint32)
        self._seeds_B[: len(seeds)] = seeds
        self._state: State | None = None
        self._wants_B = np.zeros(stepper.rows, bool)
        self._generated = [False] * len(seeds)
        self._told = [_Told(ended=True) for _ in range(stepper.rows)]

    @property
    def capacity(self) -> int:
        """Slots of the cache, a conversation."""
        return self._stepper.capacity

    @property
    def used(self) -> list[int]:
        """Slots of the cache that each conversation takes up, of the stepper's `capacity`."""
        if self._state is None:
            return [0] * self._count
        return to_host(self._state.cache.lengths_B)[: self._count].tolist()

    # Reading

    def read(self, prompts: Sequence[Prompt | None]) -> None:
        """Appends a prompt to each conversation, and begins its turn.

        Args:
          prompts: one a conversation; None leaves it alone, until its next prompt.

        Raises:
          PromptError: an empty prompt, or one that the cache has no room for; nothing was read.
          TokenIdError, CodeError: an id or code out of range; nothing was read.
          ValueError: not one prompt a conversation, or none at all.
        """
        if len(prompts) != self._count or all(prompt is None for prompt in prompts):
            raise ValueError(
                f"{sum(p is not None for p in prompts)} prompts in a list of {len(prompts)},"
                f" expected one for each of {self._count} conversations, or None, not all None"
            )
        rows = self._stepper.rows
        used, closers = self.used, self._closers(prompts)
        ids: list[np.ndarray] = [np.zeros(0, np.int32)] * rows
        codes: list[np.ndarray] = [np.zeros((0, len(self._stepper.sizes)), np.int32)] * rows
        mode_B = np.full(rows, DONE, np.int32)
        for row, prompt in enumerate(prompts):
            if prompt is None:
                continue
            check_prompt(self._stepper, prompt, f"prompt {row}")
            ids[row] = np.concatenate([np.asarray(closers[row], np.int32), prompt.ids_L])
            room = self._stepper.capacity - used[row]
            if len(ids[row]) > room:
                raise PromptError(
                    f"prompt {row} takes {len(ids[row])} slots, expected at most {room}, what is"
                    f" left of the cache's {self._stepper.capacity}"
                )
            codes[row] = np.zeros((len(ids[row]), len(self._stepper.sizes)), np.int32)
            codes[row][len(closers[row]) :] = prompt.codes_LQ[:, : len(self._stepper.sizes)]
            mode_B[row] = SPEAKING if prompt.speaks else WRITING
        for row, prompt in enumerate(prompts):
            if prompt is not None:
                self._wants_B[row] = prompt.wants_speech
                self._told[row] = _Told()
                self._generated[row] = False
        longest = max(len(own) for own in ids)
        for first in range(0, longest, self._lengths[-1]):
            self._read_part(ids, codes, mode_B, first, min(longest - first, self._lengths[-1]))

    def _read_part(self, ids, codes, mode_B: np.ndarray, first: int, longest: int) -> None:
        length = next(n for n in self._lengths if n >= longest)
        rows = self._stepper.rows
        ids_BL = np.zeros((rows, length), np.int32)
        codes_BLQ = np.zeros((rows, length, len(self._stepper.sizes)), np.int32)
        real_BL = np.zeros((rows, length), bool)
        for row in range(rows):
            part = slice(first, first + longest)
            own = ids[row][part]
            ids_BL[row, : len(own)], codes_BLQ[row, : len(own)] = own, codes[row][part]
            real_BL[row, : len(own)] = True
        if self._state is None:
            self._state = self._stepper.start(ids_BL, codes_BLQ, real_BL, mode_B)
        else:
            self._state = self._stepper.read(self._state, ids_BL, codes_BLQ, real_BL, mode_B)

    def _closers(self, prompts: Sequence[Prompt | None]) -> list[list[int]]:
        """The ids that each conversation's last turn still lacks before its prompt."""
        if self._state is None:
            return [[]] * self._count
        open_B, ended_B = to_host((self._state.turn.open_B, self._state.turn.ended_B))
        closers: list[list[int]] = [[] for _ in range(self._count)]
        for row, own in enumerate(closers):
            if not self._generated[row]:  # two prompts, one after the other
                continue
            if open_B[row]:
                own.append(self._stepper.config.tokens.audiogen_end)
            if not ended_B[row] and not (prompts[row] is not None and prompts[row].goes_on):
                own.append(self._stepper.eos_id)
        return closers

    # Generating

    def generate(
        self, *, text_limit: int | None = None, frame_limit: int | Sequence[int] | None = None
    ) -> list[Generated | None]:
        """The turns that `read` began, to their ends; None for a conversation that has none.

        What was streamed of a turn is part of it, unless it was streamed to its end. A turn that
        comes to a limit, or to the end of the cache, is not complete.

        Args:
          text_limit, frame_limit: the most ids and frames of each; default what there is room for.
            Frames: one limit for all, or one a conversation.

        Raises:
          ValueError: a limit over what there is room for, or nothing was read.
        """
        limits = self._limits(text_limit, frame_limit)
        active = [not told.ended for told in self._told[: self._count]]
        self._told = [told if told.ended else _Told() for told in self._told]
        self._advance(limits, EVERYTHING)
        snapshot = self._snapshot()
        text_BL, codes_BNQ = to_host((self._state.text_BL, self._state.codes_BNQ))
        origins = [(0, 0)] * self._count
        found = collect(
            self._events(snapshot, text_BL, codes_BNQ, origins), len(self._stepper.sizes)
        )
        return [found[row] if active[row] else None for row in range(self._count)]

    def stream(
        self,
        *,
        chunk: int = 4,
        text_limit: int | None = None,
        frame_limit: int | None = None,
    ) -> Iterator[list[Event]]:
        """The same turns as they come, the events of at most `chunk` steps at a time.

        Where the caller stops in the middle, the turns stay as they are: `generate` or `stream` go
        on with them, `read` ends them.

        Args:
          chunk: steps a dispatch; one shape each.
          text_limit, frame_limit: as in `generate`.

        Raises:
          ValueError: as `generate`; a chunk under 1.
        """
        if chunk < 1:
            raise ValueError(f"chunk {chunk}: expected at least 1")
        return self._chunks(self._limits(text_limit, frame_limit), chunk)

    def _chunks(self, limits: Limits, chunk: int) -> Iterator[list[Event]]:
        while not all(told.ended for told in self._told):
            self._advance(limits, chunk)
            snapshot = self._snapshot()
            told_B2 = np.asarray([(told.text, told.frames) for told in self._told], np.int32)
            window = self._stepper.window(self._state, (told_B2[:, 0], told_B2[:, 1]), chunk)
            text_BL, codes_BNQ = to_host(window)
            events = self._events(snapshot, text_BL, codes_BNQ, told_B2.tolist())
            if events:
                yield events

    def _limits(self, text_limit: int | None, frame_limit: int | Sequence[int] | None) -> Limits:
        most_text, most_frames = self._stepper.max_text, self._stepper.max_frames
        text_limit = most_text if text_limit is None else text_limit
        frame_limit = most_frames if frame_limit is None else frame_limit
        frames_B = np.full(self._stepper.rows, most_frames, np.int32)
        frames_B[: self._count] = frame_limit
        if not 1 <= text_limit <= most_text or not (
            1 <= frames_B.min() <= frames_B.max() <= most_frames
        ):
            raise ValueError(
                f"limits of {text_limit} ids and {frame_limit} frames: expected 1 to "
                f"{most_text} and 1 to {most_frames}"
            )
        if self._state is None:
            raise ValueError("nothing was read, expected a prompt before anything is generated")
        rows = self._stepper.rows
        return Limits(
            np.full(rows, text_limit, np.int32),
            frames_B,
            self._wants_B.copy(),
        )

    def _advance(self, limits: Limits, steps: int) -> None:
        for row in range(self._count):
            self._generated[row] |= not self._told[row].ended
        self._state = self._stepper.run(self._state, self._seeds_B, limits, steps)

    def _snapshot(self) -> _Snapshot:
        state = self._state
        return _Snapshot(*to_host((state.turn, state.begins_BG2, state.cuts_BG)))

    def _events(self, snapshot: _Snapshot, text_BL, codes_BNQ, origins) -> list[Event]:
        """What was not told yet; `origins`: the ids and frames that the arrays begin after."""
        found = []
        for row in range(self._count):
            if not self._told[row].ended:
                text, frames = origins[row]
                found += _tell(
                    row, self._told[row], snapshot, text_BL[row], codes_BNQ[row], text, frames
                )
        return found


def _tell(row: int, told: _Told, snapshot: _Snapshot, text_L, codes_NQ, first_text, first_frame):
    """The events of a row since `told`, which is brought up to date."""
    turn, begins_G2 = snapshot.turn, snapshot.begins_BG2[row]
    segments, mode = turn.segments_B[row], turn.mode_B[row]
    found = []
    while True:
        new = told.segments < segments  # another segment begins after what comes now
        if told.inside:
            end = begins_G2[told.segments, 1] if new else turn.frames_B[row]
            for codes_Q in codes_NQ[told.frames - first_frame : end - first_frame]:
                found.append(Event(row, FRAME, codes_Q=codes_Q.copy()))
            told.frames = int(end)
            if not new and mode == SPEAKING:
                break
            cut = snapshot.cuts_BG[row, told.segments - 1]
            found.append(Event(row, SEGMENT_END, complete=not cut))
            told.inside = False
        end = begins_G2[told.segments, 0] if new else turn.text_B[row]
        for token_id in text_L[told.text - first_text : end - first_text]:
            found.append(Event(row, TEXT, int(token_id)))
        told.text = int(end)
        if not new:
            break
        found.append(Event(row, SEGMENT))
        told.segments, told.inside = told.segments + 1, True
    if mode == DONE:
        found.append(Event(row, END, complete=not turn.cut_B[row]))
        told.ended = True
    return found


def check_prompt(stepper: Stepper, prompt: Prompt, name: str) -> None:
    """Checks a prompt on the host, before its ids reach a device.

    Raises:
      PromptError: it is empty, or has audio and the model has not.
      TokenIdError, CodeError: an id outside the vocabulary, a code outside its codebook.
    """
    if not len(prompt):
        raise PromptError(f"{name} is empty, expected at least one position")
    check_token_ids(prompt.ids_L, stepper.config.llm.vocab_size, name)
    if not stepper.sizes:
        if prompt.wants_speech or prompt.codes_LQ.any():
            raise PromptError(f"{name} has audio, and the model reads text alone")
        return
    pads_L = prompt.ids_L == stepper.config.tokens.audio_pad
    check_codes(prompt.codes_LQ[pads_L], stepper.sizes, allow_end=True, name=f"{name}: codes")
