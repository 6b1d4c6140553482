"""Any input gives a result or the error of its area, within a second and 256 MB.

Inputs are valid ones in which values were replaced by odd ones and bytes were damaged. A few are
tried in every run, always the same; many new ones by

    python -m pytest tests/integration/test_fuzz.py -m deep
"""

import contextlib
import copy
import functools
import io
import json
import math
import os
import pathlib
import re
import struct
import time

import av
import httpx
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ba_jax import json_lines
from ba_jax.audio import AudioError, AudioReader, read_audio, write_audio
from ba_jax.audio.complete import ogg_checksum
from ba_jax.convert import hf_config
from ba_jax.convert.engine import ConversionError
from ba_jax.convert.safetensors_io import (
    INDEX_FILE,
    SINGLE_FILE,
    SafetensorsFile,
    SafetensorsFolder,
    make_header,
    read_json,
)
from ba_jax.corpora import runner
from ba_jax.corpora.sources.base import Rejected, Rejection, SourceError
from ba_jax.data.record import RecordError, check_record
from ba_jax.evals.benchmarks import choices
from ba_jax.evals.items import EvalError
from ba_jax.evals.judges import answers, rules
from ba_jax.generate.requests import TASKS, RequestError, read_requests
from tests.unit.evals.score_cases import read_cases

DATA = pathlib.Path(__file__).parents[1] / "data"
SECONDS, MEGABYTES = 1.0, 256
RATE = 16000

# --- limits ---------------------------------------------------------------------------------------

_CLEAR = pathlib.Path("/proc/self/clear_refs")
CAN_MEASURE_MEMORY = os.access(_CLEAR, os.W_OK)  # on Linux; elsewhere memory is not checked


def _peak_megabytes() -> float:
    if not CAN_MEASURE_MEMORY:
        return 0.0
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024


def measure(call) -> tuple[float, float]:
    """Seconds of CPU time (other tests may run) and MB beyond those in use that a call takes."""
    if CAN_MEASURE_MEMORY:
        _CLEAR.write_text("5")  # sets the peak to what is in use
    megabytes, seconds = _peak_megabytes(), time.process_time()
    call()
    return time.process_time() - seconds, _peak_megabytes() - megabytes


# --- odd values and damaged bytes -----------------------------------------------------------------

_ODD_JSON = (
    *("null", "true", "false", "{}", "[]", "[null]", "[[]]", '{"a":{"a":1}}', '""', '" "', ""),
    *("NaN", "Infinity", "-Infinity", "1e999", "1e308", "1e-320", "-0", "-1", "0", "0.5", "16000"),
    *("1" + zeros * "0" for zeros in (9, 10, 18, 19, 30, 309, 4999)),
    *('"\\ud800"', '"\\udc80"', '"\\u0000"', '"\\u2028"', '"\\u200b"', '"\ufeff"', '"̈"', '"👩‍👩"'),
    *('"../a"', '"/etc/passwd"', '"~"', '"http://a/b"', '"good.wav"', '"."', '"a\\\\b"', '"C:a"'),
    *(f'"{"a" * 300}"', f'"{"b/" * 3000}"', '"{0.__class__}"', '"%s"', "'a'", "1_000", "01", "+1"),
    *(50 * "[" + 50 * "]", 900 * '{"a":' + "1" + 900 * "}", 50_000 * "[", 50_000 * '{"a":'),
    *(f"[{'0,' * 20_000}0]", f'"{5000 * chr(0x301)}"', '{"a":1,"a":2}', '["a","b"]', "[1,2]"),
)
_ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
).map(json.dumps)


def _places(value):
    """Yield the containers in a JSON value with each of their keys."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


@st.composite
def odd_json(draw, seeds):
    """A seed's JSON in which some values are replaced, left out or moved to another key."""
    value = copy.deepcopy(draw(st.sampled_from(seeds)))
    pieces = []
    for action in draw(
        st.lists(st.sampled_from(("replace", "replace", "omit", "move")), max_size=3)
    ):
        places = [*_places(value)]
        if not places:
            break
        container, key = draw(st.sampled_from(places))
        if action == "replace":
            container[key] = f"\0{len(pieces)}"
            pieces.append(draw(st.sampled_from(_ODD_JSON) | _ANY_JSON))
            continue
        inner = container.pop(key)
        if action == "move":
            container, key = draw(st.sampled_from([place for place in _places([value])]))
            container[key] = inner
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    for number, piece in enumerate(pieces):
        text = text.replace(json.dumps(f"\0{number}"), piece)
    return text.encode("utf-8", "surrogatepass")


