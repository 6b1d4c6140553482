"""Closed questions answered: spoken or written questions, written or spoken answers.

A model that reads the question back before it answers (`ExampleMaker.read_back`) is scored by the
last line that it writes; the lines before are kept as the item's `read_back`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ba_jax.data.record import Record
from ba_jax.evals import text
from ba_jax.evals.base import Bench, EvalError, Outcome


def spoken_to_text(bench: Bench) -> Outcome:
    """`qa_s2t`: a spoken question, answered in writing (task aqa)."""
    return _written(bench, "qa_s2t", "aqa", {})


def text_to_text(bench: Bench) -> Outcome:
    """`qa_t2t`: a written question, answered in writing: the ability to keep."""
    return _written(bench, "qa_t2t", "sft", {"questions": "written", "answers": "written"})


def spoken_to_spoken(bench: Bench) -> Outcome:
    """`qa_s2s`: a spoken question, answered in text and then speech, as the judge hears it.

    Right as `text.answers` says. `qa_s2s_exact` asks for equality, `qa_s2s_text` scores the text
    that was written before the speech, and `qa_s2s_on_reference` the judge itself, on the real
    recordings of the answers.
    """
    dialogues = _dialogues(bench)
    dialogues = [d for d in dialogues if d.parts[1].is_spoken]
    if not dialogues:
        raise EvalError("qa_s2s: no spoken answer in the data")
    prompts = bench.prompts(dialogues, "sft", questions="spoken", answers="spoken")
    made = bench.generate(prompts, "answering in speech")
    waves = bench.speech_of([None if one is None else one.codes_NQ for one in made])
    languages = [dialogue.language for dialogue in dialogues]
    heard = bench.hear(waves, languages, "listening to answers")
    real = [bench.wave(dialogue.parts[1]) for dialogue in dialogues]
    heard_real = bench.hear(real, languages, "listening to the reference")
    items = []
    for i, dialogue in enumerate(dialogues):
        answer, language = dialogue.parts[1].text, dialogue.language
        read_back, written = _lines(bench.text_of(made[i]))
        tally = text.score(answer, heard[i], language, text.SAID[language])
        items.append(
            {
                **_item(bench, dialogue, heard[i]),
                "errors": tally.errors,
                "units": tally.units,
                "correct": text.answers(answer, heard[i], language),
                "exact": text.equal(answer, heard[i], language, text.SAID[language]),
                "text": written,
                "read_back": read_back,
                "text_correct": text.equal(answer, written, language, text.WRITTEN[language]),
                "heard_on_reference": heard_real[i],
                "correct_on_reference": text.answers(answer, heard_real[i], language),
                "frames": 0 if made[i] is None else len(made[i].codes_NQ),
                "complete": made[i] is not None and made[i].complete,
            }
        )
        items[-1]["audio"] |= {
            "generated": bench.save("qa_s2s", dialogue.id, waves[i]),
            "reference": bench.save("reference", f"{dialogue.id}-answer", real[i]),
        }
    figures = _shares("qa_s2s", items)
    for name in ("exact", "text_correct", "correct_on_reference"):
        key = {"text_correct": "text", "correct_on_reference": "on_reference"}.get(name, name)
        figures[f"qa_s2s_{key}"] = _share(items, name)
    figures["qa_s2s_judge"] = bench.judge.names
    figures["qa_s2s_scored"] = (
        "words in English, toneless syllables in Mandarin; equal, or the key right and at most "
        "a third of the units wrong"
    )
    return Outcome(figures, items)


def _dialogues(bench: Bench) -> list[Record]:
    if not bench.dialogues:
        raise EvalError("qa: no dialogue of a spoken question and an answer in the data")
    return bench.dialogues


def _written(bench: Bench, name: str, task: str, options: dict[str, str]) -> Outcome:
    """Exact match of written answers after normalisation."""
    dialogues = _dialogues(bench)
    made = bench.generate(bench.prompts(dialogues, task, **options), f"answering ({name})")
    items = []
    for dialogue, generated in zip(dialogues, made, strict=True):
        answer, language = dialogue.parts[1].text, dialogue.language
        read_back, hypothesis = _lines(bench.text_of(generated))
        tally = text.score(answer, hypothesis, language, text.WRITTEN[language])
        items.append(
            {
                **_item(bench, dialogue, hypothesis),
                "read_back": read_back,
                "errors": tally.errors,
                "units": tally.units,
                "correct": text.equal(answer, hypothesis, language, text.WRITTEN[language]),
            }
        )
    return Outcome(_shares(name, items), items)


def _lines(written: str) -> tuple[str, str]:
    """(what stands before the last line, the last line)."""
    before, _, last = written.rpartition("\n")
    return before.strip(), last.strip()


def _item(bench: Bench, dialogue: Record, hypothesis: str) -> dict[str, Any]:
    question = dialogue.parts[0]
    return {
        "id": dialogue.id,
        "language": dialogue.language,
        "question": question.text,
        "reference": dialogue.parts[1].text,
        "hypothesis": hypothesis,
        "audio": {
            "heard": bench.save("reference", f"{dialogue.id}-question", bench.wave(question))
        },
    }


def _shares(name: str, items: Sequence[dict]) -> dict[str, Any]:
    figures: dict[str, Any] = {name: _share(items, "correct"), f"{name}_items": len(items)}
    for language in ("en", "zh"):
        own = [item for item in items if item["language"] == language]
        if own:
            figures[f"{name}_{language}"] = _share(own, "correct")
    return figures


def _share(items: Sequence[dict], key: str) -> float:
    return sum(bool(item[key]) for item in items) / len(items)
