"""Endings told apart by their likelihood: sStoryCloze, zh-sStoryCloze, sCMMLU, and a miniature.

Of the endings of a context the likeliest is chosen: by the mean over its tokens or codes (what is
called perplexity in the field, and what S2SBench scores), and by the total. Context and endings are
spoken or written: s->t hears the context, t->t reads it, and whole spoken stories (TWIST) have
neither, but codes to be scored. A tie is no right choice, and what fails is wrong and says why.

A model that transcribes what it hears before it answers (`EvalSettings.transcribe_first`) has
learnt what is likely below that transcript alone: in s->t it writes down the context, and its
endings are scored below the line that it wrote. Without a whole line they follow the speech, as
they do without `transcribe_first`. Whole spoken stories have no context to read back.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ba_jax.audio import AudioError
from ba_jax.data.corpus import facts
from ba_jax.data.examples import TRANSCRIPT_END, ExampleMaker
from ba_jax.data.record import Part, Record
from ba_jax.data.sequence import to_sequence
from ba_jax.evals.base import Bench
from ba_jax.evals.benchmarks import cmmlu, s2sbench, story_cloze
from ba_jax.evals.benchmarks.choice import Choice
from ba_jax.evals.benchmarks.folders import spoken_part
from ba_jax.evals.scoring import bootstrap
from ba_jax.evals.suite import EvalError, Item, Line, Suite
from ba_jax.sampling.likelihood import LENGTHS, Scored
from ba_jax.sampling.prompt import Prompt
from ba_jax.types import Example, Failure, Segment
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_ENCODER

INSTRUCTIONS: Mapping[str, str] = {
    "en": "Below is a segment of alternating speech and text content: ",
    "zh": "下面是一段语音和文本交错的内容：",
}
"""What comes before a context: what S2SBench gives Baichuan-Audio, for speech and text alike."""
CONTEXTS = ("spoken", "written")

_TEXT = ("llm",)


@dataclasses.dataclass(frozen=True)
class ChoiceItem(Item):
    """A choice as an item; `record` is what the embedded corpus made it of."""

    choice: Choice | None = None


class Comparison(Suite):
    """Scores every ending of each choice; subclasses say what is read before it.

    Figures: `name`, the share of choices whose right ending has the highest mean log-likelihood;
    `name_total`, by the sum; `name` of each subset and language; `name_pairs` where there are more
    than two endings: the share of others that the right one beats, as S2SBench scores sCMMLU;
    `name_transcribe_first`, where models read back: the share of contexts that were.
    """

    def examples(self, bench: Bench, items: Sequence[ChoiceItem]) -> list[list[Example] | Failure]:
        """Of each item one example an ending, which is its last segment and has loss alone."""
        raise NotImplementedError

    def generate(self, bench: Bench, items: Sequence[Item]) -> list[Line | Failure]:
        """`nats`, each ending's log-likelihood, and how many `tokens` or codes it has.

        Of a model that reads back, `transcribe_first`: the line that the endings were scored below.
        """
        examples = self.examples(bench, items)
        said = _transcribe_first(bench, items, examples)
        found: list[Any] = [
            _scored(bench, own, line) for own, line in zip(examples, said, strict=True)
        ]
        flat = [one for own in found if not isinstance(own, Failure) for one in own]
        scores = iter(bench.score(flat, f"scoring ({self.name})") if flat else ())
        for i, own in enumerate(found):
            if isinstance(own, Failure):
                continue
            made = [next(scores) for _ in own]
            if all(math.isfinite(one.total) for one in made):
                found[i] = {
                    "nats": [one.total for one in made],
                    "tokens": [one.tokens + one.codes for one in made],
                } | ({} if said[i] is None else {"transcribe_first": said[i]})
            else:
                found[i] = Failure("a likelihood that is not finite")
        return found

    def score(
        self, bench: Bench, item: Item, made: Line | None, given: Line | None, judged: Line | None
    ) -> Line:
        """Which ending is likeliest; what failed has chosen none."""
        choice = item.choice
        names = [e if isinstance(e, str) else e.name for e in choice.endings]
        row: Line = {
            "id": item.id,
            "language": item.language,
            "subset": choice.subset,
            "question": choice.text,
            "endings": names,
            "reference": names[choice.right],
            "hypothesis": "",
            "correct": False,
            "correct_total": False,
            "pairs_won": 0,
            "audio": {},
        }
        if made is None:
            return row
        totals = made["nats"]
        means = [total / count for total, count in zip(totals, made["tokens"], strict=True)]
        won = _wins(means, choice.right)
        return (
            row
            | {
                "hypothesis": names[int(np.argmax(means))],
                "correct": won == len(names) - 1,
                "correct_total": _wins(totals, choice.right) == len(names) - 1,
                "pairs_won": won,
                "nats": [round(total, 4) for total in totals],
                "tokens": made["tokens"],
            }
            | {key: made[key] for key in ("transcribe_first",) if key in made}
        )

    def figures(self, bench: Bench, rows: Sequence[Line]) -> dict[str, Any]:
        """Shares of right choices."""
        name = self.name
        found = bootstrap.share_figures(name, rows, "correct")
        found |= bootstrap.share_figures(f"{name}_total", rows, "correct_total")
        others = [len(row.get("endings", "ab")) - 1 for row in rows]
        found[f"{name}_items"] = len(rows)
        found[f"{name}_chance"] = sum(1 / (count + 1) for count in others) / len(rows)
        for key in ("language", "subset"):
            groups = collections.defaultdict(list)
            for row in rows:
                groups[row.get(key, "")].append(row)
            for value, own in sorted(groups.items()):
                if value and len(groups) > 1:
                    found |= bootstrap.share_figures(f"{name}_{value}", own, "correct")
        if max(others) > 1:
            found[f"{name}_pairs"] = sum(row.get("pairs_won", 0) for row in rows) / sum(others)
        found[f"{name}_scored"] = (
            "the ending with the highest mean log-likelihood of its tokens; _total: of the sum"
        )
        lines = [row["transcribe_first"] for row in rows if "transcribe_first" in row]
        if lines:
            found[f"{name}_transcribe_first"] = sum(map(bool, lines)) / len(lines)
            found[f"{name}_scored"] += "; below the transcript that the model wrote"
        return found


def _transcribe_first(
    bench: Bench, items: Sequence[Item], examples: Sequence[Sequence[Example] | Failure]
) -> list[str | Failure | None]:
    """Of each item the line that the model writes before it answers; "" where it writes none.

    None where none is asked for: by the settings, or as nothing is heard or the endings are spoken.
    """
    said: list[Any] = [None] * len(items)
    asked: dict[int, Prompt | Failure] = {}
    for i, own in enumerate(examples):
        if not bench.settings.transcribe_first or isinstance(own, Failure):
            continue
        *before, ending = own[0].segments
        if ending.is_audio or not any(segment.is_audio for segment in before):
            continue
        try:
            asked[i] = bench.model.prompt(own[0])
        except ValueError as error:  # of sequences, codes and prompts
            asked[i] = Failure(str(error))
    if not asked:
        return said
    numbers = [items[i].number for i in asked]
    made = bench.generate(list(asked.values()), "reading back", numbers)
    for i, one in zip(asked, made, strict=True):
        if isinstance(one, Failure):
            said[i] = one
            continue
        line, end, _ = bench.model.tokenizer.decode(one.ids).partition(TRANSCRIPT_END)
        said[i] = line.strip() if end else ""
    return said


def _below(example: Example, line: str) -> Example:
    """The example with its ending below a line."""
    *before, ending = example.segments
    text = f"{line}{TRANSCRIPT_END}{ending.text.lstrip()}"
    return dataclasses.replace(example, segments=(*before, dataclasses.replace(ending, text=text)))


def _scored(
    bench: Bench, examples: Sequence[Example] | Failure, line: str | Failure | None
) -> list[Scored] | Failure:
    """The examples as tokens, below a line that is read and not scored, if there is one."""
    for failed in (examples, line):
        if isinstance(failed, Failure):
            return failed
    if line:
        examples = [_below(example, line) for example in examples]
    tokenizer, config = bench.model.tokenizer, bench.model.config
    try:
        sequences = [
            to_sequence(example, tokenizer, bench.model.codebook_sizes) for example in examples
        ]
    except ValueError as error:  # of sequences and codes
        return Failure(str(error))
    made = [Scored.of(one, config.tokens, tokenizer.eos_id) for one in sequences]
    if line:
        made = [one.without_first(_line_tokens(bench, one)) for one in made]
    longest = max(map(len, made))
    if longest > LENGTHS[-1]:
        return Failure(f"{longest} positions, expected at most {LENGTHS[-1]}")
    if not all(one.text_L.any() or one.audio_L.any() for one in made):
        return Failure("an ending without a token")
    return made


def _line_tokens(bench: Bench, one: Scored) -> int:
    """How many of the tokens of text that are scored end its first line."""
    ids = one.ids_L[one.text_L].tolist()
    counts = range(1, len(ids) + 1)
    return next(n for n in counts if TRANSCRIPT_END in bench.model.tokenizer.decode(ids[:n]))


def _wins(values: Sequence[float], right: int) -> int:
    """How many others the right one lies above."""
    return sum(values[right] > value for i, value in enumerate(values) if i != right)


# --- the embedded corpus ------------------------------------------------------------------------


class Cloze(Comparison):
    """Closed questions of the data, with the right written answer and another of its category.

    Args:
      name, components: of the suite.
      task, options: of `ExampleMaker`: how questions are put.
    """

    def __init__(
        self, name: str, components: tuple[str, ...], task: str, options: Mapping[str, str]
    ):
        self.name, self.components = name, components
        self._task, self._maker = task, ExampleMaker(task, **options)

    def items(self, bench: Bench) -> list[Item]:
        """Raises EvalError: no dialogue, or an answer of no closed fact."""
        if not bench.dialogues:
            raise EvalError(f"{self.name}: no dialogue of a spoken question and an answer")
        return [
            ChoiceItem(
                dialogue.id,
                number,
                dialogue.language,
                dialogue,
                choice=Choice(
                    dialogue.id,
                    "closed",
                    dialogue.language,
                    (dialogue.parts[1].text, wrong_answer(dialogue)),
                    0,
                    dialogue.parts[0].text,
                ),
            )
            for number, dialogue in enumerate(bench.dialogues)
        ]

    def examples(self, bench: Bench, items: Sequence[ChoiceItem]) -> list[list[Example] | Failure]:
        """As the task trains them."""
        questions: list[Any] = [item.record.parts[0] for item in items]
        if self._task == "aqa":
            codes = bench.codes(questions)
            questions = [
                own if isinstance(own, Failure) else dataclasses.replace(part, codes_NQ=own)
                for part, own in zip(questions, codes, strict=True)
            ]
        found: list[list[Example] | Failure] = []
        for item, question in zip(items, questions, strict=True):
            if isinstance(question, Failure):
                found.append(question)
                continue
            answers = [Part(ending, role="assistant") for ending in item.choice.endings]
            records = [dataclasses.replace(item.record, parts=(question, a)) for a in answers]
            found.append([self._maker(record) for record in records])
        return found


def wrong_answer(dialogue: Record) -> str:
    """Another answer of the category of a closed question's, the same in every process.

    Raises:
      EvalError: an answer that is none of a closed fact.
    """
    language, answer = dialogue.language, dialogue.parts[1].text
    others = _others(language).get(answer)
    if not others:
        raise EvalError(f"{dialogue.id}: {answer!r} is no answer of the closed facts")
    return others[zlib.crc32(dialogue.id.encode()) % len(others)]


@functools.cache
def _others(language: str) -> dict[str, tuple[str, ...]]:
    """Answer -> the other ones of its category."""
    of_category: dict[str, set[str]] = collections.defaultdict(set)
    for fact in facts.facts():
        of_category[fact.category].add(fact.answers[language])
    return {
        answer: tuple(sorted(answers - {answer}))
        for answers in of_category.values()
        for answer in answers
    }


# --- benchmarks ---------------------------------------------------------------------------------


class Benchmark(Comparison):
    """A benchmark's choices, whose folder `EvalSettings.benchmarks` names.

    Args:
      name, components: of the suite.
      load: the choices of a bench's settings.
      context: "spoken" or "written".
    """

    def __init__(
        self,
        name: str,
        components: tuple[str, ...],
        load: Callable[[Bench], Sequence[Choice]],
        context: str,
    ):
        if context not in CONTEXTS:
            raise ValueError(f"context {context!r}, expected one of {CONTEXTS}")
        self.name, self.components = name, components
        self._load, self._context = load, context

    def items(self, bench: Bench) -> list[Item]:
        """Raises EvalError, LayoutError: a choice without such a context, or as the loader."""
        choices = bench.settings.benchmarks.limited(self._load(bench))
        spoken = self._context == "spoken"
        for choice in choices:
            if not choice.is_spoken and not (choice.audio if spoken else choice.text):
                raise EvalError(f"{self.name}: {choice.id} has no {self._context} context")
        return [
            ChoiceItem(
                choice.id,
                number,
                choice.language,
                Record(choice.id, "text", choice.language, (Part(choice.text or choice.id),)),
                choice.subset,
                choice=choice,
            )
            for number, choice in enumerate(choices)
        ]

    def examples(self, bench: Bench, items: Sequence[ChoiceItem]) -> list[list[Example] | Failure]:
        """The instruction, the context, and each ending."""
        heard, failed = self._hear(bench, items)
        found: list[list[Example] | Failure] = []
        for item in items:
            if item.id in failed:
                found.append(failed[item.id])
                continue
            choice = item.choice
            before: tuple[Segment, ...] = ()
            if (item.id, -1) in heard:
                before = (Segment(INSTRUCTIONS[item.language]), _heard(heard[item.id, -1]))
            elif choice.text:
                before = (Segment(INSTRUCTIONS[item.language]), Segment(choice.text))
            found.append(
                [
                    Example(
                        f"{item.id}/{number}",
                        "intlv",
                        (*before, _ending(choice, number, heard.get((item.id, number)))),
                        item.language,
                        source=choice.subset,
                    )
                    for number in range(len(choice.endings))
                ]
            )
        return found

    def _hear(
        self, bench: Bench, items: Sequence[ChoiceItem]
    ) -> tuple[dict[tuple[str, int], np.ndarray], dict[str, Failure]]:
        """Codes by (id, number of the ending; -1: the context), and the items that failed."""
        parts: dict[tuple[str, int], Part] = {}
        failed: dict[str, Failure] = {}
        for item in items:
            choice = item.choice
            spoken = list(enumerate(choice.endings)) if choice.is_spoken else []
            if self._context == "spoken" and choice.audio is not None:
                spoken.append((-1, choice.audio))
            for number, audio in spoken:
                try:
                    parts[item.id, number] = spoken_part(audio)
                except (AudioError, OSError) as error:
                    failed[item.id] = Failure(f"recording: {error}")
        codes = bench.codes(list(parts.values())) if parts else []
        heard = {}
        for key, own in zip(parts, codes, strict=True):
            if isinstance(own, Failure):
                failed[key[0]] = own
            else:
                heard[key] = own
        return heard, failed


def _heard(codes_NQ: np.ndarray) -> Segment:
    return Segment(codes_NQ=codes_NQ)


def _ending(choice: Choice, number: int, codes_NQ: np.ndarray | None) -> Segment:
    if codes_NQ is not None:
        return Segment(codes_NQ=codes_NQ, loss=True, spoken=True)
    # Between two English sentences is a space, between two Chinese ones nothing.
    space = " " if choice.language == "en" and choice.text else ""
    return Segment(space + choice.endings[number], loss=True)


def _s2sbench(bench: Bench) -> list[Choice]:
    settings = bench.settings.benchmarks
    subsets = settings.subsets or tuple(s2sbench.SUBSETS)
    return s2sbench.load(settings.folder("s2sbench"), subsets)


def _cmmlu(bench: Bench) -> list[Choice]:
    return cmmlu.load(bench.settings.benchmarks.folder("cmmlu"))


def _story_cloze(bench: Bench) -> list[Choice]:
    return story_cloze.load_csv(bench.settings.benchmarks.folder("story_cloze"))


def _spoken_story_cloze(bench: Bench) -> list[Choice]:
    return story_cloze.load_pairs(bench.settings.benchmarks.folder("spoken_story_cloze"))


def suites() -> tuple[Suite, ...]:
    """The miniature on the data; S2SBench's three; CMMLU; StoryCloze, written and spoken."""
    written = {"questions": "written", "answers": "written"}
    return (
        Cloze("cloze_s2t", (*LANGUAGE_MODEL, *SPEECH_ENCODER), "aqa", {}),
        Cloze("cloze_t2t", _TEXT, "sft", written),
        Benchmark("s2sbench_s2t", (*LANGUAGE_MODEL, *SPEECH_ENCODER), _s2sbench, "spoken"),
        Benchmark("s2sbench_t2t", _TEXT, _s2sbench, "written"),
        Benchmark("cmmlu_s2t", (*LANGUAGE_MODEL, *SPEECH_ENCODER), _cmmlu, "spoken"),
        Benchmark("cmmlu_t2t", _TEXT, _cmmlu, "written"),
        Benchmark("story_cloze_t2t", _TEXT, _story_cloze, "written"),
        Benchmark(
            "spoken_story_cloze", (*LANGUAGE_MODEL, *SPEECH_ENCODER), _spoken_story_cloze, "spoken"
        ),
    )
