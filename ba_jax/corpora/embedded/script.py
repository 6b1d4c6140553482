"""Scripts of the embedded corpus: the texts, splits and voices of its records.

Everything here is a function of the texts, the size and the seed. No sentence of the test and
validation splits is anywhere in the training split, neither spoken nor written, except the answers
to closed questions, which are the labels.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence

from ba_jax.corpora.embedded import voices
from ba_jax.corpora.embedded.open_part import Exchange, Sentence
from ba_jax.corpora.embedded.voices import Casting, Takes
from ba_jax.data.corpus import facts as closed
from ba_jax.data.corpus.facts import Fact
from ba_jax.data.record import LANGUAGES

OTHER = {"en": "zh", "zh": "en"}
CLOSED, HSK, CHATTERBOT = "closed", "hsk_sentences", "chatterbot"
"""`Record.source` of the three parts of the corpus."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A part of a future record; `speaker` is the index of its cast, None if it is only written."""

    text: str
    translation: str = ""
    role: str = ""
    speaker: int | None = None


@dataclasses.dataclass(frozen=True)
class Script:
    """A future record.

    Attributes:
      id, kind, language, source: as in `record.Record`.
      split: "train", "validation" or "test".
      lines: its parts.
      casts: for each speaker, the takes in order of preference; all of a speaker's lines are in a
        single voice, and speakers differ.
      limit: highest error rate of the recogniser on a line.
      repeats: its texts repeat those of other scripts, in another voice.
    """

    id: str
    split: str
    kind: str
    language: str
    source: str
    lines: tuple[Line, ...]
    casts: tuple[Takes, ...] = ()
    limit: float = 0.0
    repeats: bool = False


@dataclasses.dataclass(frozen=True)
class Size:
    """Amounts of the parts of the corpus.

    Attributes:
      questions: phrasings of a fact's question that are spoken in training, on average.
      statements: statements that are spoken alone in training, per language; the others are spoken
        in lists.
      by_assistant: statements of each fact that the assistant says too, so that its voice has
        spoken all words that it may need.
      lists: number of lists of statements, per language.
      takes: voices for each of these.
      levels: HSK levels of the spoken sentences.
      written_levels: HSK levels of the written sentences.
      sentences: HSK sentences spoken in training, in each language; None for all.
      exchanges: English chatterbot dialogues in training; None for all. Mandarin has few: all.
      passages: number of passages of HSK sentences of a topic, per language.
      open_takes: voices for each sentence, exchange and passage.
      assistant: the assistant alone speaks in training, and also says the held-out sentences.
    """

    questions: float
    statements: int
    by_assistant: int
    lists: int
    takes: int
    levels: tuple[int, ...]
    written_levels: tuple[int, ...]
    sentences: int | None
    exchanges: int | None
    passages: int
    open_takes: int
    assistant: bool = False


SIZES = {
    "embedded": Size(2.25, 110, 1, 9, 1, (1, 2), (1, 2, 3), 120, 26, 5, 1),
    "large": Size(5, 1000, 3, 60, 20, (1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 6), None, None, 100, 4),
    # The assistant's voices alone, no dialogues: speech for the decoders that give it its voice.
    "assistant": Size(0, 1000, 0, 0, 1, (1, 2, 3, 4), (), 1200, 0, 0, 1, assistant=True),
}
_SYSTEM = {"en": "Answer in one short sentence.", "zh": "请用一个短句回答。"}
"""System prompts of an eighth of the written dialogues."""

_TEST, _VALIDATION = 32, 10
"""Held-out closed questions, and closed statements, of each language."""
_OPEN_TEST, _OPEN_VALIDATION = 9, 5
"""Held-out HSK sentences of each language; half as many exchanges."""
_CLOSED_LIMIT = {"en": 0.0, "zh": 0.1}
"""Mandarin may have a wrong syllable of ten: Whisper-base errs more on it than Kokoro does."""
_OPEN_LIMIT = 0.1
_BLOCK = 12
"""Sentences in a written record."""


def write(
    sentences: Sequence[Sentence], exchanges: Sequence[Exchange], size: Size, seed: int
) -> list[Script]:
    """Write all scripts, in order; the texts are HSK's sentences and chatterbot's exchanges."""
    casting = {
        (language, split): Casting(
            (voices.ASSISTANT[language],)
            if size.assistant and split == "train"
            else voices.split_voices(language, split),
            f"{language} {split} {seed}",
        )
        for language in LANGUAGES
        for split in ("train", "validation", "test")
    }
    scripts = [
        *_write_closed(size, seed, casting),
        *_write_hsk(sentences, size, seed, casting),
        *_write_chatterbot(exchanges, size, seed, casting),
        *_write_assistant(size, seed),
    ]
    # No line but answers may be in two splits.
    held_out = {
        _normalise_text(line.text)
        for script in scripts
        if script.split != "train"
        for line in script.lines
        if not _is_answer(line)
    }
    # By chance an HSK sentence may equal a test sentence of chatterbot's.
    return [
        script
        for script in scripts
        if script.split != "train"
        or not any(
            _normalise_text(line.text) in held_out for line in script.lines if not _is_answer(line)
        )
    ]


