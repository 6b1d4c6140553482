"""Records as examples of all nine tasks, down to the loss masks; what does not fit is a reason."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ba_jax.data.examples import ExampleMaker, NotForTask, audio_segments, stable_hash
from ba_jax.data.record import Part, Record, Word
from ba_jax.data.sequence import to_sequence
from ba_jax.data.tasks import PROMPTS, TASKS
from tests.unit.data import small_corpus
from tests.unit.data.letters import SIZES, Letters, describe


def codes(frames: int, first: int = 0) -> np.ndarray:
    return (first + np.arange(frames))[:, None] + np.array([[0, 1, 2]])


def part(text: str, frames: int = 1, first: int = 0, **fields) -> Part:
    return Part(text, b"ogg", codes(frames, first), 0.08 * frames, **fields)


SPEECH = Record("r", "speech", "en", (part("hi", 2, 0, translation="你好", speaker="ann"),), "s")
CHINESE = Record("r", "speech", "zh", (part("你好", 2, 0, translation="hi"),), "s")
STORY = (part("a"), part("b", 1, 5), part("c", 1, 9))
TEXT_FIRST = Record("t0", "interleaved", "en", STORY, "s")
SPEECH_FIRST = Record("t4", "interleaved", "en", STORY, "s")
QUESTION = Record(
    "q",
    "dialogue",
    "zh",
    (
        Part("s", role="system"),
        part("q", 1, 1, role="user"),
        part("a", 1, 3, role="assistant", speaker="bot"),
        part("r", 1, 5, role="user"),
        part("c", 1, 7, role="assistant"),
    ),
    "s",
)
# b begins in the middle of the third frame, c in the fourth.
TIMES = (Word("a", 0.05, 0.1), Word("b", 0.17, 0.22), Word("c", 0.25, 0.4))
TIMED = Record("w", "speech", "en", (part("a, b c.", 5, 0, words=TIMES),), "s")
ASKED = Record(
    "m",
    "dialogue",
    "en",
    (part("a, b c?", 5, 0, words=TIMES, role="user"), part("d", 1, 9, role="assistant")),
    "s",
)
PARAGRAPHS = Record("p", "text", "zh", (Part("天"), Part("地")), "s")


def prompt_of(task: str, record: Record) -> str:
    variants = PROMPTS[task][record.language]
    return variants[stable_hash(record.id) % len(variants)]


# Paper, Table 4, and SFT: what is given, what is learnt (* text, ^ audio).
LAYOUTS = [
    ("asr", {}, SPEECH, "{prompt} audio_start [0] [1] audio_end hi* </s>*"),
    ("asr", {}, CHINESE, "{prompt} audio_start [0] [1] audio_end 你好* </s>*"),
    ("s2tt", {}, SPEECH, "{prompt} audio_start [0] [1] audio_end 你好* </s>*"),
    ("s2tt", {}, CHINESE, "{prompt} audio_start [0] [1] audio_end hi* </s>*"),
    ("aqa", {}, QUESTION, "{prompt} audio_start [1] audio_end a* </s>*"),
    (
        "aqa",
        {"questions": "mixed", "pieces": 1},
        ASKED,
        "{prompt} audio_start [0] [1] audio_end b audio_start [3] [4] audio_end d* </s>*",
    ),
    (
        "aqa",
        {"questions": "mixed", "pieces": 1, "order": 2},
        ASKED,
        "{prompt} a, audio_start [2] [3] [4] audio_end d* </s>*",
    ),
    ("intlv", {}, TEXT_FIRST, "a* audio_start [5] audio_end c* </s>*"),
    ("intlv", {}, SPEECH_FIRST, "audio_start [0] audio_end b* audio_start [9] audio_end"),
    ("tts", {}, SPEECH, "hi audiogen_start [0]^ [1]^ audiogen_end^ </s>*"),
    ("tts", {}, CHINESE, "你好 audiogen_start [0]^ [1]^ audiogen_end^ </s>*"),
    (
        "itts",
        {},
        TEXT_FIRST,
        "a audiogen_start [0]^ audiogen_end^ b* audiogen_start* [5]^ audiogen_end^ c* "
        "audiogen_start* [9]^ audiogen_end^ </s>*",
    ),
    (
        "iasr",
        {},
        TEXT_FIRST,
        "{prompt} audio_start [0] audio_end a* audio_start [5] audio_end b* "
        "audio_start [9] audio_end c* </s>*",
    ),
    (
        "iasr",
        {"pieces": 1},
        TIMED,
        "{prompt} audio_start [0] [1] audio_end a,* audio_start [2] audio_end b* "
        "audio_start [3] [4] audio_end c.* </s>*",
    ),
    (
        "itts",
        {"pieces": 2},
        TIMED,
        "a, b audiogen_start [0]^ [1]^ [2]^ audiogen_end^ c.* audiogen_start* [3]^ [4]^ "
        "audiogen_end^ </s>*",
    ),
    (
        "itts",
        {"pieces": 2, "fully_conditioned": True},
        TIMED,
        "a, b audiogen_start [0]^ [1]^ [2]^ audiogen_end^ c. audiogen_start [3]^ [4]^ "
        "audiogen_end^ </s>*",
    ),
    (
        "asr",
        {"pieces": 1},
        TIMED,
        "{prompt} audio_start [2] [3] [4] [0] [1] audio_end b c. a,* </s>*",
    ),
    (
        "asr",
        {"pieces": 1, "order": 1},
        TIMED,
        "{prompt} audio_start [3] [4] [0] [1] [2] audio_end c. a, b* </s>*",
    ),
    (
        "tts",
        {"pieces": 1, "order": 1},
        TIMED,
        "c. a, b audiogen_start [3]^ [4]^ [0]^ [1]^ [2]^ audiogen_end^ </s>*",
    ),
    ("asr", {"questions": "written"}, SPEECH, "{prompt} hi hi* </s>*"),
    ("s2tt", {"questions": "written"}, SPEECH, "{prompt} hi 你好* </s>*"),
    ("aqa", {"questions": "written"}, QUESTION, "{prompt} q a* </s>*"),
    ("audio", {}, SPEECH, "audiogen_start [0]^ [1]^ audiogen_end^ </s>*"),
    ("text", {}, PARAGRAPHS, "天\n地* </s>*"),
    ("text", {}, SPEECH, "hi* </s>*"),
    (
        "sft",
        {},
        QUESTION,
        "<B_SYS> s <C_Q> audio_start [1] audio_end <C_A> a* </s>* "
        "<C_Q> audio_start [5] audio_end <C_A> c* </s>*",
    ),
    (
        "sft",
        {"answers": "spoken"},
        QUESTION,
        "<B_SYS> s <C_Q> audio_start [1] audio_end audiotext_start <C_A> a* audiogen_start* [3]^ "
        "audiogen_end^ </s>* <C_Q> audio_start [5] audio_end audiotext_start <C_A> c* "
        "audiogen_start* [7]^ audiogen_end^ </s>*",
    ),
    (
        "sft",
        {"questions": "written"},
        QUESTION,
        "<B_SYS> s <C_Q> q <C_A> a* </s>* <C_Q> r <C_A> c* </s>*",
    ),
    (
        "sft",
        {"questions": "written", "answers": "spoken"},
        dataclasses.replace(QUESTION, parts=QUESTION.parts[1:3]),
        "<C_Q> q audiotext_start <C_A> a* audiogen_start* [3]^ audiogen_end^ </s>*",
    ),
]


@pytest.mark.parametrize("task, options, record, want", LAYOUTS)
def test_layout_and_loss(task, options, record, want):
    example = ExampleMaker(task, **options)(record)
    if "{prompt}" in want:
        want = want.replace("{prompt}", prompt_of(task, record))
    got = describe(to_sequence(example, Letters(), SIZES))
    assert got.replace(" ", "") == want.replace(" ", "")
    assert (example.id, example.task, example.language) == (record.id, task, record.language)
    if "pieces" in options:  # codes alone can be cut
        with pytest.raises(NotForTask, match="no codes"):
            ExampleMaker(task, lambda part, record: len(part.codes_NQ), **options)(record)
        return
    # With recordings in place of codes: the same, but that the codes are not known yet.
    waiting = ExampleMaker(task, lambda part, record: len(part.codes_NQ), **options)(record)
    want = describe(to_sequence(example, Letters(), SIZES))
    got = describe(to_sequence(waiting, Letters(), SIZES))
    if audio_segments(example):
        assert all(s.audio == b"ogg" and s.seconds > 0 for s in audio_segments(waiting))
        assert "[?]" in got
    assert [c if c[:1] != "[" else "[?]" + c.partition("]")[2] for c in want.split(" ")] == (
        got.split(" ")
    )


def test_every_task_is_pinned_above_and_prompts_in_both_languages():
    assert {task for task, *_ in LAYOUTS} == set(TASKS)
    for task in ("asr", "s2tt"):
        assert {record.language for name, _, record, _ in LAYOUTS if name == task} == {"en", "zh"}


@pytest.mark.parametrize("task", sorted(PROMPTS))
@pytest.mark.parametrize("language", ["en", "zh"])
def test_all_wordings_of_a_prompt_are_used_and_a_record_keeps_its_own(task, language):
    record = {"aqa": QUESTION, "iasr": TEXT_FIRST}.get(task, SPEECH)
    record = dataclasses.replace(record, language=language)
    result = {}
    for i in range(40):
        example = ExampleMaker(task)(dataclasses.replace(record, id=f"r{i}"))
        again = ExampleMaker(task)(dataclasses.replace(record, id=f"r{i}", source="other"))
        assert example.segments[0].text == again.segments[0].text
        result[example.segments[0].text] = example
    assert set(result) == set(PROMPTS[task][language])


def test_the_releases_prompts_are_there():
    assert "将语音转录为文本:" in PROMPTS["asr"]["zh"]


def test_interleaved_records_begin_with_either():
    makers = [ExampleMaker("intlv")(dataclasses.replace(TEXT_FIRST, id=f"{i}")) for i in range(200)]
    begins = sum(example.segments[0].is_audio for example in makers)
    assert 70 < begins < 130


def test_speaker_and_source_are_kept():
    example = ExampleMaker("asr")(SPEECH)
    assert (example.speaker, example.source) == ("ann", "s")


def without(record: Record, number: int, **fields) -> Record:
    parts = list(record.parts)
    parts[number] = dataclasses.replace(parts[number], **fields)
    return dataclasses.replace(record, parts=tuple(parts))


@pytest.mark.parametrize(
    "task, options, record, reason",
    [
        ("asr", {}, QUESTION, "a record of kind dialogue"),
        ("asr", {}, without(SPEECH, 0, text=" "), "no text"),
        ("asr", {}, without(SPEECH, 0, codes_NQ=None), "no codes"),
        ("s2tt", {}, without(SPEECH, 0, translation=""), "no translation"),
        ("tts", {}, without(SPEECH, 0, text=""), "no text"),
        ("audio", {}, without(SPEECH, 0, loss=False), "a part without loss"),
        ("aqa", {}, SPEECH, "a record of kind speech"),
        ("aqa", {}, without(QUESTION, 1, codes_NQ=None), "no codes"),
        ("aqa", {}, without(QUESTION, 1, role="assistant"), "no question and answer"),
        ("intlv", {}, SPEECH, "a record of kind speech"),
        ("itts", {}, without(TEXT_FIRST, 1, codes_NQ=None), "no codes"),
        ("iasr", {"pieces": 1}, SPEECH, "no word times"),
        ("iasr", {"pieces": 1}, without(TIMED, 0, codes_NQ=None), "no codes"),
        ("iasr", {"pieces": 1}, without(TIMED, 0, text="a, x c."), "words that are not those"),
        ("iasr", {"pieces": 1}, without(TIMED, 0, words=(Word(" ", 0, 1),)), "words that are not"),
        ("iasr", {"pieces": 1}, without(TIMED, 0, words=(Word("a", np.nan, 1),)), "no numbers"),
        ("itts", {"pieces": 1}, without(TIMED, 0, codes_NQ=codes(2)), "shorter than a frame"),
        ("itts", {"pieces": 1}, TEXT_FIRST, "a record of kind interleaved"),
        ("text", {}, without(SPEECH, 0, text=""), "no text"),
        ("sft", {}, TEXT_FIRST, "a record of kind interleaved"),
        ("sft", {"answers": "spoken"}, without(QUESTION, 2, codes_NQ=None), "no codes"),
        ("sft", {}, without(QUESTION, 4, role="user"), "turns that are not user, assistant"),
        ("sft", {}, without(QUESTION, 1, role="assistant"), "turns that are not user"),
        ("sft", {}, without(QUESTION, 1, role="system"), "turns that are not user"),
        ("sft", {}, without(without(QUESTION, 0, loss=False), 2, loss=False), None),
        (
            "sft",
            {},
            without(without(QUESTION, 4, loss=False), 2, loss=False),
            "a part without loss",
        ),
    ],
)
def test_unusable_records_have_a_reason(task, options, record, reason):
    if reason is None:
        assert ExampleMaker(task, **options)(record)
        return
    with pytest.raises(NotForTask, match=reason):
        ExampleMaker(task, **options)(record)


TURNS = [
    ("asr", "user", QUESTION, "[1] audio_end q* </s>*"),
    ("asr", "assistant", QUESTION, "[3] audio_end a* </s>*"),
    ("asr", "any", QUESTION, "[1] audio_end q* </s>*"),
    ("asr", "any", SPEECH, "[0] [1] audio_end hi* </s>*"),
    ("asr", "any", TEXT_FIRST, "[0] audio_end a* </s>*"),
    # The first turn of the role, or the first part, that has what the task needs.
    ("asr", "user", without(QUESTION, 1, codes_NQ=None), "[5] audio_end r* </s>*"),
    ("asr", "assistant", without(QUESTION, 2, text=""), "[7] audio_end c* </s>*"),
    ("asr", "any", without(QUESTION, 1, loss=False), "[3] audio_end a* </s>*"),
    ("s2tt", "any", without(QUESTION, 3, translation="T"), "[5] audio_end T* </s>*"),
    ("s2tt", "assistant", without(QUESTION, 4, translation="T"), "[7] audio_end T* </s>*"),
    ("tts", "assistant", QUESTION, "a audiogen_start [3]^ audiogen_end^ </s>*"),
    ("audio", "user", without(QUESTION, 1, text=""), "audiogen_start [1]^ audiogen_end^ </s>*"),
]


@pytest.mark.parametrize("task, turn, record, want", TURNS)
def test_one_part_of_a_longer_record(task, turn, record, want):
    example = ExampleMaker(task, turn=turn)(record)
    got = describe(to_sequence(example, Letters(), SIZES))
    if task in PROMPTS:
        assert got.startswith(prompt_of(task, record))
        got = got.partition("audio_start ")[2]
    assert got == want
    assert example.id == record.id


def test_the_speaker_is_of_the_turn():
    assert ExampleMaker("tts", turn="assistant")(QUESTION).speaker == "bot"
    assert ExampleMaker("tts", turn="user")(QUESTION).speaker == ""


def test_only_the_speech_of_chosen_speakers():
    for record in (SPEECH, QUESTION):
        speaker = "ann" if record is SPEECH else "bot"
        example = ExampleMaker("tts", turn="any", speakers=("bot", "ann"))(record)
        assert example.speaker == speaker
        with pytest.raises(NotForTask, match="another speaker"):
            ExampleMaker("tts", turn="any", speakers=("eve",))(record)
    with pytest.raises(NotForTask, match="a record of kind text"):
        ExampleMaker("asr", turn="any", speakers=("bot",))(PARAGRAPHS)
    with pytest.raises(ValueError, match="speakers = .'bot',.: only"):
        ExampleMaker("aqa", speakers=("bot",))


@pytest.mark.parametrize(
    "task, turn, record, reason",
    [
        ("asr", "user", SPEECH, "a record of kind speech"),
        ("asr", "assistant", TEXT_FIRST, "a record of kind interleaved"),
        ("asr", "any", PARAGRAPHS, "a record of kind text"),
        ("s2tt", "any", QUESTION, "no codes"),  # the first part's, a written system turn
        ("s2tt", "user", QUESTION, "no translation"),
        ("tts", "user", without(without(QUESTION, 1, loss=False), 3, text=""), "without loss"),
        ("asr", "user", dataclasses.replace(QUESTION, parts=QUESTION.parts[::2]), "no user turn"),
    ],
)
def test_records_without_such_a_turn_are_a_reason(task, turn, record, reason):
    with pytest.raises(NotForTask, match=reason):
        ExampleMaker(task, turn=turn)(record)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"task": "asr", "questions": "mixed"}, "questions = 'mixed', expected one of"),
        ({"task": "aqa", "questions": "mixed"}, "mixed questions with pieces = 0"),
        ({"task": "aqa", "pieces": 1}, "task 'aqa' with pieces = 1"),
        ({"task": "aqa", "order": 1}, "order = 1: expected 0"),
        ({"task": "iasr", "pieces": 1, "order": 1}, "order = 1: expected 0"),
        (
            {"task": "tts", "fully_conditioned": True},
            "task 'tts' with fully_conditioned: expected itts",
        ),
        (
            {"task": "asr", "transcribe_first": True},
            "'asr' with questions = 'spoken': transcribe_first",
        ),
        (
            {"task": "sft", "questions": "written", "transcribe_first": True},
            "'sft' with questions = 'written': transcribe_first",
        ),
    ],
)
def test_incompatible_options(options, message):
    with pytest.raises(ValueError, match=message):
        ExampleMaker(**options)


def test_mixed_questions_have_each_piece_once():
    for order in range(20):
        maker = ExampleMaker("aqa", questions="mixed", pieces=1, order=order)
        _, *question, answer = maker(ASKED).segments
        spoken_pieces = [
            s.text if s.codes_NQ is None else s.codes_NQ[:, 0].tolist() for s in question
        ]
        kinds = [isinstance(value, str) for value in spoken_pieces]
        assert not all(kinds) and all(a != b for a, b in zip(kinds, kinds[1:], strict=False))
        pieces = {"a,": [0, 1], "b": [2], "c?": [3, 4]}
        heard = [code for value in spoken_pieces if not isinstance(value, str) for code in value]
        read = " ".join(value for value in spoken_pieces if isinstance(value, str)).split()
        assert heard == [c for name, own in pieces.items() if name not in read for c in own]
        assert answer.text == "d" and answer.loss and not any(s.loss for s in question)


def test_answers_begin_with_the_transcript():
    def answers(record, **options):
        segments = ExampleMaker(**options, transcribe_first=True)(record).segments
        return [s.text for s in segments if s.loss and s.codes_NQ is None]

    assert answers(QUESTION, task="aqa") == ["q\na"]
    assert answers(ASKED, task="aqa", questions="mixed", pieces=1) == ["a, b c?\nd"]
    # Each answer with its own question; the speech is the answer's alone.
    assert answers(QUESTION, task="sft") == ["q\na", "r\nc"]
    spoken = ExampleMaker("sft", answers="spoken", transcribe_first=True)(QUESTION).segments
    assert [s.codes_NQ[0, 0] for s in spoken if s.loss and s.codes_NQ is not None] == [3, 7]
    with pytest.raises(NotForTask, match="no text"):
        answers(without(QUESTION, 1, text=""), task="aqa")


def test_a_late_system_turn_is_a_reason():
    parts = (*QUESTION.parts[1:3], Part("s", role="system"), *QUESTION.parts[3:])
    with pytest.raises(NotForTask, match="a system turn that is not the first"):
        ExampleMaker("sft")(dataclasses.replace(QUESTION, parts=parts))


def test_parts_without_loss_are_read_and_no_target():
    record = without(QUESTION, 2, loss=False)
    got = describe(to_sequence(ExampleMaker("sft")(record), Letters(), SIZES))
    assert "<C_A> a </s> <C_Q>" in got and got.endswith("<C_A> c* </s>*")
    record = without(TEXT_FIRST, 1, loss=False)
    got = describe(to_sequence(ExampleMaker("itts")(record), Letters(), SIZES))
    assert "b audiogen_start [5] audiogen_end c*" in got


def test_recordings_too_short_for_a_frame_are_a_reason():
    with pytest.raises(NotForTask, match="audio too short for a frame of codes"):
        ExampleMaker("asr", lambda part, record: 0)(SPEECH)
    with pytest.raises(NotForTask, match="no audio"):
        ExampleMaker("asr", lambda part, record: 3)(without(SPEECH, 0, audio=b""))


def test_the_small_corpus_serves_every_task():
    records = small_corpus.records(1)
    for task in TASKS:
        served = set()
        for record in records:
            try:
                served.add(ExampleMaker(task)(record).language)
            except NotForTask:
                continue
        assert served == {"en", "zh"}
