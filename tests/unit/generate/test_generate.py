"""The command: batches, streams, conversations, failures and resuming."""

import json
import types

import numpy as np
import pytest

from ba_jax.audio import AudioError, read_audio, write_audio
from ba_jax.config import from_mapping
from ba_jax.data.sequence import to_sequence
from ba_jax.data.tasks import make_example
from ba_jax.generate import batched, streamed
from ba_jax.generate.__main__ import generate
from ba_jax.generate.requests import Request, RequestError, UserTurn, has_recordings
from ba_jax.generate.results import Results, ResultsError
from ba_jax.generate.settings import GenerateSettings
from ba_jax.generate.streamed import PlayerError, Speaker, Streamer
from ba_jax.generate.turns import TaskModel
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.sampling.session import END, SEGMENT, SEGMENT_END, Event
from ba_jax.sampling.speech_model import SpeechModel
from ba_jax.types import Failure
from ba_jax.vocab import LANGUAGE_MODEL


def changed(config: dict, generation=(), **changes) -> dict:
    """Copy the config with changes to `generate` and to `generate.generation`."""
    generation = {**config["generate"]["generation"], **dict(generation)}
    return {**config, "generate": {**config["generate"], **changes, "generation": generation}}


def make_task(task: str, config: dict) -> TaskModel:
    """A task's model without weights."""
    settings = from_mapping(GenerateSettings, config["generate"], "generate").for_task(task, False)
    model = from_mapping(BaichuanAudioConfig, config["model"])
    return TaskModel(task, SpeechModel(model, {}, settings), settings)


def results(out) -> dict[str, dict]:
    lines = (out / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["id"]: line for line in map(json.loads, lines)}


@pytest.fixture(scope="module")
def conversations(recordings):
    """A list of three conversations of one to three turns."""
    rows = [
        {"id": "three", "turns": [{"audio": "q0.ogg"}, {"text": "Why?"}, {"audio": "q1.ogg"}]},
        {"id": "one", "text": "天空是什么颜色？", "language": "zh", "system": "请回答。"},
        {"id": "two", "turns": [{"text": "What is it?"}, {"audio": "q2.ogg"}]},
    ]
    path = recordings / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chats(config, weights, conversations, tmp_path_factory):
    out = tmp_path_factory.mktemp("chats")
    counts = generate(config, "chat", [weights], conversations, out)
    assert counts == {"requests": 3, "done_before": 0, "failed": 0}
    return out


def bare(lines: dict[str, dict]) -> dict:
    """Return the turns of each request, without times and files."""
    return {
        id: [
            (turn["user"], turn["text"], turn["frames"], turn["complete"]) for turn in line["turns"]
        ]
        for id, line in lines.items()
    }


def test_every_turn_has_text_and_speech(chats):
    lines = results(chats)
    assert [len(lines[id]["turns"]) for id in ("three", "one", "two")] == [3, 1, 2]
    frames = 0
    for id, line in lines.items():
        for number, turn in enumerate(line["turns"]):
            frames += turn["frames"]
            assert bool(turn["frames"]) == ("audio" in turn)
            if "audio" in turn:
                assert turn["audio"] == f"audio/{id}-{number + 1}.wav"
                wave_S, rate = read_audio(chats / turn["audio"])
                assert rate == 24000 and abs(len(wave_S) / rate - turn["seconds"]) < 1e-3
    assert frames > 10


def test_stream_gives_the_same_answers(config, weights, conversations, chats, tmp_path):
    written = []
    counts = generate(
        config, "chat", [weights], conversations, tmp_path, stream=True, write=written.append
    )
    assert counts["failed"] == 0
    lines = results(tmp_path)
    assert bare(lines) == bare(results(chats))
    text = "".join(written)
    for line in lines.values():
        for turn in line["turns"]:
            assert turn["text"] in text
            timing = turn["timing"]
            if "audio" in turn:
                assert timing["seconds_to_first_audio"] <= timing["seconds_in_all"]
                assert read_audio(tmp_path / turn["audio"])[1] == 16000
    assert not list(tmp_path.rglob("*.partial"))


def test_answers_are_independent_of_the_batch(config, weights, conversations, chats, tmp_path):
    together = changed(config, {"rows": 3}, encode_rows=2)
    generate(together, "chat", [weights], conversations, tmp_path)
    assert bare(results(tmp_path)) == bare(results(chats))


