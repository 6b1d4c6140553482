"""A batch of conversations over one cache: read prompts, generate or stream a turn, read on.

The cache keeps all that was read and generated, audio included, so that a turn costs only its own
length. A turn ends with the end of text, as in training (`ba_jax.data.sequence`): if the model did
not generate it (a limit was reached, or the user interrupted), it is read before the next prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ba_jax.sampling.alternate import DONE, SPEAKING, WRITING, TurnLimits, TurnState
from ba_jax.sampling.prompt import Prompt, PromptError
from ba_jax.sampling.step import ModelRunner, State
from ba_jax.sharding import to_host
from ba_jax.vocab import check_codes, check_token_ids

TEXT, SEGMENT, FRAME, SEGMENT_END, END = "text", "segment", "frame", "segment_end", "end"
_NO_STEP_LIMIT = np.iinfo(np.int32).max


class Event(NamedTuple):
    """Something that a row generated.

    Attributes:
      row: the row.
      kind: TEXT (an id), SEGMENT (speech begins), FRAME, SEGMENT_END, END (of the turn).
      token_id: id of a TEXT.
      codes_Q: codes of a FRAME, int32.
      complete: the segment or turn of a SEGMENT_END or END ended by itself, not at a limit.
    """

    row: int
    kind: str
    token_id: int = -1
    codes_Q: np.ndarray | None = None
    complete: bool = True


@dataclasses.dataclass(frozen=True)
class OutputPiece:
    """A stretch of text or a segment of speech.

    Attributes:
      ids: ids of text; None for speech.
      codes_NQ: codes of speech, int32, without the end class; None for text.
      complete: it ended by itself, not at a limit.
    """

    ids: list[int] | None = None
    codes_NQ: np.ndarray | None = None
    complete: bool = True

    @property
    def is_audio(self) -> bool:
        """Whether this is a segment of speech."""
        return self.codes_NQ is not None


@dataclasses.dataclass(frozen=True)
class Generated:
    """The output of a turn.

    Attributes:
      ids: all text ids, without the id that ended the text.
      codes_NQ: all audio frames, int32, without the end class; (0, Q) without speech.
      complete: it ended by itself, not at a limit.
      pieces: the stretches of text and segments of speech in order.
    """

    ids: list[int]
    codes_NQ: np.ndarray
    complete: bool
    pieces: tuple[OutputPiece, ...] = ()


def collect(events: Iterable[Event], codebooks: int) -> dict[int, Generated]:
    """Row -> the output that its events describe; a row without END is not complete."""
    pieces: dict[int, list[OutputPiece]] = {}
    complete: dict[int, bool] = {}
    open_frames: dict[int, list[np.ndarray]] = {}

    def close(row: int, whole: bool) -> None:
        frames = open_frames.pop(row)
        codes_NQ = np.reshape(np.asarray(frames, np.int32), (-1, codebooks))
        pieces[row].append(OutputPiece(codes_NQ=codes_NQ, complete=whole))

    for event in events:
        row_pieces = pieces.setdefault(event.row, [])
        if event.kind == TEXT:
            if not row_pieces or row_pieces[-1].is_audio:
                row_pieces.append(OutputPiece(ids=[]))
            row_pieces[-1].ids.append(event.token_id)
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
    no_frames = np.zeros((0, codebooks), np.int32)
    return {
        row: Generated(
            [token_id for piece in row_pieces if not piece.is_audio for token_id in piece.ids],
            np.concatenate(
                [no_frames, *(piece.codes_NQ for piece in row_pieces if piece.is_audio)]
            ),
            complete.get(row, False),
            tuple(row_pieces),
        )
        for row, row_pieces in pieces.items()
    }


@dataclasses.dataclass
class _Reported:
    """The part of a row's turn that was reported as events.

    Attributes:
      text, frames, segments: numbers of ids, frames, and segments begun.
      inside: the last segment is still open.
      ended: END was reported.
    """

    text: int = 0
    frames: int = 0
    segments: int = 0
    inside: bool = False
    ended: bool = False


class _Snapshot(NamedTuple):
    """A copy of a state's small arrays on the host."""

    turn: TurnState
    begins_BG2: np.ndarray
    cuts_BG: np.ndarray


