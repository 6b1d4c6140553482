"""Suites that compare the likelihoods of endings: choice benchmarks, and closed questions.

The ending with the highest mean log-likelihood of its tokens or codes is chosen (perplexity in the
field, and the measure of S2SBench); a second figure uses the total. A tie is no right choice. A
failed item is wrong.

A model that transcribes speech before it answers (`EvalSettings.transcribe_first`) has learnt
likelihoods below that transcript alone. It writes down a spoken context first, and its endings are
scored below the line that it wrote. If it wrote no whole line they follow the speech, as without
`transcribe_first`. Whole spoken stories have no context to transcribe.
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

from ba_jax.data.corpus import facts
from ba_jax.data.examples import TRANSCRIPT_END, ExampleMaker
from ba_jax.data.record import Part, Record
from ba_jax.data.sequence import to_sequence
from ba_jax.evals.bench import Bench
from ba_jax.evals.benchmarks import choices
from ba_jax.evals.benchmarks.choices import Choice
from ba_jax.evals.items import (
    EvalError,
    EvalItem,
    Items,
    Line,
    Lines,
    Outputs,
    Results,
    replace_usable,
)
from ba_jax.evals.recordings import read_part
from ba_jax.evals.scoring import bootstrap
from ba_jax.evals.settings import Benchmarks
from ba_jax.evals.suite import Suite
from ba_jax.sampling.likelihood import LENGTHS, Scored
from ba_jax.sampling.prompt import Prompt
from ba_jax.types import Example, Failure, Segment
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_ENCODER


class Comparison(Suite):
    """Scores every ending of each choice (`item.source`); subclasses define the context.

    Figures: `name`, the share of choices whose right ending has the highest mean log-likelihood;
    `name_total`, by the sum; `name` of each subset and language; `name_pairs`, for more than two
    endings, the share of wrong endings below the right one, as S2SBench scores sCMMLU;
    `name_transcribe_first`, the share of contexts that the model transcribed.
    """

    def examples(self, bench: Bench, items: Items) -> list[list[Example] | Failure]:
        """Make an example for each ending of an item: its last segment, the only one with loss."""
        raise NotImplementedError

    def generate(self, bench: Bench, items: Items) -> Results:
        """Return each ending's log-likelihood, `nats`, and number of `tokens` or codes.

        `transcribe_first` is the line above the endings, of a model that transcribes.
        """
        examples = self.examples(bench, items)
        transcripts = _transcribe(bench, items, examples)
        encoded = [
            _encode_endings(bench, endings, transcript)
            for endings, transcript in zip(examples, transcripts, strict=True)
        ]

        def score(usable: list[int]) -> Results:
            endings = [ending for i in usable for ending in encoded[i]]
            scores = iter(bench.log_likelihoods(endings, f"scoring ({self.name})"))
            lines: Results = []
            for i in usable:
                likelihoods = [next(scores) for _ in encoded[i]]
                if not all(math.isfinite(likelihood.total) for likelihood in likelihoods):
                    lines.append(Failure("a likelihood that is not finite"))
                    continue
                line = {
                    "nats": [likelihood.total for likelihood in likelihoods],
                    "tokens": [likelihood.tokens + likelihood.codes for likelihood in likelihoods],
                }
                if transcripts[i] is not None:
                    line["transcribe_first"] = transcripts[i]
                lines.append(line)
            return lines

        return replace_usable(encoded, score)

    def score(self, bench: Bench, item: EvalItem, outputs: Outputs) -> Line:
        """Choose the likeliest ending; a failed item has chosen none."""
        choice = item.source
        names = [ending.name if choice.is_spoken else ending for ending in choice.endings]
        row: Line = {
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
        if not (generated := outputs.generated):
            return row
        totals = generated["nats"]
        means = [total / count for total, count in zip(totals, generated["tokens"], strict=True)]
        wins = _count_wins(means, choice.right)
        row |= {
            "hypothesis": names[int(np.argmax(means))],
            "correct": wins == len(names) - 1,
            "correct_total": _count_wins(totals, choice.right) == len(names) - 1,
            "pairs_won": wins,
            "nats": [round(total, 4) for total in totals],
            "tokens": generated["tokens"],
        }
        if "transcribe_first" in generated:
            row["transcribe_first"] = generated["transcribe_first"]
        return row

    def figures(self, bench: Bench, rows: Lines) -> dict[str, Any]:
        name = self.name
        figures = bootstrap.share_figures(name, rows, "correct")
        figures |= bootstrap.share_figures(f"{name}_total", rows, "correct_total")
        wrong_endings = [len(row.get("endings", "ab")) - 1 for row in rows]
        figures[f"{name}_items"] = len(rows)
        figures[f"{name}_chance"] = sum(1 / (count + 1) for count in wrong_endings) / len(rows)
        for key in ("language", "subset"):
            groups = collections.defaultdict(list)
            for row in rows:
                groups[row.get(key, "")].append(row)
            for value, members in sorted(groups.items()):
                if value and len(groups) > 1:
                    figures |= bootstrap.share_figures(f"{name}_{value}", members, "correct")
        if max(wrong_endings) > 1:
            wins = sum(row.get("pairs_won", 0) for row in rows)
            figures[f"{name}_pairs"] = wins / sum(wrong_endings)
        figures[f"{name}_scored"] = (
            "the ending with the highest mean log-likelihood of its tokens; _total: of the sum"
        )
        transcripts = [row["transcribe_first"] for row in rows if "transcribe_first" in row]
        if transcripts:
            figures[f"{name}_transcribe_first"] = sum(map(bool, transcripts)) / len(transcripts)
            figures[f"{name}_scored"] += "; below the transcript that the model wrote"
        return figures


def _transcribe(
    bench: Bench, items: Items, examples: Sequence[Sequence[Example] | Failure]
) -> list[str | Failure | None]:
    """Return the line that the model writes before it answers an item; "" if it writes none.

    None if no transcript is asked for: it is switched off, the context is written or the endings
    are spoken.
    """
    transcripts: list[str | Failure | None] = [None] * len(items)
    prompts: dict[int, Prompt | Failure] = {}
    for i, endings in enumerate(examples):
        if not bench.settings.transcribe_first or isinstance(endings, Failure):
            continue
        *context, ending = endings[0].segments
        if ending.is_audio or not any(segment.is_audio for segment in context):
            continue
        try:
            prompts[i] = bench.model.prompt(endings[0])
        except ValueError as error:  # of sequences, codes and prompts
            prompts[i] = Failure(str(error))
    if not prompts:
        return transcripts
    numbers = [items[i].number for i in prompts]
    outputs = bench.generate(list(prompts.values()), "transcribing", numbers)
    for i, output in zip(prompts, outputs, strict=True):
        if isinstance(output, Failure):
            transcripts[i] = output
        else:
            line, end, _ = bench.model.tokenizer.decode(output.ids).partition(TRANSCRIPT_END)
            transcripts[i] = line.strip() if end else ""
    return transcripts


def _encode_endings(
    bench: Bench, examples: Sequence[Example] | Failure, transcript: str | Failure | None
) -> list[Scored] | Failure:
    """Encode examples, below a transcript that is read and not scored, if there is one."""
    for value in (examples, transcript):
        if isinstance(value, Failure):
            return value
    if transcript:
        examples = [_put_below(example, transcript) for example in examples]
    tokenizer, tokens = bench.model.tokenizer, bench.model.config.tokens
    try:
        sequences = [to_sequence(e, tokenizer, bench.model.codebook_sizes) for e in examples]
    except ValueError as error:  # of sequences and codes
        return Failure(str(error))
    endings = [Scored.of(sequence, tokens, tokenizer.eos_id) for sequence in sequences]
    if transcript:
        endings = [e.without_first(_count_first_line(bench, e)) for e in endings]
    longest = max(map(len, endings))
    if longest > LENGTHS[-1]:
        return Failure(f"{longest} positions, expected at most {LENGTHS[-1]}")
    if not all(ending.text_L.any() or ending.audio_L.any() for ending in endings):
        return Failure("an ending without a token")
    return endings


def _put_below(example: Example, transcript: str) -> Example:
    """Put the example's ending below a transcript."""
    *context, ending = example.segments
    text = f"{transcript}{TRANSCRIPT_END}{ending.text.lstrip()}"
    segments = (*context, dataclasses.replace(ending, text=text))
    return dataclasses.replace(example, segments=segments)