def test_prompts_have_the_layout_of_training(config):
    """Prompts of the turns join to the dialogue; the session adds the end tokens."""
    task = make_task("chat", config)
    sizes, tokenizer = task.model.codebook_sizes, task.model.tokenizer
    codes = [np.full((n, len(sizes)), n, np.int32) for n in (2, 3, 4)]
    request = Request(
        "r", "r", "en", (UserTurn(audio="a"), UserTurn(text="And then?")), "Be short."
    )
    turns = [
        ("system", ["Be short."]),
        ("user", [codes[0]]),
        ("assistant", ["One.", codes[1]]),
        ("user", ["And then?"]),
        ("assistant", ["Two.", codes[2]]),
    ]
    example = make_example("sft", turns, id="r", language="en")
    whole = to_sequence(example, tokenizer, sizes)
    prompts = [task.prompt(request, 0, codes[0]), task.prompt(request, 1, None)]
    tokens = tokenizer.audio_tokens
    ids, frames = [], []
    for prompt, text, codes_NQ in zip(prompts, ("One.", "Two."), codes[1:], strict=True):
        speech = [tokens.audiogen_start, *[tokens.audio_pad] * len(codes_NQ), tokens.audiogen_end]
        answer = [*tokenizer.encode(text), *speech, tokenizer.eos_id]
        ids += [*prompt.ids_L, *answer]
        frames += [*prompt.codes_LQ[prompt.ids_L == tokens.audio_pad], *codes_NQ]
        assert prompt.wants_speech and not prompt.speaks
    assert ids == whole.ids_L.tolist()
    np.testing.assert_array_equal(frames, whole.codes_LQ[whole.ids_L == tokens.audio_pad])