_PIECES = st.binary(max_size=8) | st.sampled_from(
    [
        *(
            bytes(4),
            b"\xff" * 4,
            b"\xff\xff\xff\x7f",
            b"\0\0\0\x80",
            b"\x7f\xff\xff\xff",
            bytes(999),
        ),
        *(
            b"\n",
            b"\r",
            b'"',
            b"\\",
            b",",
            b"{",
            b"[",
            b"\xef\xbb\xbf",
            b"\xff\xfe",
            b"\xed\xa0\x80",
        ),
        *(b"OggS", b"RIFF", b"ID3\x04\0\0\x7f\x7f\x7f\x7f", b"data", b"\xff\xfb\x50\xc4", b"fLaC"),
    ]
)


@st.composite
def damaged(draw, valid, most=4):
    """Bytes of a strategy, some of them flipped, cut, repeated, written over, or another's."""
    data = draw(valid)
    actions = ("flip", "flip", "write", "write", "cut", "repeat", "insert", "splice", "end")
    for action in draw(st.lists(st.sampled_from(actions), max_size=most)):
        size = len(data)
        start = draw(st.integers(0, size) | st.integers(0, min(size, 200)) | st.integers(0, size))
        end = min(size, start + draw(st.integers(0, 16) | st.integers(0, size)))
        if action == "flip":
            mask = 1 << draw(st.integers(0, 7))
            data = (
                data[:start] + bytes(b ^ mask for b in data[start : start + 1]) + data[start + 1 :]
            )
        elif action == "cut":
            data = data[:start] + data[end:]
        elif action == "repeat":
            data = data[:end] + data[start:]
        elif action == "insert":
            data = data[:start] + draw(_PIECES) + data[start:]
        elif action == "write":
            piece = draw(_PIECES)
            data = data[:start] + piece + data[start + len(piece) :]
        elif action == "splice":
            data = data[:start] + draw(valid)[start:]
        else:
            data = data[:start]
    return data


def odd_lines(seeds):
    """Lines of odd JSON, of which bytes may be damaged."""
    line = odd_json(seeds)
    lines = st.lists(line, min_size=1, max_size=3).map(b"\n".join)
    return lines | damaged(lines)


# --- audio ----------------------------------------------------------------------------------------

_BY_LIBSNDFILE = {
    "WAV": ("PCM_16", "PCM_24", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "MS_ADPCM", "GSM610"),
    "W64": ("PCM_16",),
    "RF64": ("PCM_16",),
    "FLAC": ("PCM_16",),
    "OGG": ("VORBIS", "OPUS"),
    "MP3": ("MPEG_LAYER_III",),
}
_BY_FFMPEG = {
    "ipod": ("aac", "alac"),
    "adts": ("aac",),
    "matroska": ("libopus", "flac", "pcm_s16le"),
    "webm": ("libopus",),
    "ogg": ("flac",),
    "wav": ("libmp3lame",),
}


def _encode_by_ffmpeg(format: str, codec: str, wave: np.ndarray) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((wave[None] * 32767).astype("<i2"), "s16", "mono")
        frame.sample_rate, frame.pts = RATE, 0
        resampler = av.AudioResampler(stream.format.name, "mono", stream.rate, stream.frame_size)
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return file.getvalue()