def _count_first_line(bench: Bench, ending: Scored) -> int:
    """Count the scored text tokens up to the end of the first line."""
    ids = ending.ids_L[ending.text_L].tolist()
    counts = range(1, len(ids) + 1)
    return next(n for n in counts if TRANSCRIPT_END in bench.model.tokenizer.decode(ids[:n]))


def _count_wins(values: Sequence[float], right: int) -> int:
    """Count the other values below the right one."""
    return sum(values[right] > value for i, value in enumerate(values) if i != right)


# --- benchmarks -----------------------------------------------------------------------------------

INSTRUCTIONS: Mapping[str, str] = {
    "en": "Below is a segment of alternating speech and text content: ",
    "zh": "下面是一段语音和文本交错的内容：",
}
"""Text before a context: S2SBench's for Baichuan-Audio, for speech and text alike."""
_LOADERS: Mapping[str, Callable[[Benchmarks], list[Choice]]] = {
    "s2sbench": lambda b: choices.load_s2sbench(b.folder("s2sbench"), b.subsets),
    "cmmlu": lambda b: choices.load_cmmlu(b.folder("cmmlu")),
    "story_cloze": lambda b: choices.load_story_cloze(b.folder("story_cloze")),
    "spoken_story_cloze": lambda b: choices.load_spoken_story_cloze(b.folder("spoken_story_cloze")),
}
_SPEECH = (*LANGUAGE_MODEL, *SPEECH_ENCODER)


