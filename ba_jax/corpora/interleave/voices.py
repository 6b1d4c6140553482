"""Who speaks a synthetic record: a pure function of seed, id and split."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping

HELD_OUT = ("bf_emma", "am_adam", "zf_xiaobei", "zm_yunxi")
"""Voices that nothing trains on: they tell whether a model copes with voices it never heard."""

UNFIT = ("zf_xiaoni",)
"""Left out always: Whisper-base mishears it far more than any other (platform.md)."""

TRAIN = "train"
"""The split of the voices that are not held out; every other split has the held-out ones."""


def is_held_out(voice: str) -> bool:
    """Whether a voice, or one that a blend of voices is made of, is held out."""
    return any(name in re.split(r"[^a-z_]+", voice) for name in HELD_OUT)


def unit_interval(seed: int, id: str, what: str) -> float:
    """A number in [0, 1) that depends on the arguments alone, evenly spread over ids."""
    digest = hashlib.blake2b(f"{seed}:{what}:{id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def voices_of(
    voices: Mapping[str, str], language: str, split: str, *, blends: bool = False
) -> list[str]:
    """The voices of a language that may speak in a split, sorted.

    Args:
      voices: a synthesiser's, voice -> its language.
      language: ISO 639-1.
      split: TRAIN: all but the held-out ones; else only those.
      blends: the averages of any two as well, "af_sky+af_bella"; of one accent and sex, which are
        the first two letters of a voice of Kokoro's.

    Raises:
      ValueError: there is none.
    """
    found = sorted(
        voice
        for voice, of in voices.items()
        if of == language and voice not in UNFIT and is_held_out(voice) == (split != TRAIN)
    )
    if not found:
        raise ValueError(
            f"no voice for language {language!r} in split {split!r} among {sorted(voices)}"
        )
    if blends:
        pairs = itertools.combinations(found, 2)
        found = sorted([*found, *(f"{a}+{b}" for a, b in pairs if a[:2] == b[:2])])
    return found


def choose_voice(
    voices: Mapping[str, str],
    language: str,
    split: str,
    *,
    seed: int,
    id: str,
    blends: bool = False,
) -> str:
    """The voice of a record.

    Raises:
      ValueError: as `voices_of`.
    """
    found = voices_of(voices, language, split, blends=blends)
    return found[int(unit_interval(seed, id, "voice") * len(found))]


def choose_speed(slowest: float, fastest: float, *, seed: int, id: str) -> float:
    """How fast a record is spoken, evenly spread between two bounds."""
    return slowest + (fastest - slowest) * unit_interval(seed, id, "speed")