def audio_files():
    """Files of all formats, a tenth of a second long; checksums of Ogg pages may be put right."""
    rng = np.random.default_rng(0)
    wave = rng.uniform(-0.5, 0.5, RATE // 10).astype(np.float32)
    files = []
    for format, subtypes in _BY_LIBSNDFILE.items():
        for subtype in subtypes:
            file = io.BytesIO()
            rate = 8000 if subtype == "GSM610" else RATE
            soundfile.write(file, wave, rate, subtype, format=format)
            files.append(file.getvalue())
    for format, codecs in _BY_FFMPEG.items():
        files += [_encode_by_ffmpeg(format, codec, wave) for codec in codecs]
    stereo = io.BytesIO()
    write_audio(stereo, np.stack([wave, -wave], axis=1), RATE, "flac")
    files.append(stereo.getvalue())
    data = damaged(st.sampled_from(files))
    return st.tuples(
        data | data.map(_with_ogg_checksums), st.floats(0, 0.2), st.none() | st.just(99)
    )


def _with_ogg_checksums(data: bytes) -> bytes:
    pages = data.split(b"OggS")
    for number, page in enumerate(pages[1:], 1):
        if len(page) > 22:
            page = bytearray(b"OggS" + page)
            page[22:26] = bytes(4)
            page[22:26] = ogg_checksum(page).to_bytes(4, "little")
            pages[number] = page[4:]
    return b"OggS".join(pages)


def check_audio(value, folder):
    data, start, count = value
    try:
        wave_S, rate = read_audio(data)
        assert wave_S.dtype == np.float32 and wave_S.ndim == 1 and wave_S.size
        assert np.isfinite(wave_S).all() and 4000 <= rate <= 192_000
        with AudioReader(data) as reader:
            assert reader.seconds > 0
    except AudioError as error:
        assert error.reason
    with AudioReader(data) as reader:
        assert np.isfinite(reader.stretch(int(start * reader.rate), count)).all()


# --- manifests ------------------------------------------------------------------------------------

_SPEECH = {
    "id": "a1",
    "audio": "good.wav",
    "text": "Good morning.",
    "speaker": "ann",
    "language": "en",
    "split": "train",
    "translation": "早上好。",
    "sample_rate": RATE,
    "words": [["Good", 0.0, 0.05], ["morning.", 0.05, 0.1]],
    "loss": False,
}
_LINES = [
    _SPEECH,
    _SPEECH | {"offset": 0.02, "duration": 0.05, "words": []},
    {"text": "Text alone.", "id": "t"},
    {"codes": "codes.npy", "text": "a", "duration": 0.16},
    {
        "id": "d",
        "language": "zh",
        "segments": [
            {"role": "user", "text": "二加二?", "audio": "good.wav"},
            {"role": "assistant", "text": "四。"},
        ],
    },
    {
        "segments": [
            {"text": "a b", "audio": "good.wav", "words": [["a", 0, 0.02], ["b", 0.02, 0.03]]},
            {"text": "c", "audio": "good.wav", "offset": 0, "duration": 0.1},
        ]
    },
]


def manifests():
    """A manifest and its options."""
    options = st.fixed_dictionaries(
        {name: st.booleans() for name in ("needs_text", "allow_absolute", "extra_keys")}
    )
    return st.tuples(odd_lines(_LINES), options)


def check_manifest(value, folder):
    data, options = value
    if not (folder / "good.wav").exists():
        write_audio(folder / "good.wav", np.zeros(RATE // 10, np.float32), RATE)
        np.save(folder / "codes.npy", np.ones((2, 8), np.int64))
    path = folder / "m.jsonl"
    path.write_bytes(data)
    source = {"path": str(path), **options, "audio": {"coding": "flac"}}
    plan = runner.make_plan(runner.PrepareConfig("manifest", source))
    for job in plan.jobs:
        for item in job.items:
            with contextlib.suppress(Rejected, AudioError):
                for record in plan.source.records(item):
                    with contextlib.suppress(RecordError):
                        assert isinstance(record, Rejection) or check_record(record)


# --- weights and their configs --------------------------------------------------------------------

_TENSORS = {"a": ((2, 3), "F32"), "b.weight": ((5,), "BF16"), "c": ((), "I64"), "d": ((0, 4), "U8")}


def _header() -> dict:
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    sizes = {"F32": 4, "BF16": 2, "I64": 8, "U8": 1}
    for name, (shape, dtype) in _TENSORS.items():
        start, end = end, end + int(np.prod(shape, dtype=int)) * sizes[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    return entries


def weights():
    """A safetensors file; its length of the header may be wrong."""
    header = _header()
    end = max(entry.get("data_offsets", [0, 0])[1] for entry in header.values())
    sizes = st.sampled_from((0, 0, 1, 2, 2**31, 2**62, 2**63, 10**19))
    shapes = st.lists(sizes, max_size=5) | st.lists(st.just(1), min_size=30, max_size=80)

    def with_shape(shape):
        size = min(math.prod(shape), 9)
        entry = {"dtype": "U8", "shape": shape, "data_offsets": [0, size]}
        return _safetensors(json.dumps({"a": entry}).encode(), size)

    size = st.just(end) | st.integers(0, 100)
    valid = st.builds(_safetensors, odd_json([header]), size) | shapes.map(with_shape)
    return valid | damaged(valid)


def _safetensors(header: bytes, size: int) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(size)


def check_weights(data, folder):
    path = folder / SINGLE_FILE
    path.write_bytes(data)
    file = SafetensorsFile(path)
    for name, info in file.tensors.items():
        assert file.read(name).shape == info.shape
        file.read(name, 1, 2)
    make_header(file.tensors, file.metadata)


def indices():
    """An index of two shards."""
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = odd_json([{"metadata": {"total_size": 8}, "weight_map": weight_map}])
    return index | damaged(index)


def check_index(data, folder):
    folder = folder / "shards"
    folder.mkdir(exist_ok=True)
    for number, name in enumerate("ab", 1):
        entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
        content = _safetensors(json.dumps({name: entry}).encode(), 4)
        (folder / f"model-{number}.safetensors").write_bytes(content)
    (folder / INDEX_FILE).write_bytes(data)
    assert {*SafetensorsFolder(folder).tensors} <= {"a", "b"}


@functools.cache
def _configs() -> list[dict]:
    release = json.loads((DATA / "reference" / "omni_config.json").read_text())
    release = {key: value for key, value in release.items() if key != "visual_config"}
    tiny = json.loads((DATA / "tiny" / "config.json").read_text())
    qwen2 = {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "default", "factor": 1.0},
        "sliding_window": None,
        "use_sliding_window": False,
        "layer_types": ["full_attention"],
        "tie_word_embeddings": False,
    }
    rope = {"rope_type": "default", "rope_theta": 1e6}
    newer = {key: value for key, value in qwen2.items() if not key.startswith("rope")}
    whisper = {
        "model_type": "whisper",
        "num_mel_bins": 128,
        "d_model": 1280,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "max_source_positions": 1500,
        "activation_function": "gelu",
    }
    return [release, tiny, qwen2, newer | {"rope_parameters": rope}, whisper]


def configs():
    """A config.json."""
    text = odd_json(_configs())
    return text | damaged(text, most=2)


def check_config(data, folder):
    path = folder / "config.json"
    path.write_bytes(data)
    values = read_json(path, "config")
    parsers = {
        "qwen2": hf_config.parse_qwen2_config,
        "whisper": hf_config.parse_whisper_config,
    }
    kind = values.get("model_type")
    parser = parsers.get(kind if isinstance(kind, str) else "", hf_config.parse_baichuan_config)
    config = parser(values, str(path))
    if parser is hf_config.parse_baichuan_config:
        hf_config.format_baichuan_config(config)


# --- requests -------------------------------------------------------------------------------------

_REQUESTS = [
    {"id": "s/1", "audio": "good.wav", "language": "en", "meta": {"a": [1, None]}},
    {"id": "s2", "text": "Good morning.", "language": "zh"},
    {"turns": [{"audio": "good.wav"}, {"text": "And three?"}], "system": "Be kind.", "id": "c"},
    {"text": "a"},
]


def requests():
    """A list of requests, or a text file, and the task."""
    return st.tuples(
        odd_lines(_REQUESTS), st.sampled_from(TASKS), st.sampled_from((".jsonl", ".txt"))
    )


def check_requests(value, folder):
    data, task, suffix = value
    path = folder / f"requests{suffix}"
    path.write_bytes(data)
    requests = read_requests(task, path, "en")
    assert len({request.id for request in requests}) == len(requests)
    for request in requests:
        assert bool(request.turns) or request.refusal
        line = json_lines.encode({"id": request.id, "where": request.where, "meta": request.meta})
        assert json.loads(line)["id"] == request.id


# --- judges and benchmarks ------------------------------------------------------------------------

_QUESTION = {"id": "q", "language": "en", "question": "a?", "references": ["Paris"], "answer": "b"}


@st.composite
def replies(draw):
    """Replies of judges and answers with a letter, damaged or with a piece of many times."""
    seeds = [reply for name in ("yes_no", "scale", "letters") for reply, _ in read_cases(name)]
    reply = draw(damaged(st.sampled_from(seeds).map(str.encode))).decode("utf-8", "replace")
    if draw(st.booleans()):
        reply += draw(st.text(st.characters(), max_size=8))
    if reply and draw(st.booleans()):
        start = draw(st.integers(0, len(reply) - 1))
        end = start + draw(st.integers(1, 3) | st.integers(1, 30))
        times = draw(st.sampled_from((2, 100, 10_000)))
        piece = reply[start:end]
        reply = reply[:start] + piece * min(times, 10_000 // len(piece)) + reply[end:]
    return reply


def check_reply(reply, folder):
    for rubric, verdicts in (("correct", ("right", "wrong")), ("scale", ("scored",))):
        verdict = answers.parse_reply(_QUESTION | {"rubric": rubric}, reply, "a judge")
        assert verdict["verdict"] in (*verdicts, "invalid")
        assert (verdict["verdict"] == "scored") == (verdict["score"] is not None)


def judged_answers():
    """Answers, the rubric and the language."""
    rubrics = st.sampled_from(("letter", "correct", "refusal"))
    return st.tuples(replies(), rubrics, st.sampled_from(("en", "zh")))


def check_answer(value, folder):
    answer, rubric, language = value
    assert rules.chosen_letter(answer) in (None, *"ABCDEFGHIJ")
    question = {"id": "q", "references": ["B"], "answer": answer}
    verdict = rules.judge_by_rules(question | {"rubric": rubric, "language": language})
    assert verdict["verdict"] in ("right", "wrong")


def completions():
    """The body of an endpoint's response."""
    body = odd_json([{"choices": [{"message": {"role": "assistant", "content": "Yes"}}]}])
    return body | damaged(body)


def check_completion(body, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx, "post", lambda *_, **__: httpx.Response(200, content=body))
        settings = answers.AnswerJudgeSettings("http", "http://localhost/v1", "m", retries=0)
        (verdict,) = answers.AnswerJudge(settings)([_QUESTION | {"rubric": "correct"}])
    assert verdict["verdict"] in ("right", "wrong", "invalid", "unjudged")
    json_lines.encode(verdict)


_STORIES = {"uttid": "0_a", "first": "I was hungry.", "last": "I ate."}
_CMMLU = {
    "uttid": "1",
    "first": "二加二?",
    "A": "一",
    "B": "二",
    "C": "三",
    "D": "四",
    "answer": "D",
}


def tables():
    """Tables of choice benchmarks: suffix and content."""
    story = {name: name for name in (*choices._SENTENCES, *choices._QUIZ)}
    rows = (
        {
            "": "0",
            "Question": "二加二?",
            "A": "一",
            "B": "二",
            "C": "三",
            "D": "四",
            "Answer": "Ｄ",
        },
        {"InputStoryid": "s1", **story, "AnswerRightEnding": "1"},
    )
    files = [f"{','.join(row)}\n{','.join(row.values())}\n".encode() for row in rows]
    stories = st.tuples(odd_json([_STORIES]), odd_json([_STORIES | {"uttid": "1_a"}]))
    lines = stories.map(b"\n".join) | odd_json([_CMMLU])
    return st.tuples(st.just("csv"), damaged(st.sampled_from(files))) | st.tuples(
        st.just("jsonl"), lines | damaged(lines)
    )


def check_table(value, folder):
    suffix, data = value
    folder = folder / suffix
    if suffix == "csv":
        paths = {folder / "test" / "a.csv": lambda: choices.load_cmmlu(folder)}
        path = folder / "story.csv"
        paths[path] = lambda: choices.load_story_cloze(folder / "story.csv")
    else:
        paths = {
            folder / table: functools.partial(choices.load_s2sbench, folder, [subset])
            for subset, (table, *_) in choices.S2SBENCH.items()
        }
        for _, recordings, _ in choices.S2SBENCH.values():
            (folder / recordings).mkdir(parents=True, exist_ok=True)
            for name in ("0_a", "1"):
                (folder / recordings / f"{name}.wav").touch()
    for path, load in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        with contextlib.suppress(EvalError):
            assert all(isinstance(choice, choices.Choice) for choice in load())


# --- tests ----------------------------------------------------------------------------------------

# Kind -> strategy, check, and the error that bad input may raise.
KINDS = {
    "audio": (audio_files, check_audio, AudioError),
    "manifest": (manifests, check_manifest, SourceError),
    "safetensors": (weights, check_weights, ConversionError),
    "index": (indices, check_index, ConversionError),
    "config": (configs, check_config, ConversionError),
    "requests": (requests, check_requests, RequestError),
    "reply": (replies, check_reply, ()),
    "answer": (judged_answers, check_answer, ()),
    "completion": (completions, check_completion, ()),
    "table": (tables, check_table, EvalError),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "examples", [60, pytest.param(3000, marks=[pytest.mark.slow, pytest.mark.deep])]
)
def test_any_input_gives_a_result_or_its_error(kind, examples, tmp_path):
    make_strategy, check, error = KINDS[kind]
    is_deep = examples > 1000

    @settings(
        max_examples=examples,
        derandomize=not is_deep,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(make_strategy())
    def run(value):
        def call():
            with contextlib.suppress(error):
                check(value, tmp_path)

        used = measure(call)
        if not (used[0] < SECONDS and used[1] < MEGABYTES):
            used = measure(call)  # the first call may have loaded libraries
        assert used[0] < SECONDS and used[1] < MEGABYTES

    run()
