"""Every public layout on a small folder with the corpus's own names of files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ba_jax.audio import read_audio, write_audio
from ba_jax.corpora.sources.base import SourceError
from ba_jax.data.examples import ExampleMaker
from tests.unit.corpora.corpora import config, listed, made, put, put_text, tone

# --- LibriSpeech, LibriTTS ----------------------------------------------------------------------


def librispeech(root):
    for part, speaker in (("train-clean-100", 103), ("train-other-500", 20), ("dev-clean", 84)):
        folder = root / "LibriSpeech" / part / str(speaker) / "1240"
        ids = [f"{speaker}-1240-{n:04d}" for n in range(2)]
        for id in ids:
            put(folder / f"{id}.flac")
        put_text(folder / f"{speaker}-1240.trans.txt", f"{ids[0]} HELLO THERE\n{ids[1]} GOOD BYE\n")
    put_text(root / "LibriSpeech" / "SPEAKERS.TXT", ";ID |SEX|\n")
    return root / "LibriSpeech"


def test_librispeech(tmp_path):
    folder = librispeech(tmp_path)
    records, rejections = made(config("librispeech", folder=folder), tmp_path / "out")
    assert rejections == []
    assert len(records) == 6
    record = records["103-1240-0001"]
    (part,) = record.parts
    assert (record.kind, record.language, record.source) == ("speech", "en", "librispeech")
    assert (part.text, part.speaker) == ("good bye", "103")
    wave_S, rate = read_audio(part.audio)
    assert (rate, len(wave_S), part.seconds) == (16000, 8000, 0.5)
    items, _ = listed(config("librispeech", folder=folder))
    splits = {id: item.split for id, item in items.items()}
    assert splits["20-1240-0000"] == splits["103-1240-0000"] == "train"
    assert splits["84-1240-0000"] == "dev_clean"


def test_librispeech_parts_and_case(tmp_path):
    folder = librispeech(tmp_path)
    run = config("librispeech", folder=folder, parts=("dev-clean",), case="as_is")
    items, _ = listed(run)
    assert sorted(items) == ["84-1240-0000", "84-1240-0001"]
    assert items["84-1240-0000"].payload[0].clips[0].text == "HELLO THERE"


def test_librispeech_counts_mismatched_files_and_lines(tmp_path):
    folder = librispeech(tmp_path)
    chapter = folder / "dev-clean" / "84" / "1240"
    (chapter / "84-1240-0000.flac").unlink()
    put(chapter / "84-1240-0009.flac")
    with open(chapter / "84-1240.trans.txt", "ab") as file:
        file.write(b"84-1240-0001 AGAIN\n84-1240-0002\n84-1240-0003 CAF\xc9\n")
    put(chapter / "84-1240-0002.flac")
    items, rejections = listed(config("librispeech", folder=folder, parts=("dev-clean",)))
    assert list(items) == ["84-1240-0001"]
    results = {(r.where.rsplit("/", 1)[1], r.reason) for r in rejections}
    assert results == {
        ("84-1240.trans.txt:1", "missing file"),
        ("84-1240.trans.txt:3", "missing file"),
        ("84-1240.trans.txt:4", "empty transcript"),
        ("84-1240.trans.txt:5", "not UTF-8"),
        ("84-1240-0009.flac", "no transcript"),
    }


def test_librispeech_errors_name_the_expected_layout(tmp_path):
    with pytest.raises(SourceError, match="train-clean-100"):
        listed(config("librispeech", folder=tmp_path))
    with pytest.raises(SourceError, match="no such folder"):
        listed(config("librispeech", folder=tmp_path / "nothing"))
    with pytest.raises(SourceError, match="case = 'upper'"):
        listed(config("librispeech", folder=tmp_path, case="upper"))


def libritts(root, with_tables=True):
    folder = root / "LibriTTS" / "train-clean-100" / "103" / "1241"
    for n, (original, normalized) in enumerate(
        (("He paid $5.", "He paid five dollars."), ("Mr. Hyde?", "Mister Hyde?"))
    ):
        id = f"103_1241_00000{n}_000000"
        put(folder / f"{id}.wav", rate=24000)
        put_text(folder / f"{id}.original.txt", original)
        put_text(folder / f"{id}.normalized.txt", normalized)
        if with_tables:
            with open(folder / "103_1241.trans.tsv", "a", encoding="utf-8") as file:
                file.write(f"{id}\t{original}\t{normalized}\n")
    put_text(folder / "103_1241.book.tsv", "103_1241_000000_000000\tHe paid $5.\t0\t20.5\n")
    put_text(folder / "._103_1241_000000_000000.wav", "of macOS")
    return root / "LibriTTS"


@pytest.mark.parametrize("with_tables", (True, False))
def test_libritts(tmp_path, with_tables):
    folder = libritts(tmp_path, with_tables)
    records, rejections = made(config("libritts", folder=folder), tmp_path / "out")
    assert rejections == []
    texts = {id: record.parts[0].text for id, record in records.items()}
    assert texts == {
        "103_1241_000000_000000": "He paid five dollars.",
        "103_1241_000001_000000": "Mister Hyde?",
    }
    assert records["103_1241_000000_000000"].parts[0].speaker == "103"
    items, _ = listed(config("libritts", folder=folder, text="original"))
    assert items["103_1241_000001_000000"].payload[0].clips[0].text == "Mr. Hyde?"


# --- LJ Speech, AISHELL-1 -----------------------------------------------------------------------


def test_ljspeech(tmp_path):
    folder = tmp_path / "LJSpeech-1.1"
    for id in ("LJ001-0001", "LJ001-0002", "LJ001-0004"):
        put(folder / "wavs" / f"{id}.wav", rate=22050)
    put_text(
        folder / "metadata.csv",
        'LJ001-0001|In 1455, "Gutenberg"|In fourteen fifty-five, "Gutenberg"\n'
        "LJ001-0002||\nLJ001-0003|gone|gone\nLJ001-0005|two columns\n",
    )
    records, rejections = made(config("ljspeech", folder=folder), tmp_path / "out")
    (part,) = records["LJ001-0001"].parts
    assert part.text == 'In fourteen fifty-five, "Gutenberg"'
    assert part.speaker == "LJ"
    # 22.05 kHz is none of Opus's rates: 24 kHz is.
    assert read_audio(part.audio)[1] == 24000
    results = [(r["where"].rsplit("/", 1)[1], r["reason"]) for r in rejections]
    assert results == [
        ("metadata.csv:2", "empty transcript"),
        ("metadata.csv:3", "missing file"),
        ("metadata.csv:4", "wrong number of columns"),
        ("LJ001-0004.wav", "no transcript"),
    ]


def test_aishell(tmp_path):
    root = tmp_path / "data_aishell"
    for split, speaker in (("train", "S0002"), ("dev", "S0724"), ("test", "S0764")):
        put(root / "wav" / split / speaker / f"BAC009{speaker}W0122.wav")
    put(root / "wav" / "train" / "S0002" / "BAC009S0002W0123.wav")
    put_text(
        root / "transcript" / "aishell_transcript_v0.8.txt",
        "BAC009S0002W0122 而 对 楼市 成交\nBAC009S0724W0122 广州市 房地产\n"
        "BAC009S0764W0122 甚至 出现\nBAC009S0770W0122 没有 文件\n",
    )
    for folder in (root, tmp_path):
        items, rejections = listed(config("aishell", folder=folder))
        assert {id: item.split for id, item in items.items()} == {
            "BAC009S0002W0122": "train",
            "BAC009S0724W0122": "dev",
            "BAC009S0764W0122": "test",
        }
        assert [r.reason for r in rejections] == ["missing file", "no transcript"]
    records, _ = made(config("aishell", folder=root), tmp_path / "out")
    (part,) = records["BAC009S0002W0122"].parts
    assert (part.text, part.speaker) == ("而对楼市成交", "S0002")
    assert records["BAC009S0002W0122"].language == "zh"
    items, rejections = listed(config("aishell", folder=root, splits=("dev",)))
    assert list(items) == ["BAC009S0724W0122"] and rejections == []


def test_aishell_with_packed_archives_is_refused(tmp_path):
    root = tmp_path / "data_aishell"
    for split in ("train", "dev", "test"):
        put_text(root / "wav" / split / "S0002.tar.gz", b"\x1f\x8b")
    put_text(root / "transcript" / "aishell_transcript_v0.8.txt", "BAC009S0002W0122 而 对\n")
    with pytest.raises(SourceError, match="unpack"):
        listed(config("aishell", folder=root))


# --- WenetSpeech --------------------------------------------------------------------------------


def wenetspeech(root):
    aid = "Y0000000000_--5llN02F84"
    # Each second sounds at its own pitch, so that a cut shows where it was made.
    wave_S = np.concatenate([tone(1.0, 200 + 100 * n) for n in range(10)])
    path = root / "audio" / "train" / "youtube" / "B00000" / f"{aid}.opus"
    path.parent.mkdir(parents=True)
    write_audio(path, wave_S, 16000)

    def segment(n, begin, end, subsets, text="怎么样这些日子"):
        times = {"begin_time": begin, "end_time": end}
        sid = f"{aid}_S{n:05d}"
        return {"sid": sid, "confidence": 1.0, "subsets": subsets, "text": text, **times}

    segments = [
        segment(0, 1.0, 2.0, ["L"]),
        segment(1, 7.0, 9.0, ["L", "M", "S"]),
        segment(2, 2.0, 3.0, ["W"]),
        segment(3, 3.0, 4.0, ["L"], text=" "),
        segment(4, 9.5, 12.0, ["L"]),
        segment(5, 5.0, 5.0, ["L"]),
    ]
    dev = "Y0000000001_dev"
    put(root / "audio" / "dev" / "Y0000000001_dev.opus", seconds=3.0)
    audios = [
        {
            "aid": aid,
            "duration": 10.0,
            "md5": "0",
            "path": str(path.relative_to(root)),
            "segments": segments,
        },
        {
            "aid": dev,
            "duration": 3.0,
            "path": "audio/dev/Y0000000001_dev.opus",
            "segments": [segment(0, 0.0, 1.5, ["DEV"]) | {"sid": f"{dev}_S00000"}],
        },
        {
            "aid": "Y2",
            "duration": 3.0,
            "path": "audio/none.opus",
            "segments": [segment(0, 0.0, 1.5, ["L"]) | {"sid": "Y2_S0"}],
        },
        {"aid": "Y3", "duration": 3.0, "path": "audio/none.opus", "segments": []},
        {"aid": "Y4", "duration": "3", "path": "audio/none.opus", "segments": []},
    ]
    put_text(root / "WenetSpeech.json", json.dumps({"audios": audios}, ensure_ascii=False))
    return root


def test_wenetspeech(tmp_path):
    folder = wenetspeech(tmp_path / "wenetspeech")
    records, rejections = made(config("wenetspeech", folder=folder), tmp_path / "out")
    aid = "Y0000000000_--5llN02F84"
    assert sorted(records) == [f"{aid}_S00000", f"{aid}_S00001", "Y0000000001_dev_S00000"]
    part = records[f"{aid}_S00001"].parts[0]
    assert (part.text, part.seconds) == ("怎么样这些日子", 2.0)
    wave_S, rate = read_audio(part.audio)
    for second in (0, 1):
        middle = wave_S[int((second + 0.25) * rate) : int((second + 0.75) * rate)]
        peak = np.argmax(np.abs(np.fft.rfft(middle))) * rate / len(middle)
        assert peak == 200 + 100 * (7 + second)
    results = sorted((r["where"].split(": ", 1)[1].split(" ")[-1], r["reason"]) for r in rejections)
    assert results == [
        (f"{aid}_S00004", "bad times"),
        (f"{aid}_S00005", "bad times"),
        ("audios[0].segments[3]", "empty transcript"),
        ("audios[2]", "missing file"),
        ("audios[4]", "bad value"),
    ]


def test_wenetspeech_subsets(tmp_path):
    folder = wenetspeech(tmp_path / "wenetspeech")
    # The recordings may lie on another disk.
    (folder / "audio").rename(tmp_path / "disk")
    (folder / "audio").symlink_to(tmp_path / "disk")
    items, _ = listed(config("wenetspeech", folder=folder, subset="S"))
    recipes = items["Y0000000000_--5llN02F84"].payload
    assert [recipe.id[-6:] for recipe in recipes] == ["S00001"]
    assert items["Y0000000001_dev"].split == "dev"
    with pytest.raises(SourceError, match="no JSON"):
        put_text(folder / "WenetSpeech.json", "[")
        listed(config("wenetspeech", folder=folder))


# --- FLEURS -------------------------------------------------------------------------------------


def fleurs(root, audio="audio", tables=""):
    rows = {
        "en_us": [
            ("1", "101.wav", 'He said: "Come in."', "he said come in", "MALE"),
            ("1", "102.wav", 'He said: "Come in."', "he said come in", "FEMALE"),
            ("2", "103.wav", "Alone.", "alone", "MALE"),
        ],
        "cmn_hans_cn": [("1", "201.wav", "他说:“进来。”", "他 说 进 来", "FEMALE")],
    }
    for language, lines in rows.items():
        for split in ("train", "dev", "test"):
            text = ""
            for id, file, raw, normalized, gender in lines if split == "train" else lines[:1]:
                file = file if split == "train" else f"{split}{file}"
                put(root / language / audio / split / file)
                spaced = " | ".join(normalized)
                text += f"{id}\t{file}\t{raw}\t{normalized}\t{spaced}\t8000\t{gender}\n"
            table = root / tables / language if tables else root / language
            put_text(table / f"{split}.tsv", text)
    return root


@pytest.mark.parametrize(("audio", "tables"), (("audio", ""), ("", "metadata")))
def test_fleurs(tmp_path, audio, tables):
    folder = fleurs(tmp_path / "fleurs", audio, tables)
    records, rejections = made(config("fleurs", folder=folder), tmp_path / "out")
    assert rejections == []
    assert len(records) == 8
    english, mandarin = records["en_us-102"], records["cmn_hans_cn-201"]
    assert english.parts[0].text == 'He said: "Come in."'
    assert english.parts[0].translation == mandarin.parts[0].text == "他说:“进来。”"
    assert mandarin.parts[0].translation == english.parts[0].text
    assert (english.language, mandarin.language) == ("en", "zh")
    assert records["en_us-103"].parts[0].translation == ""
    items, _ = listed(config("fleurs", folder=folder))
    assert items["en_us-dev101"].split == "dev" and items["en_us-101"].seconds == 0.5


def test_fleurs_checks_the_stated_length(tmp_path):
    folder = fleurs(tmp_path / "fleurs")
    # The header says 48 kHz of what was recorded at 16.
    put(folder / "en_us" / "audio" / "train" / "103.wav", tone(0.5), rate=48000)
    put(folder / "en_us" / "audio" / "train" / "101.wav", tone(2.0))
    run = config("fleurs", folder=folder, languages=("en_us",), splits=("train",))
    records, rejections = made(run, tmp_path / "out")
    assert list(records) == ["en_us-102"]
    assert [r["reason"] for r in rejections] == ["header disagrees with the corpus"] * 2
    assert "0.17 s at 48000 Hz, expected 0.50 s" in rejections[1]["detail"]


# --- Common Voice, CoVoST 2 ---------------------------------------------------------------------

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
    with pytest.raises(SourceError, match="language 'fr'"):
        listed(config("common_voice", folder=folder, language="fr"))


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


# --- plain text ---------------------------------------------------------------------------------


def test_plain_text(tmp_path):
    put_text(
        tmp_path / "books" / "a" / "one.txt",
        b"\xef\xbb\xbfFirst line,\r\nsecond line.\r\n\r\n\r\nNext <|endoftext|> one.\n",
    )
    put_text(tmp_path / "books" / "two.txt", b"caf\xe9\nsame paragraph\n\ngood\n" + b"x" * 60)
    put_text(tmp_path / "books" / "notes.md", "not text")
    run = config("text", path=tmp_path / "books", max_characters=50)
    records, rejections = made(run, tmp_path / "out")
    assert {id: record.parts[0].text for id, record in records.items()} == {
        "a/one-000001": "First line,\nsecond line.",
        "a/one-000002": "Next <|endoftext|> one.",
    }
    assert records["a/one-000001"].kind == "text"
    assert [(r["where"].rsplit("/", 1)[1], r["reason"]) for r in rejections] == [
        ("two.txt:1", "not UTF-8"),
        ("two.txt:4", "paragraph too long"),
    ]


def test_plain_text_line_by_line(tmp_path):
    path = put_text(tmp_path / "lines.txt", "一\n\n二\n三")
    items, _ = listed(config("text", path=path, paragraphs="line", language="zh"))
    assert [item.payload for item in items.values()] == ["一", "二", "三"]
    assert [item.where for item in items.values()] == [f"{path}:{n}" for n in (1, 3, 4)]
    with pytest.raises(SourceError, match="paragraphs = 'page'"):
        listed(config("text", path=path, paragraphs="page"))
