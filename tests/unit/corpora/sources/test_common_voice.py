"""Common Voice and CoVoST 2, on small folders with their names of files."""

from __future__ import annotations

import pytest

from ba_jax.corpora.sources.base import SourceError
from ba_jax.data.examples import ExampleMaker
from tests.unit.corpora.corpora import config, listed, made, put, put_text

HEADER = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent\n"

CLIENT = "0123456789abcdef" * 8


def common_voice(folder):
    tables = {"train": (1, 2), "dev": (3,), "test": (4,), "validated": (1, 2, 3, 4, 5)}
    for number in range(1, 6):
        put(folder / "clips" / f"common_voice_en_{number}.mp3", rate=32000, hertz=200 * number)
    for split, numbers in tables.items():
        rows = "".join(
            f'{CLIENT}\tcommon_voice_en_{n}.mp3\t"Sentence {n}, he said.\t2\t0\t\t\t\n'
            for n in numbers
        )
        put_text(folder / f"{split}.tsv", HEADER + rows)
    durations = "".join(f"common_voice_en_{n}.mp3\t500\n" for n in range(1, 6))
    put_text(folder / "clip_durations.tsv", "clip\tduration[ms]\n" + durations)
    return folder


def test_common_voice(tmp_path):
    folder = common_voice(tmp_path / "cv-corpus-17.0-2024-03-15" / "en")
    records, rejections = made(config("common_voice", folder=folder), tmp_path / "out")
    assert rejections == []
    assert sorted(records) == [f"common_voice_en_{n}" for n in range(1, 5)]
    (part,) = records["common_voice_en_2"].parts
    assert part.text == '"Sentence 2, he said.'
    assert part.speaker == CLIENT[:16]
    assert part.seconds == pytest.approx(0.5, abs=0.05)
    items, _ = listed(config("common_voice", folder=folder))
    assert items["common_voice_en_3"].split == "dev"
    assert items["common_voice_en_3"].seconds == 0.5


def test_common_voice_validated_clips_without_the_test_set(tmp_path):
    folder = common_voice(tmp_path / "en")
    run = config("common_voice", folder=folder, splits=("test", "dev", "validated"))
    items, rejections = listed(run)
    by_split = {id[-1]: item.split for id, item in items.items()}
    assert by_split == {
        "4": "test",
        "3": "dev",
        "1": "validated",
        "2": "validated",
        "5": "validated",
    }
    assert [r.reason for r in rejections] == ["duplicate id"] * 2
    assert "validated.tsv:4" in rejections[0].where and "dev.tsv:2" in rejections[0].detail


def test_common_voice_newer_columns_in_mandarin(tmp_path):
    folder = tmp_path / "zh-CN"
    put(folder / "clips" / "common_voice_zh-CN_1.mp3", rate=32000)
    put_text(
        folder / "train.tsv",
        "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender"
        "\taccents\tvariant\tlocale\tsegment\n"
        f"{CLIENT}\tcommon_voice_zh-CN_1.mp3\tab\t早上好。\t\t2\t0\t\t\t\t\tzh-CN\t\n"
        f"{CLIENT}\t../../x.mp3\tab\t早上好。\t\t2\t0\t\t\t\t\tzh-CN\t\n",
    )
    records, rejections = made(
        config("common_voice", folder=folder, splits=("train",)), tmp_path / "out"
    )
    assert records["common_voice_zh-CN_1"].language == "zh"
    assert records["common_voice_zh-CN_1"].parts[0].text == "早上好。"
    assert rejections[0]["reason"] == "path leaves the root"


def test_common_voice_wrong_header_and_language(tmp_path):
    folder = common_voice(tmp_path / "en")
    put_text(folder / "test.tsv", "client_id\tpath\n")
    with pytest.raises(SourceError, match=r"test.tsv:1: .*sentence"):
        listed(config("common_voice", folder=folder))
    with pytest.raises(SourceError, match="language 'French'"):
        listed(config("common_voice", folder=folder, language="French"))


