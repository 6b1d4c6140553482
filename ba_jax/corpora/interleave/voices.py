"""The voice and speed of a synthetic record: a pure function of seed, id and split."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping

HELD_OUT = ("bf_emma", "am_adam", "zf_xiaobei", "zm_yunxi")
"""Voices that nothing trains on: they show whether a model copes with unknown voices."""

UNFIT = ("zf_xiaoni",)
"""Voices never used: Whisper-base mishears this one far more than any other."""

TRAIN = "train"
"""The split of the voices that are not held out; every other split has the held-out ones."""


def is_held_out(voice: str) -> bool:
    """Whether a voice, or any voice of a blend, is held out."""
    return any(name in re.split(r"[^a-z_]+", voice) for name in HELD_OUT)


def draw_unit(seed: int, id: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the arguments alone, evenly spread over ids."""
    digest = hashlib.blake2b(f"{seed}:{purpose}:{id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def list_voices(
    voices: Mapping[str, str], language: str, split: str, *, blends: bool = False
) -> list[str]:
    """The voices of a language that may speak in a split, sorted.

    TRAIN selects all but the held-out voices; any other split only those. `blends` adds the
    averages of any two of one accent and sex (the first two letters), "af_sky+af_bella".
    """
    names = sorted(
        voice
        for voice, spoken in voices.items()
        if spoken == language and voice not in UNFIT and is_held_out(voice) == (split != TRAIN)
    )
    if not names:
        raise ValueError(
            f"no voice for language {language!r} in split {split!r} among {sorted(voices)}"
        )
    if blends:
        pairs = itertools.combinations(names, 2)
        names = sorted([*names, *(f"{a}+{b}" for a, b in pairs if a[:2] == b[:2])])
    return names


def choose_voice(
    voices: Mapping[str, str],
    language: str,
    split: str,
    *,
    seed: int,
    id: str,
    blends: bool = False,
) -> str:
    """The voice of a record, one of `list_voices`."""
    names = list_voices(voices, language, split, blends=blends)
    return names[int(draw_unit(seed, id, "voice") * len(names))]


def choose_speed(slowest: float, fastest: float, *, seed: int, id: str) -> float:
    """The speed of a record, evenly spread between two bounds."""
    return slowest + (fastest - slowest) * draw_unit(seed, id, "speed")