class Session:
    """Conversations, one per row of a batch.

    Args:
      runner: the model and its compiled functions.
      seeds: one per conversation, at most the runner's rows. A conversation depends on its seed and
        on what it read, not on the other rows.

    Raises:
      ValueError: no seed, or more than there are rows.
    """

    def __init__(self, runner: ModelRunner, seeds: Sequence[int]):
        if not 1 <= len(seeds) <= runner.rows:
            raise ValueError(f"{len(seeds)} seeds, expected 1 to {runner.rows}: one per row")
        self._runner, self._lengths = runner, sorted(runner.settings.lengths)
        self._count = len(seeds)
        self._seeds_B = np.zeros(runner.rows, np.uint32)
        self._seeds_B[: len(seeds)] = seeds
        self._state: State | None = None
        self._wants_speech_B = np.zeros(runner.rows, bool)
        self._generated = [False] * len(seeds)
        self._reported = [_Reported(ended=True) for _ in range(runner.rows)]

    @property
    def capacity(self) -> int:
        """Cache slots of a conversation."""
        return self._runner.capacity

    @property
    def used(self) -> list[int]:
        """Cache slots that each conversation occupies."""
        if self._state is None:
            return [0] * self._count
        return to_host(self._state.cache.lengths_B)[: self._count].tolist()

    # Reading

    def read(self, prompts: Sequence[Prompt | None]) -> None:
        """Append a prompt to each conversation and begin its turn.

        Args:
          prompts: one per conversation; None: the conversation has no turn now.

        Raises:
          PromptError: an empty prompt, or one that the cache has no room for; nothing was read.
          TokenIdError, CodeError: an id or code out of range; nothing was read.
          ValueError: not one prompt per conversation, or None for all of them.
        """
        if len(prompts) != self._count or all(prompt is None for prompt in prompts):
            raise ValueError(
                f"{sum(p is not None for p in prompts)} prompts in a list of {len(prompts)},"
                f" expected one for each of {self._count} conversations, or None, not all None"
            )
        rows, codebooks = self._runner.rows, len(self._runner.sizes)
        used, closing_ids = self.used, self._closing_ids(prompts)
        ids: list[np.ndarray] = [np.zeros(0, np.int32)] * rows
        codes: list[np.ndarray] = [np.zeros((0, codebooks), np.int32)] * rows
        mode_B = np.full(rows, DONE, np.int32)
        for row, prompt in enumerate(prompts):
            if prompt is None:
                continue
            check_prompt(self._runner, prompt, f"prompt {row}")
            closing = np.asarray(closing_ids[row], np.int32)
            ids[row] = np.concatenate([closing, prompt.ids_L])
            room = self.capacity - used[row]
            if len(ids[row]) > room:
                raise PromptError(
                    f"prompt {row} takes {len(ids[row])} slots, expected at most {room}, the free"
                    f" ones of the cache's {self.capacity}"
                )
            codes[row] = np.zeros((len(ids[row]), codebooks), np.int32)
            codes[row][len(closing) :] = prompt.codes_LQ[:, :codebooks]
            mode_B[row] = SPEAKING if prompt.speaks else WRITING
        for row, prompt in enumerate(prompts):
            if prompt is not None:
                self._wants_speech_B[row] = prompt.wants_speech
                self._reported[row] = _Reported()
                self._generated[row] = False
        longest = max(len(row_ids) for row_ids in ids)
        for start in range(0, longest, self._lengths[-1]):
            self._read_part(ids, codes, mode_B, start, min(longest - start, self._lengths[-1]))

    def _read_part(
        self,
        ids: Sequence[np.ndarray],
        codes: Sequence[np.ndarray],
        mode_B: np.ndarray,
        start: int,
        size: int,
    ) -> None:
        """Read `size` positions of all rows from `start`, padded to one of the lengths."""
        rows, length = len(ids), next(n for n in self._lengths if n >= size)
        ids_BL = np.zeros((rows, length), np.int32)
        codes_BLQ = np.zeros((rows, length, len(self._runner.sizes)), np.int32)
        real_BL = np.zeros((rows, length), bool)
        for row in range(rows):
            count = len(ids[row][start : start + size])
            ids_BL[row, :count] = ids[row][start : start + count]
            codes_BLQ[row, :count] = codes[row][start : start + count]
            real_BL[row, :count] = True
        if self._state is None:
            self._state = self._runner.start(ids_BL, codes_BLQ, real_BL, mode_B)
        else:
            self._state = self._runner.read(self._state, ids_BL, codes_BLQ, real_BL, mode_B)

    def _closing_ids(self, prompts: Sequence[Prompt | None]) -> list[list[int]]:
        """Ids that end each conversation's last turn, where the model did not generate them."""
        closing: list[list[int]] = [[] for _ in range(self._count)]
        if self._state is None:
            return closing
        open_B, ended_B = to_host((self._state.turn.open_B, self._state.turn.ended_B))
        for row, prompt in enumerate(prompts):
            if not self._generated[row]:  # two prompts without a turn between them
                continue
            if open_B[row]:
                closing[row].append(self._runner.config.tokens.audiogen_end)
            if not ended_B[row] and not (prompt is not None and prompt.continues_turn):
                closing[row].append(self._runner.eos_id)
        return closing

    # Generating

    def generate(
        self, *, text_limit: int | None = None, frame_limit: int | Sequence[int] | None = None
    ) -> list[Generated | None]:
        """Generate the turns that `read` began, to their ends; None for a row without a turn.

        The output includes what was streamed of a turn, unless the stream reached its end. A turn
        that reaches a limit or the end of the cache is not complete.

        Args:
          text_limit, frame_limit: most ids and frames of a turn; by default `max_text` and
            `max_frames`. Frames: one limit for all, or one per conversation.

        Raises:
          ValueError: a limit over `max_text` or `max_frames`, or nothing was read.
        """
        limits = self._limits(text_limit, frame_limit)
        active = [not reported.ended for reported in self._reported[: self._count]]
        self._reported = [r if r.ended else _Reported() for r in self._reported]
        self._advance(limits, _NO_STEP_LIMIT)
        snapshot = self._snapshot()
        text_BL, codes_BNQ = to_host((self._state.text_BL, self._state.codes_BNQ))
        events = self._events(snapshot, text_BL, codes_BNQ, [(0, 0)] * self._count)
        outputs = collect(events, len(self._runner.sizes))
        return [outputs[row] if active[row] else None for row in range(self._count)]

    def stream(
        self,
        *,
        chunk: int = 4,
        text_limit: int | None = None,
        frame_limit: int | None = None,
    ) -> Iterator[list[Event]]:
        """Generate the turns that `read` began; yield the events of up to `chunk` steps at a time.

        If the caller stops early, the turns stay as they are: `generate` or `stream` continues
        them, `read` ends them.

        Args:
          chunk: steps per dispatch; each value compiles once.
          text_limit, frame_limit: as in `generate`.

        Raises:
          ValueError: as `generate`; a chunk under 1.
        """
        if chunk < 1:
            raise ValueError(f"chunk {chunk}: expected at least 1")
        return self._chunks(self._limits(text_limit, frame_limit), chunk)

    def _chunks(self, limits: TurnLimits, chunk: int) -> Iterator[list[Event]]:
        while not all(reported.ended for reported in self._reported):
            self._advance(limits, chunk)
            snapshot = self._snapshot()
            starts_B2 = np.asarray([(r.text, r.frames) for r in self._reported], np.int32)
            window = self._runner.window(self._state, (starts_B2[:, 0], starts_B2[:, 1]), chunk)
            events = self._events(snapshot, *to_host(window), starts_B2.tolist())
            if events:
                yield events

    def _limits(
        self, text_limit: int | None, frame_limit: int | Sequence[int] | None
    ) -> TurnLimits:
        settings, rows = self._runner.settings, self._runner.rows
        text_limit = settings.max_text if text_limit is None else text_limit
        frame_limit = settings.max_frames if frame_limit is None else frame_limit
        frames_B = np.full(rows, settings.max_frames, np.int32)
        frames_B[: self._count] = frame_limit
        if not 1 <= text_limit <= settings.max_text or not (
            1 <= frames_B.min() <= frames_B.max() <= settings.max_frames
        ):
            raise ValueError(
                f"limits of {text_limit} ids and {frame_limit} frames: expected 1 to "
                f"{settings.max_text} and 1 to {settings.max_frames}"
            )
        if self._state is None:
            raise ValueError("nothing was read, expected a prompt before anything is generated")
        return TurnLimits(
            np.full(rows, text_limit, np.int32), frames_B, self._wants_speech_B.copy()
        )

    def _advance(self, limits: TurnLimits, steps: int) -> None:
        for row in range(self._count):
            self._generated[row] |= not self._reported[row].ended
        self._state = self._runner.run(self._state, self._seeds_B, limits, steps)

    def _snapshot(self) -> _Snapshot:
        state = self._state
        return _Snapshot(*to_host((state.turn, state.begins_BG2, state.cuts_BG)))

    def _events(
        self,
        snapshot: _Snapshot,
        text_BL: np.ndarray,
        codes_BNQ: np.ndarray,
        starts: Sequence[tuple[int, int]],
    ) -> list[Event]:
        """Events not yet reported; the arrays begin at each row's (id, frame) in `starts`."""
        events = []
        for row, (text, frame) in enumerate(starts[: self._count]):
            if not self._reported[row].ended:
                rows = text_BL[row], codes_BNQ[row]
                events += _new_events(row, self._reported[row], snapshot, *rows, text, frame)
        return events