class ChoiceBenchmark(Comparison):
    """A benchmark's choices, from the folder in `EvalSettings.benchmarks`.

    s->t hears the context, t->t reads it. Whole spoken stories (TWIST) have no context; their codes
    are scored.
    """

    def __init__(self, name: str, benchmark: str, *, is_spoken: bool):
        self.name, self.components = name, _SPEECH if is_spoken else ("llm",)
        self._benchmark, self._is_spoken = benchmark, is_spoken

    def items(self, bench: Bench) -> list[EvalItem]:
        """Return choices; raises EvalError for one without such a context."""
        settings = bench.settings.benchmarks
        items = []
        for choice in settings.apply_limit(_LOADERS[self._benchmark](settings)):
            if not choice.is_spoken and not (choice.audio if self._is_spoken else choice.text):
                kind = "spoken" if self._is_spoken else "written"
                raise EvalError(f"{self.name}: {choice.id} has no {kind} context")
            item = EvalItem(choice.id, len(items), choice.language, None, source=choice)
            items.append(item)
        return items

    def examples(self, bench: Bench, items: Items) -> list[list[Example] | Failure]:
        """Put each ending after the instruction and the context."""
        codes, failed = self._encode_recordings(bench, items)
        examples: list[list[Example] | Failure] = []
        for item in items:
            if item.id in failed:
                examples.append(failed[item.id])
                continue
            choice, before = item.source, ()
            if (item.id, -1) in codes:
                before = (Segment(codes_NQ=codes[item.id, -1]),)
            elif choice.text:
                before = (Segment(choice.text),)
            if before:
                before = (Segment(INSTRUCTIONS[item.language]), *before)
            # English sentences are joined by a space, Chinese ones by nothing.
            space = " " if choice.language == "en" and choice.text else ""
            endings = []
            for number, ending in enumerate(choice.endings):
                if choice.is_spoken:
                    codes_NQ = codes[item.id, number]
                    last = Segment(codes_NQ=codes_NQ, loss=True, spoken=True)
                else:
                    last = Segment(space + ending, loss=True)
                segments, name = (*before, last), f"{item.id}/{number}"
                endings.append(
                    Example(name, "intlv", segments, item.language, source=choice.subset)
                )
            examples.append(endings)
        return examples

    def _encode_recordings(
        self, bench: Bench, items: Items
    ) -> tuple[dict[tuple[str, int], np.ndarray], dict[str, Failure]]:
        """Return codes by (id, number of the ending; -1: the context), and the failed items."""
        parts: dict[tuple[str, int], Part] = {}
        failed: dict[str, Failure] = {}
        for item in items:
            choice = item.source
            recordings = list(enumerate(choice.endings)) if choice.is_spoken else []
            if self._is_spoken and choice.audio is not None:
                recordings.append((-1, choice.audio))
            for number, audio in recordings:
                part = read_part(audio)
                if isinstance(part, Failure):
                    failed[item.id] = part
                else:
                    parts[item.id, number] = part
        encoded = {}
        for key, codes_NQ in zip(parts, bench.encode(list(parts.values())), strict=True):
            if isinstance(codes_NQ, Failure):
                failed[key[0]] = codes_NQ
            else:
                encoded[key] = codes_NQ
        return encoded, failed


