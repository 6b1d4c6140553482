"""Choice benchmarks: sStoryCloze, zh-sStoryCloze and sCMMLU (S2SBench), CMMLU, StoryCloze.

Context and endings are spoken or written: s->t hears the context, t->t reads it. Whole spoken
stories (TWIST) have no context; their codes are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ba_jax.audio import AudioError
from ba_jax.data.record import Part, Record
from ba_jax.evals.bench import Bench
from ba_jax.evals.benchmarks import cmmlu, s2sbench, story_cloze
from ba_jax.evals.benchmarks.choice import Choice
from ba_jax.evals.benchmarks.folders import Benchmarks, spoken_part
from ba_jax.evals.items import EvalError, EvalItem
from ba_jax.evals.suites.comparison import ChoiceItem, Comparison
from ba_jax.types import Example, Failure, Segment
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_ENCODER

INSTRUCTIONS: Mapping[str, str] = {
    "en": "Below is a segment of alternating speech and text content: ",
    "zh": "下面是一段语音和文本交错的内容：",
}
"""Text before a context: S2SBench's for Baichuan-Audio, for speech and text alike."""
CONTEXTS = ("spoken", "written")


class ChoiceBenchmark(Comparison):
    """A benchmark's choices, from the folder in `EvalSettings.benchmarks`.

    Args:
      name, components: attributes of the suite.
      load: loads the choices that the settings name.
      context: "spoken" or "written".
    """

    def __init__(
        self,
        name: str,
        components: tuple[str, ...],
        load: Callable[[Benchmarks], Sequence[Choice]],
        context: str,
    ):
        if context not in CONTEXTS:
            raise ValueError(f"context {context!r}, expected one of {CONTEXTS}")
        self.name, self.components = name, components
        self._load, self._context = load, context

    def items(self, bench: Bench) -> list[EvalItem]:
        """Return choices.

        Raises:
          EvalError, LayoutError: a choice without such a context, or as the loader.
        """
        settings = bench.settings.benchmarks
        items = []
        for number, choice in enumerate(settings.apply_limit(self._load(settings))):
            context = choice.audio if self._context == "spoken" else choice.text
            if not choice.is_spoken and not context:
                raise EvalError(f"{self.name}: {choice.id} has no {self._context} context")
            parts = (Part(choice.text or choice.id),)
            record = Record(choice.id, "text", choice.language, parts)
            items.append(
                ChoiceItem(choice.id, number, choice.language, record, choice.subset, choice=choice)
            )
        return items

    def examples(self, bench: Bench, items: Sequence[ChoiceItem]) -> list[list[Example] | Failure]:
        """Put each ending after the instruction and the context."""
        codes, failed = self._encode(bench, items)
        examples: list[list[Example] | Failure] = []
        for item in items:
            if item.id in failed:
                examples.append(failed[item.id])
                continue
            choice, context = item.choice, None
            if (item.id, -1) in codes:
                context = Segment(codes_NQ=codes[item.id, -1])
            elif choice.text:
                context = Segment(choice.text)
            before = (Segment(INSTRUCTIONS[item.language]), context) if context else ()
            examples.append(
                [
                    Example(
                        f"{item.id}/{number}",
                        "intlv",
                        (*before, _ending(choice, number, codes.get((item.id, number)))),
                        item.language,
                        source=choice.subset,
                    )
                    for number in range(len(choice.endings))
                ]
            )
        return examples

    def _encode(
        self, bench: Bench, items: Sequence[ChoiceItem]
    ) -> tuple[dict[tuple[str, int], np.ndarray], dict[str, Failure]]:
        """Return codes by (id, number of the ending; -1: the context), and the failed items."""
        parts: dict[tuple[str, int], Part] = {}
        failed: dict[str, Failure] = {}
        for item in items:
            choice = item.choice
            recordings = list(enumerate(choice.endings)) if choice.is_spoken else []
            if self._context == "spoken" and choice.audio is not None:
                recordings.append((-1, choice.audio))
            for number, audio in recordings:
                try:
                    parts[item.id, number] = spoken_part(audio)
                except (AudioError, OSError) as error:
                    failed[item.id] = Failure(f"recording: {error}")
        encoded = {}
        results = bench.encode(list(parts.values())) if parts else []
        for key, codes_NQ in zip(parts, results, strict=True):
            if isinstance(codes_NQ, Failure):
                failed[key[0]] = codes_NQ
            else:
                encoded[key] = codes_NQ
        return encoded, failed


def _ending(choice: Choice, number: int, codes_NQ: np.ndarray | None) -> Segment:
    if codes_NQ is not None:
        return Segment(codes_NQ=codes_NQ, loss=True, spoken=True)
    # English sentences are joined by a space, Chinese ones by nothing.
    space = " " if choice.language == "en" and choice.text else ""
    return Segment(space + choice.endings[number], loss=True)


def _s2sbench(settings: Benchmarks) -> list[Choice]:
    subsets = settings.subsets or tuple(s2sbench.SUBSETS)
    return s2sbench.load(settings.folder("s2sbench"), subsets)


def _cmmlu(settings: Benchmarks) -> list[Choice]:
    return cmmlu.load(settings.folder("cmmlu"))


def _story_cloze(settings: Benchmarks) -> list[Choice]:
    return story_cloze.load_csv(settings.folder("story_cloze"))


def _spoken_story_cloze(settings: Benchmarks) -> list[Choice]:
    return story_cloze.load_pairs(settings.folder("spoken_story_cloze"))


_TEXT, _SPEECH = ("llm",), (*LANGUAGE_MODEL, *SPEECH_ENCODER)

SUITES = (
    ChoiceBenchmark("s2sbench_s2t", _SPEECH, _s2sbench, "spoken"),
    ChoiceBenchmark("s2sbench_t2t", _TEXT, _s2sbench, "written"),
    ChoiceBenchmark("cmmlu_s2t", _SPEECH, _cmmlu, "spoken"),
    ChoiceBenchmark("cmmlu_t2t", _TEXT, _cmmlu, "written"),
    ChoiceBenchmark("story_cloze_t2t", _TEXT, _story_cloze, "written"),
    ChoiceBenchmark("spoken_story_cloze", _SPEECH, _spoken_story_cloze, "spoken"),
)