def test_common_voice_durations_by_name(tmp_path):
    folder = common_voice(tmp_path / "en")
    durations = put_text(folder / "clip_durations.tsv", "")
    run = config("common_voice", folder=folder, splits=("train",))
    for content in ("", "clip\n", "clip\tduration[s]\n"):
        put_text(durations, content)
        with pytest.raises(SourceError, match=r"clip_durations.tsv.*duration\[ms\]"):
            listed(run)
    rows = "x\t500\tcommon_voice_en_1.mp3\nx\tNaN\tcommon_voice_en_2.mp3\n"
    put_text(durations, "x\tduration[ms]\tclip\n" + rows)
    items, (rejection,) = listed(run)
    assert {id: item.seconds for id, item in items.items()} == {"common_voice_en_1": 0.5}
    assert rejection.where == f"{folder / 'train.tsv'}:3" and rejection.reason == "bad times"


def test_common_voice_quotes_invisible_text_and_suffixes(tmp_path):
    folder = common_voice(tmp_path / "en")
    (folder / "clips" / "common_voice_en_2.mp3").rename(folder / "clips" / "common_voice_en_2.MP3")
    rows = ['1\t"""Doubled,"" she says."', "2.mp3\t\ufeffHi.", "3.MP3\t\u200b", '4.mp3\t"Hi."']
    lines = "".join(f"{CLIENT}\tcommon_voice_en_{row}\t0\t0\t\t\t\n" for row in rows)
    put_text(folder / "train.tsv", HEADER + lines)
    items, (rejection,) = listed(config("common_voice", folder=folder, splits=("train",)))
    texts = [item.payload[0].clips[0].text for item in items.values()]
    assert texts == ['"Doubled," she says.', "Hi.", '"Hi."']
    assert (rejection.where[-2:], rejection.reason) == (":4", "empty transcript")


COVOST = (
    "path\ttranslation\tsplit\n"
    "common_voice_en_1.mp3\t第一句\\\t话\ttrain\n"
    "common_voice_en_3.mp3\t第三句\tdev\n"
    "common_voice_en_4.mp3\t\ttest\n"
    "common_voice_en_5.mp3\t第五句\ttrain_covost\n"
    "common_voice_en_2.mp3\t第二句\tinvalidated\n"
    "common_voice_en_9.mp3\t没有\ttrain\n"
)


@pytest.mark.parametrize("beside", (True, False))
def test_covost2_joined_with_common_voice(tmp_path, beside):
    folder = common_voice(tmp_path / "en")
    put_text((tmp_path if beside else folder) / "covost_v2.en_zh-CN.tsv", COVOST)
    records, rejections = made(config("covost2", folder=folder), tmp_path / "out")
    assert {id: r.parts[0].translation for id, r in records.items()} == {
        "common_voice_en_1": "第一句\t话",
        "common_voice_en_3": "第三句",
        "common_voice_en_5": "第五句",
    }
    record = records["common_voice_en_5"]
    assert record.parts[0].text == '"Sentence 5, he said.' and record.parts[0].speaker
    assert [(r["where"][-2:], r["reason"]) for r in rejections] == [
        (":4", "empty translation"),
        (":7", "no transcript"),
    ]
    example = ExampleMaker("s2tt", frames=lambda part, record: 6)(record)
    assert example.segments[-1].text == "第五句" and example.segments[-1].loss


def test_covost2_split_tables(tmp_path):
    folder = common_voice(tmp_path / "en")
    for split, number in (("train", 1), ("dev", 3), ("test", 4)):
        put_text(
            tmp_path / "tsv" / f"covost_v2.en_zh-CN.{split}.tsv",
            "path\tsentence\ttranslation\tclient_id\n"
            f"common_voice_en_{number}.mp3\tSaid {number}.\t第{number}句\t{CLIENT}\n",
        )
    run = config("covost2", folder=folder, translations=tmp_path / "tsv")
    items, rejections = listed(run)
    assert rejections == []
    assert {id[-1]: item.split for id, item in items.items()} == {
        "1": "train",
        "3": "dev",
        "4": "test",
    }
    assert items["common_voice_en_1"].payload[0].clips[0].translation == "第1句"
    with pytest.raises(SourceError, match="covost_v2.zh-CN_en.tsv"):
        listed(config("covost2", folder=folder, spoken="zh-CN", written="en"))