def _new_events(
    row: int,
    reported: _Reported,
    snapshot: _Snapshot,
    text_L: np.ndarray,
    codes_NQ: np.ndarray,
    first_text: int,
    first_frame: int,
) -> list[Event]:
    """The events of a row since `reported`, which is updated."""
    turn, begins_G2 = snapshot.turn, snapshot.begins_BG2[row]
    segments, mode = turn.segments_B[row], turn.mode_B[row]
    events = []
    while True:
        more = reported.segments < segments  # another segment follows
        if reported.inside:
            end = begins_G2[reported.segments, 1] if more else turn.frames_B[row]
            for codes_Q in codes_NQ[reported.frames - first_frame : end - first_frame]:
                events.append(Event(row, FRAME, codes_Q=codes_Q.copy()))
            reported.frames = int(end)
            if not more and mode == SPEAKING:
                break
            cut = snapshot.cuts_BG[row, reported.segments - 1]
            events.append(Event(row, SEGMENT_END, complete=not cut))
            reported.inside = False
        end = begins_G2[reported.segments, 0] if more else turn.text_B[row]
        for token_id in text_L[reported.text - first_text : end - first_text]:
            events.append(Event(row, TEXT, int(token_id)))
        reported.text = int(end)
        if not more:
            break
        events.append(Event(row, SEGMENT))
        reported.segments, reported.inside = reported.segments + 1, True
    if mode == DONE:
        events.append(Event(row, END, complete=not turn.cut_B[row]))
        reported.ended = True
    return events


def check_prompt(runner: ModelRunner, prompt: Prompt, name: str) -> None:
    """Check a prompt on the host, before its ids reach a device.

    Raises:
      PromptError: an empty prompt, or audio that the model cannot read or speak.
      TokenIdError, CodeError: an id outside the vocabulary, a code outside its codebook.
    """
    if not len(prompt):
        raise PromptError(f"{name} is empty, expected at least one position")
    check_token_ids(prompt.ids_L, runner.config.llm.vocab_size, name)
    if not runner.sizes:
        if prompt.wants_speech or prompt.codes_LQ.any():
            raise PromptError(f"{name} has audio, and the model reads text alone")
        return
    if prompt.wants_speech and not runner.config.audio_head:
        raise PromptError(f"{name} asks for speech, and the model has no audio head")
    pads_L = prompt.ids_L == runner.config.tokens.audio_pad
    check_codes(prompt.codes_LQ[pads_L], runner.sizes, allow_end=True, name=f"{name}: codes")
