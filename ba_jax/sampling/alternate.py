"""The text <-> audio machine: what a row does next (architecture.md section 9).

A spoken turn is text, speech, text, speech, ... A row writes until it chooses `<audiogen_start>`
or comes to a stop (punctuation, or enough ids); it speaks frames until codebook 0 takes its end
class; `<audiogen_end>` follows, and it writes on, until it chooses the end of text. What it wrote
last and did not say yet is then spoken too.

`Alternation.mode` says how:

  clean (the default): what is written stays. After a stop `<audiogen_start>` is appended. A stop of
    two characters, ". ", is seen only when the next id is chosen, " The" say: that id is not
    written; the model chooses it anew after the speech.
  reference: as the public demo does. The last id of a stretch, whatever it is, gives its place to
    `<audiogen_start>`, and the last frame of a segment that was cut gives its place to
    `<audiogen_end>`: both are shown or heard, but the model does not read them. The stops hold from
    the second stretch on, and anywhere inside an id's text. The penalty on repeated ids counts all
    that was read, prompt and special tokens too.

`move` is a pure function of arrays, every row on its own; `ba_jax.sampling.step` puts the model
around it.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.data.text_tokenizer import TextTokenizer, TokenizerError
from ba_jax.sampling.logits import Sampling
from ba_jax.vocab import AudioTokens

DONE, WRITING, BEGINNING, SPEAKING, ENDING = range(5)
"""Modes of a row. BEGINNING and ENDING read `<audiogen_start>` and `<audiogen_end>` next."""

FIRST_TEXT = Sampling(0.8, top_k=20, top_p=0.85, repetition_penalty=1.1)
LATER_TEXT = Sampling(0.3, top_k=20, top_p=0.85, repetition_penalty=1.05)
AUDIO = Sampling(0.5, top_k=5, top_p=0.85, repetition_penalty=1.3)
"""The reference's sampling of the first stretch of text, of the later ones, and of codes."""

STOPS = (",", "!", "?", "，", "。", "！", "？", ". ")
"""What ends a stretch of text in the reference."""

MODES = ("clean", "reference")


@dataclasses.dataclass(frozen=True)
class Alternation:
    """How text and speech follow each other; static.

    Attributes:
      mode: "clean" or "reference", see above.
      later_text: how ids are chosen after a turn's first segment of speech.
      stops: strings of one or two characters that end a stretch of text; (): none, the model
        decides.
      stretch: most ids of a stretch of text.
      segment: most frames of a segment of speech.
      segments: most segments of a turn.
    """

    mode: str = "clean"
    later_text: Sampling = LATER_TEXT
    stops: tuple[str, ...] = STOPS
    stretch: int = 50
    segment: int = 500
    segments: int = 100

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r}: expected one of {MODES}")
        if min(self.stretch, self.segment, self.segments) < 1:
            raise ValueError(
                f"stretch {self.stretch}, segment {self.segment}, segments {self.segments}: "
                "expected at least 1 of each"
            )
        pairs = [stop for stop in self.stops if len(stop) == 2]
        if any(len(stop) not in (1, 2) for stop in self.stops) or len(pairs) > 1:
            raise ValueError(
                f"stops {self.stops}: expected strings of one character, and at most one of two"
            )

    @property
    def overwrites(self) -> bool:
        """The special token takes the place of the last id or frame."""
        return self.mode == "reference"


class Stops(NamedTuple):
    """Which ids end a stretch of text; (V,) bool each.

    Attributes:
      whole_V: the id's text holds a stop.
      first_V, second_V: it ends with the first character of the stop of two, begins with the
        second.
    """

    whole_V: np.ndarray
    first_V: np.ndarray
    second_V: np.ndarray