# --- closed questions of the data -----------------------------------------------------------------


class Cloze(Comparison):
    """A miniature of sStoryCloze: the right answer against another one of its category.

    Args:
      name, components: attributes of the suite.
      task, options: arguments of `ExampleMaker`, which lays out the questions.
    """

    def __init__(self, name: str, components: tuple[str, ...], task: str, **options: str):
        self.name, self.components = name, components
        self._task, self._maker = task, ExampleMaker(task, **options)

    def items(self, bench: Bench) -> list[EvalItem]:
        """Return dialogues; raises EvalError for an answer of no closed fact."""
        items = []
        for number, dialogue in enumerate(bench.records.dialogues):
            question, answer = dialogue.parts
            endings = (answer.text, wrong_answer(dialogue))
            choice = Choice(dialogue.id, "closed", dialogue.language, endings, 0, question.text)
            items.append(EvalItem(choice.id, number, choice.language, dialogue, source=choice))
        return items

    def examples(self, bench: Bench, items: Items) -> list[list[Example] | Failure]:
        """Make the task's training examples."""
        questions = [item.record.parts[0] for item in items]
        codes = bench.encode(questions) if self._task == "aqa" else [None] * len(items)

        def make(usable: list[int]) -> list[list[Example]]:
            examples = []
            for i in usable:
                question = questions[i]
                if codes[i] is not None:
                    question = dataclasses.replace(question, codes_NQ=codes[i])
                answers = [Part(text, role="assistant") for text in items[i].source.endings]
                records = [
                    dataclasses.replace(items[i].record, parts=(question, answer))
                    for answer in answers
                ]
                examples.append([self._maker(record) for record in records])
            return examples

        return replace_usable(codes, make)


def wrong_answer(dialogue: Record) -> str:
    """Choose another answer of the category of a closed question, the same in every process."""
    language, answer = dialogue.language, dialogue.parts[1].text
    answers = _other_answers(language).get(answer)
    if not answers:
        raise EvalError(f"{dialogue.id}: {answer!r} is no answer of the closed facts")
    return answers[zlib.crc32(dialogue.id.encode()) % len(answers)]


@functools.cache
def _other_answers(language: str) -> dict[str, tuple[str, ...]]:
    """Map an answer to the other ones of its category."""
    categories: dict[str, set[str]] = collections.defaultdict(set)
    for fact in facts.facts():
        categories[fact.category].add(fact.answers[language])
    return {
        answer: tuple(sorted(answers - {answer}))
        for answers in categories.values()
        for answer in answers
    }


SUITES = (
    Cloze("cloze_s2t", _SPEECH, "aqa"),
    Cloze("cloze_t2t", ("llm",), "sft", questions="written", answers="written"),
    ChoiceBenchmark("s2sbench_s2t", "s2sbench", is_spoken=True),
    ChoiceBenchmark("s2sbench_t2t", "s2sbench", is_spoken=False),
    ChoiceBenchmark("cmmlu_s2t", "cmmlu", is_spoken=True),
    ChoiceBenchmark("cmmlu_t2t", "cmmlu", is_spoken=False),
    ChoiceBenchmark("story_cloze_t2t", "story_cloze", is_spoken=False),
    ChoiceBenchmark("spoken_story_cloze", "spoken_story_cloze", is_spoken=True),
)