def _normalise_text(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def _is_answer(line: Line) -> bool:
    return line.role == "assistant"


# --- the closed part ------------------------------------------------------------------------------


def _write_closed(size: Size, seed: int, casting) -> Iterator[Script]:
    facts = closed.facts()
    chance = random.Random(f"closed {seed}")
    held = {"q": _hold_out(facts, closed.QUESTIONS, seed)}
    held["s"] = _hold_out(facts, closed.STATEMENTS, seed)
    trained = {"q": [], "s": []}
    for number, fact in enumerate(facts):
        for kind, count in (("q", closed.QUESTIONS), ("s", closed.STATEMENTS)):
            # Each fact begins with another phrasing, so that all are spoken equally often.
            for i in range(count):
                phrasing = (number + i) % count
                if (fact.id, phrasing) not in held[kind]:
                    trained[kind].append((fact, phrasing))
    spoken = _select_questions(trained["q"], size.questions)
    statements = list(trained["s"])
    chance.shuffle(spoken)
    chance.shuffle(statements)

    by_id = {fact.id: fact for fact in facts}
    for language in LANGUAGES:
        for split in ("test", "validation"):
            cast = casting[language, split]
            for kind in "qs":
                for (id, phrasing), owner in held[kind].items():
                    if owner == split:
                        make = _question if kind == "q" else _statement
                        yield make([(by_id[id], phrasing)], language, split, cast, 0)
            if split == "test":
                pairs = [(by_id[id], p) for (id, p), owner in held["s"].items() if owner == split]
                yield _list(pairs[:4], language, split, cast, 0)
        cast = casting[language, "train"]
        for take in range(size.takes):
            yield from _questions(spoken, language, cast, take)
            for pair in statements[: size.statements]:
                yield _statement([pair], language, "train", cast, take)
            pairs = statements[size.statements :] or statements
            for number in range(size.lists):
                listed = [pairs[i % len(pairs)] for i in range(4 * number, 4 * number + 6)]
                yield _list(listed[: 3 + number % 4], language, "train", cast, 1000 * take + number)
        yield from _write_closed_texts(trained, language, chance)


def _hold_out(facts: Sequence[Fact], phrasings: int, seed: int) -> dict[tuple[str, int], str]:
    return closed.hold_out(facts, phrasings, _TEST, _VALIDATION, seed)


def _write_assistant(size: Size, seed: int) -> Iterator[Script]:
    """Statements repeated by the assistant: of the training split a few of each fact; with
    `size.assistant` the held-out ones."""
    facts = closed.facts()
    held = _hold_out(facts, closed.STATEMENTS, seed)
    for language in LANGUAGES:
        takes = voices.answer_takes(language)
        for number, fact in enumerate(facts):
            known = [p for p in range(closed.STATEMENTS) if (fact.id, p) not in held]
            for i in range(min(size.by_assistant, len(known))):
                pair = fact, known[(number + i) % len(known)]
                yield _statement([pair], language, "train", takes, "assistant")
            for phrasing in range(closed.STATEMENTS if size.assistant else 0):
                if split := held.get((fact.id, phrasing)):
                    yield _statement([(fact, phrasing)], language, split, takes, "assistant")


def _select_questions(pairs: list, questions: float) -> list:
    """The first phrasings of each fact, `questions` on average."""
    chosen, of_fact, number = [], {}, -1
    for fact, phrasing in pairs:
        if fact.id not in of_fact:
            number += 1
            of_fact[fact.id] = int((number + 1) * questions) - int(number * questions)
        if of_fact[fact.id] > 0:
            of_fact[fact.id] -= 1
            chosen.append((fact, phrasing))
    return chosen


def _question_lines(fact: Fact, phrasing: int, language: str, spoken: bool) -> tuple[Line, Line]:
    other = OTHER[language]
    return (
        Line(
            fact.questions[language][phrasing],
            fact.questions[other][phrasing],
            "user",
            0 if spoken else None,
        ),
        Line(fact.answers[language], fact.answers[other], "assistant", 1 if spoken else None),
    )


def _question(pairs, language: str, split: str, cast: Casting, take: int) -> Script:
    """A dialogue of one or more questions and answers."""
    (fact, phrasing), *_ = pairs
    turns = f"-{len(pairs)}turns" if len(pairs) > 1 else ""
    id = f"{language}-{fact.id}-q{phrasing}{turns}-{take}"
    lines = tuple(line for pair in pairs for line in _question_lines(*pair, language, True))
    casts = (_without_assistant(cast, language), voices.answer_takes(language))
    limit = _CLOSED_LIMIT[language]
    return Script(id, split, "dialogue", language, CLOSED, lines, casts, limit)


def _without_assistant(cast: Casting, language: str) -> Takes:
    """The next takes of a questioner, who is never the assistant."""
    takes = cast.takes()
    while takes[0][0] == voices.ASSISTANT[language]:
        takes = cast.takes()
    return tuple(take for take in takes if take[0] != voices.ASSISTANT[language])


def _questions(pairs, language: str, cast: Casting, take: int) -> Iterator[Script]:
    """Dialogues; one in ten has two questions."""
    number = 0
    while number < len(pairs):
        count = 2 if number % 10 == 0 and number + 1 < len(pairs) else 1
        yield _question(pairs[number : number + count], language, "train", cast, take)
        number += count


def _statement(pairs, language: str, split: str, cast: Casting | Takes, take: int | str) -> Script:
    """A sentence; `cast` may be the takes of a voice that repeats the sentences of others."""
    ((fact, phrasing),) = pairs
    repeats = not isinstance(cast, Casting)
    id = f"{language}-{fact.id}-s{phrasing}-{take}"
    casts = (cast if repeats else cast.takes(),)
    lines, limit = (_statement_line(fact, phrasing, language),), _CLOSED_LIMIT[language]
    return Script(id, split, "speech", language, CLOSED, lines, casts, limit, repeats)


def _statement_line(fact: Fact, phrasing: int, language: str) -> Line:
    statements = fact.statements
    return Line(statements[language][phrasing], statements[OTHER[language]][phrasing], speaker=0)


def _list(pairs, language: str, split: str, cast: Casting, number: int) -> Script:
    """Consecutive statements in a single voice."""
    id = f"{language}-{split}-list-{number}"
    lines = tuple(_statement_line(fact, phrasing, language) for fact, phrasing in pairs)
    casts, limit = (cast.takes(),), _CLOSED_LIMIT[language]
    return Script(id, split, "interleaved", language, CLOSED, lines, casts, limit)


def _write_closed_texts(trained, language: str, chance: random.Random) -> Iterator[Script]:
    """All training texts in writing: questions, statements, translations."""

    def script(id: str, kind: str, lines) -> Script:
        return Script(f"{language}-{id}", "train", kind, language, CLOSED, tuple(lines))

    other = OTHER[language]
    for number, (fact, phrasing) in enumerate(trained["q"]):
        lines = _question_lines(fact, phrasing, language, False)
        if number % 8 == 0:
            lines = (Line(_SYSTEM[language], _SYSTEM[other], "system"), *lines)
        yield script(f"{fact.id}-q{phrasing}-written", "dialogue", lines)
    space = " " if language == "en" else ""
    asked = [
        Line(f"{fact.questions[language][p]}{space}{fact.answers[language]}")
        for fact, p in trained["q"]
    ]
    stated = [Line(fact.statements[language][p]) for fact, p in trained["s"]]
    for name, lines in (("asked", asked), ("stated", stated), ("mixed", asked + stated)):
        for number, block in enumerate(_blocks(lines, chance)):
            yield script(f"{name}-{number}", "text", block)
    # A sentence and its translation below it.
    pairs = [(fact.statements[language][p], fact.statements[other][p]) for fact, p in trained["s"]]
    pairs += [(fact.questions[language][p], fact.questions[other][p]) for fact, p in trained["q"]]
    chance.shuffle(pairs)
    for number in range(0, len(pairs), _BLOCK // 2):
        lines = [Line(text) for pair in pairs[number : number + _BLOCK // 2] for text in pair]
        yield script(f"translated-{number}", "text", lines)


def _blocks(lines: Sequence[Line], chance: random.Random) -> Iterator[list[Line]]:
    mixed = list(lines)
    chance.shuffle(mixed)
    for start in range(0, len(mixed), _BLOCK):
        yield mixed[start : start + _BLOCK]


# --- the open part --------------------------------------------------------------------------------


def _write_hsk(sentences: Sequence[Sentence], size: Size, seed: int, casting) -> Iterator[Script]:
    chance = random.Random(f"hsk {seed}")
    # The same sentences are held out at every size.
    simple = [sentence for sentence in sentences if sentence.level <= 2]
    chance.shuffle(simple)
    splits = {s.id: "test" for s in simple[:_OPEN_TEST]}
    splits |= {s.id: "validation" for s in simple[_OPEN_TEST:][:_OPEN_VALIDATION]}
    usable = [s for s in simple + [s for s in sentences if s.level > 2] if s.level in size.levels]
    usable = [s for s in usable if s.id not in splits][: size.sentences]
    held = [s for s in simple if s.id in splits]
    for language in LANGUAGES:
        for sentence in held:
            split = splits[sentence.id]
            yield _sentence(sentence, language, split, casting[language, split], 0)
            if size.assistant:
                cast = casting[language, "train"]
                yield _sentence(sentence, language, split, cast, "assistant")
        for take in range(size.open_takes):
            for sentence in usable:
                yield _sentence(sentence, language, "train", casting[language, "train"], take)
    yield from _write_passages(sentences, splits, size, seed, casting)
    written = [s for s in sentences if s.level in size.written_levels and s.id not in splits]
    for language in LANGUAGES:
        lines = [Line(getattr(s, language)) for s in written]
        for number, block in enumerate(_blocks(lines, chance)):
            yield Script(f"{language}-hsk-{number}", "train", "text", language, HSK, tuple(block))


def _sentence(
    sentence: Sentence, language: str, split: str, cast: Casting, take: int | str
) -> Script:
    id, lines = f"{language}-{sentence.id}-{take}", (_sentence_line(sentence, language),)
    return Script(id, split, "speech", language, HSK, lines, (cast.takes(),), _OPEN_LIMIT)


def _sentence_line(sentence: Sentence, language: str) -> Line:
    return Line(getattr(sentence, language), getattr(sentence, OTHER[language]), speaker=0)


def _write_passages(sentences, splits, size: Size, seed: int, casting) -> Iterator[Script]:
    """Three to five sentences of the same level and topic, in the order of the list."""
    topics: dict[tuple[int, str], list[Sentence]] = {}
    for sentence in sentences:
        if sentence.level in size.levels and sentence.id not in splits:
            topics.setdefault((sentence.level, sentence.topic), []).append(sentence)
    blocks = [group[i : i + 5] for group in topics.values() for i in range(0, len(group), 5)]
    random.Random(f"passages {seed}").shuffle(blocks)
    blocks = [block for block in blocks if len(block) == 5][: size.passages]
    for language in LANGUAGES:
        for number, block in enumerate(blocks):
            id = f"{language}-hsk-passage-{number}"
            lines = tuple(_sentence_line(s, language) for s in block[: 3 + number % 3])
            casts = (casting[language, "train"].takes(),)
            yield Script(id, "train", "interleaved", language, HSK, lines, casts, _OPEN_LIMIT)


def _write_chatterbot(
    exchanges: Sequence[Exchange], size: Size, seed: int, casting
) -> Iterator[Script]:
    for language in LANGUAGES:
        dialogues = [exchange for exchange in exchanges if exchange.language == language]
        random.Random(f"chatterbot {language} {seed}").shuffle(dialogues)
        # Small talk before trivia: the embedded size uses the first few.
        dialogues.sort(key=lambda exchange: "trivia" in exchange.where)
        small = [exchange for exchange in dialogues if "trivia" not in exchange.where]
        tests, validations = _OPEN_TEST // 3, _OPEN_VALIDATION // 2
        splits = {x.where: "test" for x in small[:tests]}
        splits |= {x.where: "validation" for x in small[tests:][:validations]}
        trained = [x for x in dialogues if x.where not in splits]
        for exchange in small:
            if split := splits.get(exchange.where):
                yield _exchange(exchange, split, casting[language, split], 0)
        for take in range(size.open_takes):
            for exchange in trained[: size.exchanges]:
                yield _exchange(exchange, "train", casting[language, "train"], take)
        for exchange in trained:
            yield _exchange(exchange, "train", None, 0)


def _exchange(exchange: Exchange, split: str, cast: Casting | None, take: int) -> Script:
    """A question and its answer, spoken if there is a cast."""
    language = exchange.language
    name = exchange.where.replace("/", "-").replace(".yml:", "-")
    speakers, casts, suffix = (None, None), (), "written"
    if cast is not None:
        speakers, suffix = (0, 1), str(take)
        casts = (_without_assistant(cast, language), voices.answer_takes(language))
    lines = (
        Line(exchange.question, role="user", speaker=speakers[0]),
        Line(exchange.answer, role="assistant", speaker=speakers[1]),
    )
    id = f"{name}-{suffix}"
    return Script(id, split, "dialogue", language, CHATTERBOT, lines, casts, _OPEN_LIMIT)
