"""Loaders of choices."""

import json

import pytest

from ba_jax.evals.benchmarks import choices as choices_lib
from ba_jax.evals.items import EvalError


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def record(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.wav").write_bytes(b"wav")


@pytest.fixture
def s2s(tmp_path):
    stories = [
        {"uttid": "3_b", "first": "Tom sat.", "last": "He flew."},
        {"uttid": "0_a", "first": "Ann ran.", "last": "She was tired."},
        {"uttid": "2_b", "first": "Tom sat.", "last": "He stood up."},
        {"uttid": "1_a", "first": "Ann ran.", "last": "She was a tree."},
    ]
    write_jsonl(tmp_path / "StoryCloze" / "sStory_s2t.jsonl", stories)
    record(tmp_path / "StoryCloze" / "s-story-firstspeech", "0_a", "2_b")
    chinese = [
        {"uttid": i, "first": "天黑了。", "last": e} for i, e in ((10, "灯亮了。"), (11, "嗯。"))
    ]
    write_jsonl(tmp_path / "StoryCloze" / "zh_story.jsonl", chinese)
    record(tmp_path / "StoryCloze" / "zh_story", "10")
    question = {"uttid": "q7", "first": "哪个最大？", "answer": "C"}
    write_jsonl(
        tmp_path / "cmmlu" / "cmmlu_rewrite_4.jsonl",
        [question | {letter: f"是{letter}。" for letter in "ABCD"}],
    )
    record(tmp_path / "cmmlu" / "cmmlu_rewrite", "q7")
    return tmp_path


def test_s2sbench(s2s):
    first, second, chinese, question = choices_lib.load_s2sbench(s2s)
    assert (first.id, first.endings, first.right) == (
        "sStoryCloze/0",
        ("She was tired.", "She was a tree."),
        0,
    )
    assert first.audio.name == "0_a.wav" and second.endings[0] == "He stood up."
    assert (chinese.id, chinese.language) == ("zh-sStoryCloze/10", "zh")
    assert question.right == 2 and question.endings[2] == "是C。" and question.subset == "sCMMLU"
    assert choices_lib.load_s2sbench(s2s, ("sCMMLU",)) == [question]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("0", "a", "x")], "row 1: uttid '0' has no partner"),
        ([("0", "a", "x"), ("2", "a", "y")], "uttid '0' has no partner"),
        ([("1", "a", "x"), ("2", "a", "y")], "uttid '1' has no partner"),
        ([("0", "a", "x"), ("1", "b", "y")], "row 2: another context than"),
        ([("x", "a", "x"), ("1", "a", "y")], "uttid 'x', expected it to begin with a number"),
        ([(9999 * "1", "a", "x")], "expected it to begin with a number"),
        ([("0", "a", "x"), ("1", "a", "")], "column 'last' holds '', expected text"),
        ([("4", "a", "x"), ("5", "a", "y")], r"no file .*4.wav"),
    ],
)
def test_stories_that_are_no_pairs(s2s, rows, message):
    rows = [dict(zip(("uttid", "first", "last"), row, strict=True)) for row in rows]
    write_jsonl(s2s / "StoryCloze" / "sStory_s2t.jsonl", rows)
    record(s2s / "StoryCloze" / "s-story-firstspeech", "0", "1")
    with pytest.raises(EvalError, match=message):
        choices_lib.load_s2sbench(s2s, ("sStoryCloze",))
    with pytest.raises(EvalError, match="subset 'tStoryCloze' of S2SBench"):
        choices_lib.load_s2sbench(s2s, ("tStoryCloze",))


HEADER = (
    "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
    "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"
)


def test_story_cloze_table(tmp_path):
    path = tmp_path / "cloze_test_val.csv"
    path.write_text(HEADER + 'b9,A man.,"He sat, then.",He rose.,He left.,He flew.,He slept.,2\n')
    (choice,) = choices_lib.load_story_cloze(path)
    assert choice.text == "A man. He sat, then. He rose. He left."
    assert choice.endings == ("He flew.", "He slept.") and choice.right == 1
    assert choice.audio is None and not choice.is_spoken
    path.write_text(HEADER + "b9,A,B,C,D,E,F,3\n")
    with pytest.raises(EvalError, match="'AnswerRightEnding' holds '3', expected one of"):
        choices_lib.load_story_cloze(path)


def test_spoken_stories(tmp_path):
    record(tmp_path / "sSC", "1_correct", "1_incorrect", "2_correct", "2_incorrect")
    record(tmp_path / "two" / "correct", "1", "2")
    record(tmp_path / "two" / "incorrect", "1", "2")
    for name in ("sSC", "two"):
        choices = choices_lib.load_spoken_story_cloze(tmp_path / name)
        assert [c.id for c in choices] == ["1", "2"] and all(c.is_spoken for c in choices)
        assert "incorrect" in str(choices[0].endings[1]) and choices[0].subset == name
    (tmp_path / "sSC" / "2_incorrect.wav").unlink()
    with pytest.raises(EvalError, match="no incorrect recording of '2'"):
        choices_lib.load_spoken_story_cloze(tmp_path / "sSC")
    with pytest.raises(EvalError, match="no pairs, expected NAME_correct.wav"):
        choices_lib.load_spoken_story_cloze(tmp_path)


def test_cmmlu(tmp_path):
    (tmp_path / "test").mkdir()
    for subject in ("anatomy", "virology"):
        (tmp_path / "test" / f"{subject}.csv").write_text(
            ",Question,A,B,C,D,Answer\n0,几个？,一,二,三,四,B\n1,谁？,我,你,他,她,D\n"
        )
    record(tmp_path / "audios" / "virology", "0", "1")
    choices = choices_lib.load_cmmlu(tmp_path)
    assert [c.id for c in choices] == ["anatomy/0", "anatomy/1", "virology/0", "virology/1"]
    assert [c.right for c in choices[:2]] == [1, 3] and choices[0].endings == tuple("一二三四")
    assert choices[0].audio is None and choices[3].audio.name == "1.wav"
    (tmp_path / "audios" / "virology" / "0.wav").unlink()
    with pytest.raises(EvalError, match=r"virology.csv, row 1: no file"):
        choices_lib.load_cmmlu(tmp_path)
    with pytest.raises(EvalError, match="no SUBJECT.csv"):
        choices_lib.load_cmmlu(tmp_path / "test")


def test_choices_are_checked(tmp_path):
    for endings, right in ((("a",), 0), (("a", "b"), 2)):
        with pytest.raises(EvalError, match="expected two or more, one of them right"):
            choices_lib.Choice("x", "s", "en", endings, right)
    with pytest.raises(EvalError, match="written and spoken endings"):
        choices_lib.Choice("x", "s", "en", ("a", tmp_path), 0)