def find_stops(alternation: Alternation, tokenizer: TextTokenizer, vocab_size: int) -> Stops:
    """The ids at which text stops, from what each decodes to.

    In clean mode a stop has to be the end of an id's text, in reference mode it may be anywhere
    within. A character that is spread over several ids is never seen.
    """
    stops = Stops(*(np.zeros(vocab_size, bool) for _ in Stops._fields))
    if not alternation.stops:
        return stops
    pair = next((stop for stop in alternation.stops if len(stop) == 2), None)
    for token_id in range(min(tokenizer.vocab_size, vocab_size)):
        try:
            text = tokenizer.decode([token_id])
        except TokenizerError:  # an id without a token
            continue
        if alternation.overwrites:
            stops.whole_V[token_id] = any(stop in text for stop in alternation.stops)
        else:
            stops.whole_V[token_id] = text.endswith(alternation.stops)
        if pair is not None:
            stops.first_V[token_id] = text.endswith(pair[0])
            stops.second_V[token_id] = text.startswith(pair[1])
    return stops


def writable_ids(tokenizer: TextTokenizer, vocab_size: int) -> np.ndarray:
    """Which ids text may hold, (V,) bool: those of the tokenizer that are not special."""
    writable_V = np.zeros(vocab_size, bool)
    writable_V[: tokenizer.vocab_size] = True
    writable_V[list(tokenizer.special_tokens.values())] = False
    return writable_V


class Limits(NamedTuple):
    """What a turn may hold: ids of text and frames of speech (int32), and whether it speaks."""

    text_B: jax.Array
    frames_B: jax.Array
    wants_speech_B: jax.Array


