"""Alternation of text and speech: the state machine of a turn, row by row.

A spoken turn is text, speech, text, speech, ... A row writes until it chooses `<audiogen_start>`
or reaches a stop (punctuation, or the longest stretch); it speaks frames until codebook 0 takes its
end class; then it reads `<audiogen_end>` and writes on, until it chooses the end of text. Text that
was written last and not yet spoken is then spoken too.

`Alternation.mode` is one of two:

  clean (the default): everything written is kept. After a stop, `<audiogen_start>` is appended. A
    stop of two characters, ". ", is recognised at the next id, " The" for example: that id is not
    written; the model chooses again after the speech.
  reference: the behaviour of the public demo. `<audiogen_start>` replaces the last id of a stretch,
    whatever it is, and `<audiogen_end>` replaces the last frame of a segment that was cut: both are
    shown or heard, but the model does not read them. Stops apply from the second stretch on, and
    anywhere inside an id's text. The repetition penalty counts all ids that were read, prompt and
    special tokens included.

`advance_turn` is a pure function of arrays; `ba_jax.sampling.step` runs the model around it.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.config import expected
from ba_jax.data.text_tokenizer import TextTokenizer, TokenizerError
from ba_jax.sampling.logits import Sampling
from ba_jax.vocab import AudioTokens

DONE, WRITING, BEGINNING, SPEAKING, ENDING = range(5)
"""Modes of a row. BEGINNING and ENDING rows read `<audiogen_start>` and `<audiogen_end>` next."""

FIRST_TEXT = Sampling(0.8, top_k=20, top_p=0.85, repetition_penalty=1.1)
LATER_TEXT = Sampling(0.3, top_k=20, top_p=0.85, repetition_penalty=1.05)
AUDIO = Sampling(0.5, top_k=5, top_p=0.85, repetition_penalty=1.3)
"""Sampling of the release: the first stretch of text, later stretches, and codes."""

STOPS = (",", "!", "?", "，", "。", "！", "？", ". ")
"""Strings that end a stretch of text in the release."""

MODES = ("clean", "reference")


@dataclasses.dataclass(frozen=True)
class Alternation:
    """Settings of the alternation of text and speech; static under jit.

    Attributes:
      mode: "clean" or "reference", see the module.
      later_text: sampling of text after a turn's first segment of speech.
      stops: strings of one or two characters that end a stretch of text; (): none.
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
            raise ValueError(f"mode {expected(self.mode, MODES)}")
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
        """Whether special tokens replace the last id or frame."""
        return self.mode == "reference"


class StopMasks(NamedTuple):
    """Masks of ids by their text; (V,) bool each.

    Attributes:
      whole_V: the text holds a stop.
      first_V, second_V: the text ends with the first character of the two-character stop, or begins
        with its second.
    """

    whole_V: np.ndarray
    first_V: np.ndarray
    second_V: np.ndarray


def find_stops(alternation: Alternation, tokenizer: TextTokenizer, vocab_size: int) -> StopMasks:
    """The masks of a tokenizer's ids, from the text that each decodes to.

    In clean mode a stop must end an id's text, in reference mode it may be anywhere inside.
    Characters that span several ids are not recognised.
    """
    stops = StopMasks(*(np.zeros(vocab_size, bool) for _ in StopMasks._fields))
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
    """Mask (V,) of the ids that text may hold: those of the tokenizer that are not special."""
    writable_V = np.zeros(vocab_size, bool)
    writable_V[: tokenizer.vocab_size] = True
    writable_V[list(tokenizer.special_tokens.values())] = False
    return writable_V


class TextVocabulary(NamedTuple):
    """Roles of the token ids in generated text.

    Attributes:
      eos_id: ends text.
      writable_V: ids that text may hold besides `eos_id` and `<audiogen_start>`; (V,) bool.
      stops: ids that end a stretch of text; needed with an `Alternation`.
    """

    eos_id: int
    writable_V: np.ndarray
    stops: StopMasks | None = None


