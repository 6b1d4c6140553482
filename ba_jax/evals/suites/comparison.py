"""Base of suites that compare the likelihoods of endings.

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
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ba_jax.data.examples import TRANSCRIPT_END
from ba_jax.data.sequence import to_sequence
from ba_jax.evals.bench import Bench
from ba_jax.evals.benchmarks.choice import Choice
from ba_jax.evals.items import EvalItem, Items, Line, Lines, Outputs, Results, replace_usable
from ba_jax.evals.scoring import bootstrap
from ba_jax.evals.suite import Suite
from ba_jax.sampling.likelihood import LENGTHS, Scored
from ba_jax.sampling.prompt import Prompt
from ba_jax.types import Example, Failure


@dataclasses.dataclass(frozen=True)
class ChoiceItem(EvalItem):
    """An item with the choice that it asks for."""

    choice: Choice | None = None


class Comparison(Suite):
    """Scores every ending of each choice; subclasses define the context.

    Figures: `name`, the share of choices whose right ending has the highest mean log-likelihood;
    `name_total`, by the sum; `name` of each subset and language; `name_pairs`, for more than two
    endings, the share of wrong endings below the right one, as S2SBench scores sCMMLU;
    `name_transcribe_first`, the share of contexts that the model transcribed.
    """

    def examples(self, bench: Bench, items: Sequence[ChoiceItem]) -> list[list[Example] | Failure]:
        """Make an example for each ending of an item: its last segment, the only one with loss."""
        raise NotImplementedError

    def generate(self, bench: Bench, items: Items) -> Results:
        """Return each ending's log-likelihood, `nats`, and number of `tokens` or codes.

        `transcribe_first` is the line above the endings, of a model that transcribes.
        """
        examples = self.examples(bench, items)
        transcripts = _transcribe(bench, items, examples)
        encoded = [
            _encode(bench, endings, transcript)
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
        choice = item.choice
        names = [e if isinstance(e, str) else e.name for e in choice.endings]
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
        chances = sum(1 / (count + 1) for count in wrong_endings)
        figures[f"{name}_chance"] = chances / len(rows)
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
    bench: Bench, items: Sequence[EvalItem], examples: Sequence[Sequence[Example] | Failure]
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
            continue
        line, end, _ = bench.model.tokenizer.decode(output.ids).partition(TRANSCRIPT_END)
        transcripts[i] = line.strip() if end else ""
    return transcripts


def _put_below(example: Example, transcript: str) -> Example:
    """Put the example's ending below a transcript."""
    *context, ending = example.segments
    text = f"{transcript}{TRANSCRIPT_END}{ending.text.lstrip()}"
    ending = dataclasses.replace(ending, text=text)
    return dataclasses.replace(example, segments=(*context, ending))


def _encode(
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


def _count_first_line(bench: Bench, ending: Scored) -> int:
    """Count the scored text tokens up to the end of the first line."""
    ids = ending.ids_L[ending.text_L].tolist()
    counts = range(1, len(ids) + 1)
    return next(n for n in counts if TRANSCRIPT_END in bench.model.tokenizer.decode(ids[:n]))


def _count_wins(values: Sequence[float], right: int) -> int:
    """Count the other values below the right one."""
    return sum(values[right] > value for i, value in enumerate(values) if i != right)
