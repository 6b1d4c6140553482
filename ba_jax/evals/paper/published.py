"""Claims of the paper's tables (arXiv 2502.17239), as far as they could be looked up.

The tables themselves could not be read when this was written. Numbers are those of SUMMARY, a
public summary of the paper that a language model wrote; a claim without a source is an expectation
from the method, and is marked as such.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

SUMMARY = (
    "summary of the paper in github.com/msamribeiro/speech-generation-wiki (papers/2502.17239)"
)
EXPECTED = "no source found: an expectation from the method"


@dataclasses.dataclass(frozen=True)
class Claim:
    """An ordering of a table's rows by one of its measures.

    Attributes:
      measure: column of our table.
      order: rows, the best first.
      says: the paper's ordering in words, with its data.
      numbers: row -> the paper's number, if it is known.
    """

    measure: str
    order: tuple[str, ...]
    says: str
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    source: str = SUMMARY


TITLES: Mapping[int, str] = {
    1: "Codebooks of the tokenizer",
    2: "With and without quantisation",
    3: "With and without flow matching",
    4: "Training data by task",
    5: "Language ability: text alone, one stage, two stages",
    6: "Speech recognition",
    7: "Speech translation and synthesis",
    8: "Spoken questions: written and spoken answers",
}
CODEBOOKS = (8, 6, 4, 1)
_CODEBOOKS = tuple(f"{count} codebooks" if count > 1 else "1 codebook" for count in CODEBOOKS)
_VQ = ("no VQ", "VQ")
_MOS = {"recordings": 4.08, "with flow": 4.05, "without flow": 3.43}
_WER = {"with flow": 2.78, "without flow": 2.84}
_CLOZE = {"text alone, t->t": 83.0, "two stages, s->t": 79.6, "one stage, s->t": 77.5}
_ASR = {"this model": 3.2, "Whisper (judge)": 12.4}

CLAIMS: Mapping[int, tuple[Claim, ...]] = {
    1: (
        Claim(
            "recognition WER",
            _CODEBOOKS,
            "each layer lowers the WER, up to 8 (LibriSpeech, %)",
            {"8 codebooks": 5.3, "1 codebook": 26.2},
        ),
        Claim("WER of resynthesis", _CODEBOOKS, "the same of the decoded speech", source=EXPECTED),
        Claim(
            "mel MAE",
            _CODEBOOKS,
            "8 layers balance semantics and reconstruction best; mel MAE of 8 layers",
            {"8 codebooks": 0.466},
            f"{SUMMARY}; its fall with each layer is an expectation from the method",
        ),
    ),
    2: (
        Claim("mel MAE, other voices", _VQ, "quantisation costs acoustic detail", source=EXPECTED),
        Claim("mel MAE", _VQ, "the same", source=EXPECTED),
        Claim("WER of resynthesis", _VQ, "and intelligibility", source=EXPECTED),
    ),
    3: (
        Claim(
            "MOS (DNSMOS)",
            tuple(_MOS),
            "flow matching raises UTMOS nearly to the recordings' (LibriSpeech-dev)",
            _MOS,
        ),
        Claim(
            "WER of resynthesis",
            tuple(_WER),
            "and lowers the WER a little (LibriSpeech-dev, %)",
            _WER,
        ),
    ),
    4: (),
    5: (
        Claim(
            "cloze",
            tuple(_CLOZE),
            "two stages lose less of the text model's sStoryCloze accuracy than one (%); ours are "
            "answers to closed questions",
            _CLOZE,
        ),
        Claim(
            "questions",
            tuple(_CLOZE),
            "the same of answers that are written freely",
            source=EXPECTED,
        ),
    ),
    6: (
        Claim(
            "WER en / CER zh",
            tuple(_ASR),
            "Baichuan-Audio-Base is ahead of Whisper-large-v3 (Fleurs test-zh, %)",
            _ASR,
        ),
    ),
    7: (
        Claim(
            "TTS WER",
            ("recordings", "this model"),
            "in-house MED-TTS (%); a comparison with recordings is not given",
            {"this model": 2.71},
            f"{SUMMARY}; the ordering is an expectation from the method",
        ),
    ),
    8: (
        Claim(
            "right answers",
            ("s->t", "s->s"),
            "s->s is notably behind s->t on OpenAudioBench (Reasoning QA, s->t)",
            {"s->t": 41.9},
        ),
    ),
}
"""Table -> the orderings that our rows are compared with."""
