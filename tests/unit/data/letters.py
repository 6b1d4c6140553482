"""A tokenizer of one token a character, and sequences written out as words."""

from __future__ import annotations

import dataclasses

from ba_jax.data.sequence import TokenSequence
from ba_jax.vocab import AudioTokens

SIZES = (64, 32, 16)
TOKENS = AudioTokens(*range(10, 19))
ROLES = {"system": 1, "user": 2, "assistant": 3}
NAMES = {
    0: "</s>",
    1: "<B_SYS>",
    2: "<C_Q>",
    3: "<C_A>",
    **{v: k for k, v in dataclasses.asdict(TOKENS).items()},
}


class Letters:
    """A tokenizer with one token a character."""

    audio_tokens = TOKENS
    eos_id = 0

    def encode(self, text: str) -> list[int]:
        return [1000 + ord(c) for c in text.strip()]

    def token_id(self, name: str) -> int:
        return ROLES[name]


def describe(sequence: TokenSequence) -> str:
    """The sequence as words: `*` marks a text target, `^` an audio target, runs are merged.

    A frame of codes (c, c + 1, c + 2) is [c], one that waits for its audio is [?].
    """
    waiting = {i for span in sequence.spans for i in range(span.start, span.start + span.frames)}
    runs: list[list[str]] = []
    for place, (token, codes_Q, text, audio) in enumerate(
        zip(
            sequence.ids_L,
            sequence.codes_LQ.tolist(),
            sequence.text_target_L,
            sequence.audio_target_L,
            strict=True,
        )
    ):
        mark = "*" * int(text) + "^" * int(audio)
        if token >= 1000:
            if runs and runs[-1][0] == "letters" and runs[-1][2] == mark:
                runs[-1][1] += chr(token - 1000)
            else:
                runs.append(["letters", chr(token - 1000), mark])
            assert not any(codes_Q)
            continue
        name = NAMES[int(token)]
        if name == "audio_pad" and place in waiting:
            name = "[?]"
            assert not any(codes_Q)
        elif name == "audio_pad":
            name = f"[{codes_Q[0]}]"
            assert codes_Q == [codes_Q[0], codes_Q[0] + 1, codes_Q[0] + 2]
        elif name == "audiogen_end":
            assert tuple(codes_Q) == SIZES  # the end class
        else:
            assert not any(codes_Q)
        runs.append([name, name, mark])
    return " ".join(run[1] + run[2] for run in runs)