class Turn(NamedTuple):
    """Where each row is in its turn.

    Attributes:
      mode_B: see `DONE`; int32.
      run_B: ids or frames of the stretch or segment it is in, int32.
      text_B, frames_B, segments_B: of the turn so far, int32.
      last_B: what it is about to say, or says, is the last of the turn.
      half_B: its text ends with the first character of the stop of two.
      open_B: it read `<audiogen_start>` and no `<audiogen_end>` yet.
      ended_B: it read the end of text.
      cut_B: the turn ends at a limit.
    """

    mode_B: jax.Array
    run_B: jax.Array
    text_B: jax.Array
    frames_B: jax.Array
    segments_B: jax.Array
    last_B: jax.Array
    half_B: jax.Array
    open_B: jax.Array
    ended_B: jax.Array
    cut_B: jax.Array

    def counts(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(ids, frames, segments) of the turn."""
        return self.text_B, self.frames_B, self.segments_B


class Move(NamedTuple):
    """What each row does in a step.

    Attributes:
      wrote_B, spoke_B: the chosen id, or frame, is part of the turn.
      opens_B: a segment of speech begins.
      cuts_B: the segment of speech ends at a limit.
      reads_B, ids_B: whether the model reads something, and which id; `audio_pad` for a frame.
    """

    wrote_B: jax.Array
    spoke_B: jax.Array
    opens_B: jax.Array
    cuts_B: jax.Array
    reads_B: jax.Array
    ids_B: jax.Array


def begin(mode_B: jax.Array) -> Turn:
    """A turn that begins in these modes; a row that speaks has its first segment open."""
    none_B = jnp.zeros_like(mode_B)
    no_B, speaks_B = none_B > 0, mode_B == SPEAKING
    return Turn(
        mode_B=mode_B,
        run_B=none_B,
        text_B=none_B,
        frames_B=none_B,
        segments_B=speaks_B.astype(jnp.int32),
        last_B=no_B,
        half_B=no_B,
        open_B=speaks_B,
        ended_B=no_B,
        cut_B=no_B,
    )


def move(
    alternation: Alternation | None,
    stops: Stops | None,
    tokens: AudioTokens,
    eos_id: int,
    turn: Turn,
    limits: Limits,
    ids_B: jax.Array,
    silent_B: jax.Array,
    room_B: jax.Array,
) -> tuple[Turn, Move]:
    """One step of every row.

    Args:
      alternation, stops: how text and speech alternate; None: a turn is text, or text and then one
        segment of speech.
      tokens, eos_id: special ids.
      turn, limits: where the rows are, and how far they may go.
      ids_B: what the rows that write chose.
      silent_B: codebook 0 of the rows that speak took its end class.
      room_B: the cache has a slot for what the row reads.
    """
    wants_B = limits.wants_speech_B
    mode_B = turn.mode_B
    writes_B, speaks_B = mode_B == WRITING, mode_B == SPEAKING
    ends_B = writes_B & (ids_B == eos_id)
    opens_B = writes_B & (ids_B == tokens.audiogen_start)
    wrote_B = writes_B & ~ends_B & ~opens_B
    spoke_B, closes_B = speaks_B & ~silent_B, speaks_B & silent_B
    last_B, none_B = turn.last_B, jnp.zeros_like(turn.last_B)
    half_B = segment_full_B = stops_B = none_B
    if alternation is not None:
        heeds_B = wants_B & (turn.segments_B > 0) if alternation.overwrites else wants_B
        half_B = wrote_B & jnp.asarray(stops.first_V)[ids_B]
        paired_B = wrote_B & heeds_B & turn.half_B & jnp.asarray(stops.second_V)[ids_B]
        if not alternation.overwrites:
            wrote_B, opens_B = wrote_B & ~paired_B, opens_B | paired_B
        stops_B = heeds_B & (jnp.asarray(stops.whole_V)[ids_B] | paired_B)
        stops_B |= turn.run_B + 1 >= alternation.stretch
        segment_full_B = spoke_B & (turn.run_B + 1 >= alternation.segment)
    text_B, frames_B = turn.text_B + wrote_B, turn.frames_B + spoke_B
    text_full_B = wrote_B & (text_B >= limits.text_B)
    frames_full_B = spoke_B & (frames_B >= limits.frames_B)
    cut_B = turn.cut_B | text_full_B | frames_full_B
    halts_B = frames_full_B | ends_B
    if alternation is None:
        halts_B |= text_full_B | closes_B
        segments = 1
    else:
        # Nothing that was written stays unsaid.
        stops_B = wrote_B & wants_B & (stops_B | text_full_B)
        unsaid_B = ends_B & wants_B & (turn.run_B > 0)
        opens_B, halts_B = opens_B | unsaid_B, halts_B & ~unsaid_B
        last_B = last_B | unsaid_B | (text_full_B & wants_B)
        halts_B |= text_full_B & ~wants_B
        segments = alternation.segments
        if alternation.overwrites:
            opens_B, closes_B = opens_B | stops_B, closes_B | (segment_full_B & ~frames_full_B)
            stops_B = segment_full_B = none_B
    opens_B |= mode_B == BEGINNING
    closes_B |= mode_B == ENDING
    crowded_B = opens_B & (turn.segments_B >= segments)
    full_B = (mode_B != DONE) & ~room_B
    cut_B |= crowded_B | full_B
    opens_B &= ~crowded_B & room_B
    closes_B &= room_B
    halts_B |= crowded_B | full_B | (closes_B & last_B)
    cuts_B = frames_full_B | segment_full_B | (speaks_B & full_B)
    if alternation is not None and alternation.overwrites:
        cuts_B |= spoke_B & closes_B
    next_B = jnp.where(spoke_B, tokens.audio_pad, ids_B)
    next_B = jnp.where(closes_B, tokens.audiogen_end, next_B)
    next_B = jnp.where(opens_B, tokens.audiogen_start, next_B)
    new_mode_B = jnp.select(
        [
            halts_B | (mode_B == DONE),
            opens_B | (spoke_B & ~segment_full_B & ~closes_B),
            stops_B,
            segment_full_B,
        ],
        [DONE, SPEAKING, BEGINNING, ENDING],
        WRITING,
    ).astype(jnp.int32)
    reads_B = (mode_B != DONE) & room_B & ~crowded_B
    after = Turn(
        mode_B=new_mode_B,
        run_B=jnp.where(opens_B | closes_B, 0, turn.run_B + (wrote_B | spoke_B)),
        text_B=text_B,
        frames_B=frames_B,
        segments_B=turn.segments_B + opens_B,
        last_B=last_B,
        half_B=half_B & ~opens_B,
        open_B=(turn.open_B | opens_B) & ~closes_B,
        ended_B=turn.ended_B | (ends_B & reads_B & ~opens_B),
        cut_B=cut_B,
    )
    return after, Move(wrote_B, spoke_B, opens_B, cuts_B, reads_B, next_B)