@pytest.fixture(scope="module")
def mixed(recordings, tmp_path_factory):
    """Recordings of every bad kind among good ones."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    (folder / "a-empty.wav").write_bytes(b"")
    (folder / "b-text.wav").write_text("no audio")
    write_audio(folder / "c-short.wav", np.zeros(200, np.float32), 16000)
    write_audio(folder / "d-silence.wav", np.zeros(16000, np.float32), 16000)
    write_audio(folder / "e-noise.wav", rng.normal(0, 0.1, 16000).astype(np.float32), 16000)
    write_audio(folder / "f-long.flac", rng.normal(0, 0.1, 16000 * 20).astype(np.float32), 16000)
    (folder / "g-good.ogg").write_bytes((recordings / "q0.ogg").read_bytes())
    return folder


def test_invalid_recordings_fail_alone(config, weights, recordings, mixed, tmp_path):
    together = changed(config, {"rows": 2}, encode_rows=2)
    counts = generate(together, "asr", [weights], mixed, tmp_path / "mixed")
    lines = results(tmp_path / "mixed")
    assert counts == {"requests": 7, "done_before": 0, "failed": 4}
    for id, message in (
        ("a-empty", "empty"),
        ("b-text", "expected a WAV, FLAC"),
        ("c-short", "200 samples at 16 kHz are too few for a frame of codes"),
        ("f-long", "positions, expected at most 64"),
    ):
        assert message in lines[id]["error"], lines[id]
    generate(config, "asr", [weights], recordings / "q0.ogg", tmp_path / "alone")
    alone = results(tmp_path / "alone")["q0"]
    assert lines["g-good"]["text"] == alone["text"] and "error" not in lines["d-silence"]


def test_reconstruct(config, weights, mixed, tmp_path):
    counts = generate(config, "reconstruct", [weights], mixed, tmp_path)
    lines = results(tmp_path)
    assert counts["failed"] == 3
    # Twenty seconds are cut into the synthesizer's segments.
    assert lines["f-long"]["frames"] == 250 and lines["f-long"]["seconds"] > 19
    assert lines["g-good"]["frames"] > 5


def test_tts_and_translate(config, weights, recordings, tmp_path):
    path = tmp_path / "say.txt"
    path.write_text("The sky is blue.\n天空是蓝色的。\n", encoding="utf-8")
    assert generate(config, "tts", [weights], path, tmp_path / "said")["failed"] == 0
    for line in results(tmp_path / "said").values():
        assert read_audio(tmp_path / "said" / line["audio"])[1] == 24000
    generate(config, "translate", [weights], recordings, tmp_path / "translated")
    lines = results(tmp_path / "translated")
    assert len(lines) == 3 and all(isinstance(line["text"], str) for line in lines.values())


@pytest.mark.slow
def test_texts_in_turns_and_streamed(config, brief, tmp_path):
    """A text that is read in pieces gives a single recording, streamed or not."""
    path = tmp_path / "say.txt"
    path.write_text("The sky is blue today.\n天空是蓝色的。\n", encoding="utf-8")
    drawn = config["generate"]["generation"]["audio"] | {"temperature": 0.5}
    longer = changed(config, {"max_frames": 24, "audio": drawn})  # greedy speech would never end
    assert generate(longer, "tts", [brief], path, tmp_path / "said")["failed"] == 0
    assert generate(longer, "tts", [brief], path, tmp_path / "live", stream=True)["failed"] == 0
    whole_lines, streamed = results(tmp_path / "said"), results(tmp_path / "live")
    whole = changed(longer, tts_words_per_turn=0)
    generate(whole, "tts", [brief], path, tmp_path / "whole")
    at_once = results(tmp_path / "whole")
    for id, line in whole_lines.items():
        assert line["complete"] == streamed[id]["complete"]
        assert line["seconds"] == pytest.approx(streamed[id]["seconds"], abs=0.05)
        assert line["seconds"] != at_once[id].get("seconds")
    assert any(line["complete"] for line in whole_lines.values())


def test_texts_that_exceed_the_cache_in_turns(config, weights, tmp_path):
    path = tmp_path / "say.txt"
    path.write_text(f"{'a ' * 120}\n{'x' * 600} y\nGood.\n", encoding="utf-8")
    generate(config, "tts", [weights], path, tmp_path / "said")
    lines = results(tmp_path / "said")
    assert "the text takes" in lines["say-1"]["error"] and "at most 200" in lines["say-1"]["error"]
    assert "a piece of the text takes" in lines["say-2"]["error"] and "audio" in lines["say-3"]


def test_resume(config, weights, conversations, chats, tmp_path, monkeypatch):
    calls, run = [], batched.run

    def stops(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(*args)

    monkeypatch.setattr(batched, "run", stops)
    with pytest.raises(KeyboardInterrupt):
        generate(config, "chat", [weights], conversations, tmp_path)
    assert len(results(tmp_path)) == 1, "a batch was done"
    counts = generate(config, "chat", [weights], conversations, tmp_path)
    assert counts == {"requests": 3, "done_before": 1, "failed": 0}
    assert bare(results(tmp_path)) == bare(results(chats))
    done = len(calls)
    generate(changed(config, {"rows": 2}), "chat", [weights], conversations, tmp_path)
    assert len(calls) == done, "nothing was left to do"
    with pytest.raises(ResultsError, match="made with other config.generate"):
        generate(changed(config, seed=1), "chat", [weights], conversations, tmp_path)


def test_conversation_fails_at_the_turn_that_fills_the_cache(config, weights, tmp_path):
    path = tmp_path / "list.jsonl"
    long = " ".join(["What is the color of the sky?"] * 7)
    rows = [
        {"id": "long", "turns": [{"text": long}, {"text": long}, {"text": long}]},
        {"id": "short", "text": "Why?"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = generate(config, "chat", [weights], path, tmp_path / "out")
    line = results(tmp_path / "out")["long"]
    assert counts["failed"] == 1 and len(line["turns"]) == 2
    assert line["error"].startswith("turn 3: ") and "left of its capacity of 200" in line["error"]
    streamed = generate(config, "chat", [weights], path, tmp_path / "stream", stream=True)
    assert streamed["failed"] == 1
    assert results(tmp_path / "stream")["long"]["error"] == line["error"]


def test_written_answers_need_no_decoder(config, weights, conversations, tmp_path):
    written = changed(config, answers="written")
    settings = from_mapping(GenerateSettings, written["generate"], "generate")
    texts = [Request("r", "r", "en", (UserTurn(text="x"),))]
    assert settings.components("chat", has_recordings("chat", texts)) == LANGUAGE_MODEL
    generate(written, "chat", [weights], conversations, tmp_path)
    for line in results(tmp_path).values():
        assert all("frames" not in turn and "audio" not in turn for turn in line["turns"])


def test_unknown_language_is_a_failure(config):
    request = Request("r", "r", "french", (UserTurn(text="x"),))
    prompt = make_task("tts", config).prompt(request, 0, None)
    assert isinstance(prompt, Failure) and "language 'french'" in prompt.reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": "sung"}, "answers 'sung', expected one of"),
        ({"language": "fr"}, "language 'fr', expected one of"),
        ({"seed": -1}, "seed -1"),
        ({"alternation": {"segment": 50}}, "alternation.segment 50, synthesis.frames"),
        ({"stream": {"chunk": 0}}, "chunk 0: expected at least 1"),
        ({"stream": {"player": "a 'b"}}, "No closing quotation"),
        ({"stream": {"player": " "}}, "player ' ': expected a command"),
        ({"system": "\ud800"}, "system: lone surrogate"),
    ],
)
def test_invalid_settings(config, changes, message):
    with pytest.raises(ValueError, match=message):
        from_mapping(GenerateSettings, {**config["generate"], **changes}, "generate")


def test_speaker_and_its_player(tmp_path):
    with pytest.raises(PlayerError, match="stream.player 'no-such-player'"):
        Speaker(tmp_path / "a.wav", 16000, "no-such-player")
    speaker = Speaker(tmp_path / "b.wav", 16000, f"dd of={tmp_path}/played-{{rate}} status=none")
    wave_S = np.linspace(-1, 1, 400, dtype=np.float32)
    speaker.write(wave_S[:100])
    speaker.write(wave_S[100:])
    assert speaker.finish()
    speaker.drop()
    played = np.frombuffer((tmp_path / "played-16000").read_bytes(), "<i2")
    np.testing.assert_allclose(played / 32767, wave_S, atol=2 / 32767)
    write_audio(tmp_path / "whole.wav", wave_S, 16000)
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()


@pytest.mark.parametrize(
    ("player", "samples", "patience", "message"),
    [
        ("no-such-player", 9, 9, "No such file"),
        ("x\0y", 9, 9, "null byte"),
        ("true", 100_000, 9, "ended early: "),
        ("head -c 2", 100_000, 9, "ended early: "),
        ("sh -c 'cat >/dev/null; exit 3'", 100_000, 9, "ended with exit code 3"),
        ("sleep 100", 100_000, 0.1, "took no samples for 0.1 s"),
        ("sleep 100", 9, 0.1, "did not end in 0 s"),
    ],
)
def test_a_player_that_fails_fails_its_request_alone(
    config, tmp_path, monkeypatch, player, samples, patience, message
):
    """The first error is kept, and no file is left, though the segment's stream was finished."""
    monkeypatch.setattr(streamed, "_PATIENCE", patience)
    task = make_task("tts", changed(config, stream={"player": player}))
    stub = StubSynthesizer(samples)
    session = types.SimpleNamespace(session=lambda seeds: None)
    monkeypatch.setattr(SpeechModel, "generator", session)
    monkeypatch.setattr(SpeechModel, "streaming_synthesizer", lambda *_: stub)
    events = [Event(0, SEGMENT), Event(0, SEGMENT_END), Event(0, END)]
    monkeypatch.setattr(Streamer, "_events", lambda *_: iter(events))
    request = Request("a", "a", "en", (UserTurn(text="x"),))
    line = Streamer(task, lambda text: None)(request, Results(tmp_path, {}))
    assert message in line["error"] and not line["complete"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class StubSynthesizer:
    """Stands for the synthesizer and for its streams, which cannot be dropped once finished."""

    rate = 16000

    def __init__(self, samples: int):
        self._samples, self._is_finished = samples, False

    def open(self, *_):
        return self

    def finish(self):
        self._is_finished = True
        return np.zeros(self._samples, np.float32)

    def drop(self):
        assert not self._is_finished


def test_speech_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "a.wav.partial").symlink_to("/dev/full")
    speaker = Speaker(tmp_path / "a.wav", 16000, "")
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.wav'"):
        speaker.write(np.zeros(9, np.float32))
    with pytest.raises(AudioError, match="a.wav: sample 1 is nan"):
        speaker.write(np.array([0, np.nan], np.float32))
    speaker.drop()
    assert not list(tmp_path.iterdir())


def test_reconstruct_cannot_stream(config, weights, recordings, tmp_path):
    with pytest.raises(RequestError, match="--stream: expected .* a task that generates"):
        generate(config, "reconstruct", [weights], recordings, tmp_path, stream=True)