def text_vocabulary(
    tokenizer: TextTokenizer, vocab_size: int, alternation: Alternation | None = None
) -> TextVocabulary:
    """The vocabulary of a tokenizer, for a model of `vocab_size` ids."""
    stops = None if alternation is None else find_stops(alternation, tokenizer, vocab_size)
    return TextVocabulary(tokenizer.eos_id, writable_ids(tokenizer, vocab_size), stops)


class TurnLimits(NamedTuple):
    """Limits of each row's turn: text ids and frames (int32), and whether it speaks (bool)."""

    text_B: jax.Array
    frames_B: jax.Array
    wants_speech_B: jax.Array


class TurnState(NamedTuple):
    """Progress of each row's turn.

    Attributes:
      mode_B: see `DONE`; int32.
      run_B: ids or frames of the current stretch or segment, int32.
      text_B, frames_B, segments_B: totals of the turn, int32.
      last_B: the current or next segment of speech is the last of the turn.
      half_B: the text ends with the first character of the two-character stop.
      open_B: `<audiogen_start>` was read without `<audiogen_end>`.
      ended_B: the end of text was read.
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


class TurnStep(NamedTuple):
    """Actions of each row in a step.

    Attributes:
      wrote_B, spoke_B: the chosen id, or frame, is part of the turn.
      opens_B: a segment of speech begins.
      cuts_B: the segment of speech ends at a limit.
      reads_B, ids_B: whether the model reads an id, and which; `audio_pad` for a frame.
    """

    wrote_B: jax.Array
    spoke_B: jax.Array
    opens_B: jax.Array
    cuts_B: jax.Array
    reads_B: jax.Array
    ids_B: jax.Array


def begin_turn(mode_B: jax.Array) -> TurnState:
    """A turn that begins in these modes; rows that speak have their first segment open."""
    zero_B = jnp.zeros_like(mode_B)
    false_B, speaks_B = zero_B > 0, mode_B == SPEAKING
    return TurnState(
        mode_B=mode_B,
        run_B=zero_B,
        text_B=zero_B,
        frames_B=zero_B,
        segments_B=speaks_B.astype(jnp.int32),
        last_B=false_B,
        half_B=false_B,
        open_B=speaks_B,
        ended_B=false_B,
        cut_B=false_B,
    )


def advance_turn(
    alternation: Alternation | None,
    stops: StopMasks | None,
    tokens: AudioTokens,
    eos_id: int,
    turn: TurnState,
    limits: TurnLimits,
    ids_B: jax.Array,
    silent_B: jax.Array,
    room_B: jax.Array,
) -> tuple[TurnState, TurnStep]:
    """One step of every row.

    Args:
      alternation, stops: how text and speech alternate; None: a turn is text, or text and then one
        segment of speech.
      tokens, eos_id: special ids.
      turn, limits: progress and limits of the rows.
      ids_B: ids chosen by the rows that write.
      silent_B: codebook 0 of the rows that speak took its end class.
      room_B: the cache has a slot for the id that the row reads.
    """
    mode_B, wants_B = turn.mode_B, limits.wants_speech_B
    writes_B, speaks_B = mode_B == WRITING, mode_B == SPEAKING
    ends_B = writes_B & (ids_B == eos_id)
    opens_B = writes_B & (ids_B == tokens.audiogen_start)
    wrote_B = writes_B & ~ends_B & ~opens_B
    spoke_B, closes_B = speaks_B & ~silent_B, speaks_B & silent_B
    false_B = jnp.zeros_like(turn.last_B)
    half_B = stops_B = paired_B = false_B
    if alternation is not None:
        half_B, paired_B, stops_B = _match_stops(alternation, stops, turn, wants_B, ids_B, wrote_B)
    if alternation is not None and not alternation.overwrites:
        wrote_B, opens_B = wrote_B & ~paired_B, opens_B | paired_B
    text_B, frames_B = turn.text_B + wrote_B, turn.frames_B + spoke_B
    text_full_B = wrote_B & (text_B >= limits.text_B)
    frames_full_B = spoke_B & (frames_B >= limits.frames_B)

    # Rows that pause read <audiogen_start> next, rows with a full segment <audiogen_end>.
    last_B, pauses_B, segment_full_B, segments = turn.last_B, false_B, false_B, 1
    if alternation is None:
        halts_B = frames_full_B | ends_B | text_full_B | closes_B
    else:
        segments = alternation.segments
        segment_full_B = spoke_B & (turn.run_B + 1 >= alternation.segment)
        # All text is spoken: before the turn ends, and when its text reaches the limit.
        unspoken_B = ends_B & wants_B & (turn.run_B > 0)
        pauses_B = wrote_B & wants_B & (stops_B | text_full_B)
        opens_B |= unspoken_B
        last_B = last_B | unspoken_B | (text_full_B & wants_B)
        halts_B = frames_full_B | (ends_B & ~unspoken_B) | (text_full_B & ~wants_B)
        if alternation.overwrites:
            opens_B, closes_B = opens_B | pauses_B, closes_B | (segment_full_B & ~frames_full_B)
            pauses_B = segment_full_B = false_B

    opens_B |= mode_B == BEGINNING
    closes_B |= mode_B == ENDING
    crowded_B = opens_B & (turn.segments_B >= segments)
    full_B = (mode_B != DONE) & ~room_B
    opens_B &= ~crowded_B & room_B
    closes_B &= room_B
    halts_B |= crowded_B | full_B | (closes_B & last_B)
    reads_B = (mode_B != DONE) & room_B & ~crowded_B
    cuts_B = frames_full_B | segment_full_B | (speaks_B & full_B)
    if alternation is not None and alternation.overwrites:
        cuts_B |= spoke_B & closes_B
    next_ids_B = jnp.where(spoke_B, tokens.audio_pad, ids_B)
    next_ids_B = jnp.where(closes_B, tokens.audiogen_end, next_ids_B)
    next_ids_B = jnp.where(opens_B, tokens.audiogen_start, next_ids_B)
    next_mode_B = jnp.select(
        [
            halts_B | (mode_B == DONE),
            opens_B | (spoke_B & ~segment_full_B & ~closes_B),
            pauses_B,
            segment_full_B,
        ],
        [DONE, SPEAKING, BEGINNING, ENDING],
        WRITING,
    ).astype(jnp.int32)
    after = TurnState(
        mode_B=next_mode_B,
        run_B=jnp.where(opens_B | closes_B, 0, turn.run_B + (wrote_B | spoke_B)),
        text_B=text_B,
        frames_B=frames_B,
        segments_B=turn.segments_B + opens_B,
        last_B=last_B,
        half_B=half_B & ~opens_B,
        open_B=(turn.open_B | opens_B) & ~closes_B,
        ended_B=turn.ended_B | (ends_B & reads_B & ~opens_B),
        cut_B=turn.cut_B | text_full_B | frames_full_B | crowded_B | full_B,
    )
    return after, TurnStep(wrote_B, spoke_B, opens_B, cuts_B, reads_B, next_ids_B)


def _match_stops(
    alternation: Alternation,
    stops: StopMasks,
    turn: TurnState,
    wants_B: jax.Array,
    ids_B: jax.Array,
    wrote_B: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(first half of a two-character stop, its second half, end of a stretch) of the chosen ids."""
    heeds_B = wants_B & (turn.segments_B > 0) if alternation.overwrites else wants_B
    half_B = wrote_B & jnp.asarray(stops.first_V)[ids_B]
    paired_B = wrote_B & heeds_B & turn.half_B & jnp.asarray(stops.second_V)[ids_B]
    stops_B = heeds_B & (jnp.asarray(stops.whole_V)[ids_B] | paired_B)
    return half_B, paired_B, stops_B | (turn.run_B + 1 >= alternation.stretch)
