"""The paper's tables, and the orderings that ours are compared with (arXiv 2502.17239).

Figures are those of the PDF in the public repository baichuan-inc/Baichuan-Audio.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

PAPER = "arXiv 2502.17239"
EXPECTED = "not in the paper: an expectation from the method"


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
    source: str = PAPER


@dataclasses.dataclass(frozen=True)
class PublishedTable:
    """A table of the paper.

    Attributes:
      columns: measures; error rates and accuracies in percent.
      rows: row -> a number for each column, None where the paper has none.
    """

    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]


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
TABLES: Mapping[int, PublishedTable] = {
    # LibriSpeech: mean of dev and test, clean and other; AISHELL-1: mean of dev and test.
    1: PublishedTable(
        ("WER LibriSpeech", "WER AISHELL-1", "mel MAE LibriSpeech", "mel MAE AISHELL-1"),
        {
            "no VQ": (3.8, 2.0, None, None),
            "8 codebooks": (5.3, 2.7, 0.466, 0.403),
            "6 codebooks": (5.5, 3.0, 0.485, 0.423),
            "4 codebooks": (6.3, 3.9, 0.516, 0.488),
            "1 codebook": (26.2, 19.2, 0.677, 0.553),
        },
    ),
    2: PublishedTable(
        ("no VQ", "8 codebooks"),
        {
            "Fleurs-zh, WER": (3.54, 4.15),
            "Fleurs-en, WER": (5.98, 8.64),
            "Med-zh (in house), WER": (4.39, 6.03),
            "WenetSpeech net, WER": (7.32, 8.29),
            "WenetSpeech meeting, WER": (8.54, 9.03),
            "CoVoST-2 en2zh, BLEU": (33.94, 30.4),
            "CoVoST-2 zh2en, BLEU": (21.7, 19.7),
            "Clotho AQA": (40.4, 37.2),
        },
    ),
    # LibriSpeech-dev.
    3: PublishedTable(
        ("UTMOS", "WER"),
        {
            "recordings": (4.08, 2.26),
            "without flow": (3.43, 2.84),
            "with flow": (4.05, 2.78),
        },
    ),
    4: PublishedTable(
        ("thousand hours",),
        {
            "ASR": (185,),
            "AQA": (21,),
            "S2TT": (15,),
            "INTLV": (393,),
            "TTS": (51,),
            "ITTS": (142,),
            "pure audio": (80,),
            "all": (887,),
        },
    ),
    5: PublishedTable(
        ("sStoryCloze", "zh-sStoryCloze", "sCMMLU"),
        {
            "text alone, t->t": (83.0, 76.1, 70.3),
            "one stage, s->t": (77.5, 70.1, 67.0),
            "two stages, s->t": (79.6, 72.4, 69.3),
            "TWIST, s->t": (53.3, None, None),
            "Moshi, s->t": (60.8, None, None),
            "GLM-4-Voice, s->t": (76.3, 70.3, 64.3),
        },
    ),
    6: PublishedTable(
        ("Whisper-large-v3", "Qwen2-Audio", "Baichuan-Audio"),
        {
            "Fleurs-zh": (12.4, 4.3, 3.2),
            "WenetSpeech net": (17.5, 7.3, 7.2),
            "WenetSpeech meeting": (30.8, 7.7, 8.5),
            "KeSpeech Mandarin": (None, 3.0, 2.7),
            "KeSpeech Beijing": (None, 7.5, 6.9),
            "KeSpeech Southwestern": (None, 6.2, 6.8),
            "KeSpeech Lan-Yin": (None, 6.7, 7.2),
            "KeSpeech Zhongyuan": (None, 5.0, 5.3),
            "KeSpeech Northeastern": (None, 5.5, 5.0),
            "KeSpeech Jiang-Huai": (None, 9.1, 9.9),
            "KeSpeech Ji-Lu": (None, 6.6, 6.7),
            "KeSpeech Jiao-Liao": (None, 7.0, 7.4),
        },
    ),
    7: PublishedTable(
        ("Qwen2-Audio", "Baichuan-Audio"),
        {
            "CoVoST-2 zh2en, BLEU": (22.17, 24.37),
            "CoVoST-2 en2zh, BLEU": (43.58, 45.96),
            "TTS on MED-TTS, WER": (None, 2.71),
        },
    ),
    # OpenAudioBench, judged by GPT-4o; s->s is scored on the merged output text.
    8: PublishedTable(
        ("s->t", "s->s", "GLM-4-Voice s->s"),
        {
            "Reasoning QA": (41.9, 37.9, 26.5),
            "Llama Questions": (78.4, 74.5, 71.0),
            "Web Questions": (64.5, 60.3, 51.5),
            "TriviaQA": (61.7, 54.2, 46.6),
            "AlpacaEval": (77.4, 69.6, 48.9),
        },
    ),
}

CODEBOOKS = (8, 6, 4, 1)
_CODEBOOKS = tuple(f"{count} codebooks" if count > 1 else "1 codebook" for count in CODEBOOKS)
_VQ = ("no VQ", "VQ")
_FLOW = ("recordings", "with flow", "without flow")
_CLOZE = ("text alone, t->t", "two stages, s->t", "one stage, s->t")


def _numbers(table: int, column: int, rows: tuple[str, ...]) -> dict[str, float]:
    """Numbers of a column, by row."""
    return {row: TABLES[table].rows[row][column] for row in rows}


CLAIMS: Mapping[int, tuple[Claim, ...]] = {
    1: (
        Claim(
            "recognition WER",
            _CODEBOOKS,
            "each codebook lowers the WER (LibriSpeech, %)",
            _numbers(1, 0, _CODEBOOKS),
        ),
        Claim(
            "WER, frozen model",
            ("no VQ", *_CODEBOOKS),
            "the baseline without VQ is ahead of all (LibriSpeech, %)",
            _numbers(1, 0, ("no VQ", *_CODEBOOKS)),
        ),
        Claim("WER of resynthesis", _CODEBOOKS, "the same of the decoded speech", source=EXPECTED),
        Claim(
            "mel MAE",
            _CODEBOOKS,
            "and the mel error (LibriSpeech)",
            _numbers(1, 2, _CODEBOOKS),
        ),
    ),
    2: (
        Claim(
            "WER en",
            _VQ,
            "quantisation costs recognition (Fleurs-en, %)",
            {"no VQ": 5.98, "VQ": 8.64},
        ),
        Claim("CER zh", _VQ, "the same (Fleurs-zh, %)", {"no VQ": 3.54, "VQ": 4.15}),
        Claim("BLEU en->zh", _VQ, "translation (CoVoST-2)", {"no VQ": 33.94, "VQ": 30.4}),
        Claim("BLEU zh->en", _VQ, "both ways (CoVoST-2)", {"no VQ": 21.7, "VQ": 19.7}),
        Claim("answers", _VQ, "and answers (Clotho AQA)", {"no VQ": 40.4, "VQ": 37.2}),
        # The paper has no errors of the decoder.
        Claim("mel MAE, other voices", _VQ, "quantisation costs acoustic detail", source=EXPECTED),
        Claim("mel MAE", _VQ, "the same", source=EXPECTED),
        Claim("WER of resynthesis", _VQ, "and intelligibility", source=EXPECTED),
    ),
    3: (
        Claim(
            "MOS (DNSMOS)",
            _FLOW,
            "flow matching raises UTMOS nearly to the recordings' (LibriSpeech-dev)",
            _numbers(3, 0, _FLOW),
        ),
        Claim("MOS (DistillMOS)", _FLOW, "the same by a second predictor", source=EXPECTED),
        Claim(
            "WER of resynthesis",
            _FLOW,
            "and lowers the WER a little (LibriSpeech-dev, %)",
            _numbers(3, 1, _FLOW),
        ),
    ),
    4: (),
    5: (
        Claim(
            "cloze",
            _CLOZE,
            "two stages lose less of the text model's accuracy than one (sStoryCloze, %); ours are "
            "answers to closed questions",
            _numbers(5, 0, _CLOZE),
        ),
        Claim(
            "questions",
            _CLOZE,
            "the same of answers that are written freely",
            source=EXPECTED,
        ),
    ),
    6: (
        Claim(
            "WER en / CER zh",
            ("this model, clean", "Whisper (judge), clean"),
            "the model is ahead of Whisper-large-v3 (Fleurs-zh, %)",
            {"this model, clean": 3.2, "Whisper (judge), clean": 12.4},
        ),
        *(
            Claim(
                "WER en / CER zh",
                (f"this model, {condition}", f"Whisper (judge), {condition}"),
                f"the same in another condition: {condition}",
                source=EXPECTED,
            )
            for condition in ("noise", "fast", "far")
        ),
    ),
    7: (
        Claim(
            "TTS WER",
            ("recordings", "this model"),
            "MED-TTS (in house, %); recordings are an expectation from the method",
            {"this model": 2.71},
        ),
    ),
    8: (
        Claim(
            "right answers",
            ("s->t", "s->s"),
            "s->s stays behind s->t on OpenAudioBench (Reasoning QA, %)",
            {"s->t": 41.9, "s->s": 37.9},
        ),
    ),
}
"""Table -> the orderings that our rows are compared with."""
