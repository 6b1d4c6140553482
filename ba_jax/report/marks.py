"""Mark the words in which two texts differ."""

from __future__ import annotations

import difflib
import re

from ba_jax.data.record import HAN

# Chinese characters count one by one, everything else by words.
_TOKENS = re.compile(rf"[{HAN}]|[^\s{HAN}]+|\s+")

Pieces = list[tuple[str, bool]]  # (text, whether it differs), adjoining


def _key(token: str) -> str:
    """Reduce a token to its letters and digits without case; "" for punctuation and space."""
    return "".join(c for c in token.casefold() if c.isalnum())


def mark_differences(reference: str, hypothesis: str) -> tuple[Pieces, Pieces]:
    """Split both texts into pieces and mark those that an edit of one into the other changes."""
    tokens = [_TOKENS.findall(text) for text in (reference, hypothesis)]
    indices = [[i for i, token in enumerate(side) if _key(token)] for side in tokens]
    keys = [[_key(side[i]) for i in kept] for side, kept in zip(tokens, indices, strict=True)]
    differ: tuple[set[int], set[int]] = (set(), set())
    matcher = difflib.SequenceMatcher(None, *keys, autojunk=False)
    for tag, a0, a1, b0, b1 in matcher.get_opcodes():
        if tag != "equal":
            differ[0].update(indices[0][a0:a1])
            differ[1].update(indices[1][b0:b1])
    return _pieces(tokens[0], differ[0]), _pieces(tokens[1], differ[1])


def _pieces(tokens: list[str], differ: set[int]) -> Pieces:
    pieces: Pieces = []
    for i, token in enumerate(tokens):
        # The space between two marked words is marked too.
        marked = i in differ or (token.isspace() and i - 1 in differ and i + 1 in differ)
        if pieces and pieces[-1][1] == marked:
            pieces[-1] = (pieces[-1][0] + token, marked)
        else:
            pieces.append((token, marked))
    return pieces
