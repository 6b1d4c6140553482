"""What the bench does where an item cannot be used, and the names of its files."""

import dataclasses
import types

import numpy as np
import pytest

from ba_jax.data.record import Part
from ba_jax.sampling.prompt import Prompt
from ba_jax.sampling.session import Generated
from ba_jax.sampling.synthesize import Wave
from ba_jax.types import Failure
from tests.unit.evals import small_bench


@pytest.fixture
def bench(tmp_path):
    from ba_jax.config import from_mapping
    from ba_jax.models.baichuan_audio import BaichuanAudioConfig
    from configs.eval import get_config

    config = from_mapping(BaichuanAudioConfig, get_config("nano").to_dict()["model"])
    judge = small_bench.FakeJudge()
    return small_bench.make_bench(config, {}, small_bench.settings(), tmp_path, judge)


def prompt(length):
    return Prompt(np.zeros(length, np.int32), np.zeros((length, 8), np.int32))


def test_a_seed_is_of_the_item_not_of_its_place(bench):
    """Whatever failed before it, and in whatever batch it is."""
    seen = {}

    def generator(prompts, seeds, progress):
        seen.update(zip(map(len, prompts), seeds, strict=True))
        progress(len(prompts))
        return [Generated([], np.zeros((0, 8), np.int32), True) for _ in prompts]

    bench.model.generator = generator
    given = [prompt(3), Failure("before"), prompt(65), prompt(5)]
    found = bench.generate(given, "writing", [10, 11, 12, 13])
    assert [isinstance(one, Failure) for one in found] == [False, True, True, False]
    assert found[1].reason == "before" and "65 positions, expected at most 64" in found[2].reason
    whole = dict(seen)
    bench.generate(given[3:], "writing", [13])
    assert seen == whole and len(set(whole.values())) == 2
    bench.settings = dataclasses.replace(bench.settings, seed=1)
    bench.generate(given[3:], "writing", [13])
    assert seen[5] != whole[5]


def test_too_many_frames_and_none(bench):
    bench.model.synthesizer = types.SimpleNamespace(
        waves=lambda codes, seeds: [Wave(np.ones(len(own)), 24000) for own in codes]
    )
    codes = [np.zeros((n, 8), np.int32) for n in (3, 0, 65, 64)]
    found = bench.speech_of(codes, [0, 1, 2, 3])
    assert [len(one.wave_S) for one in (found[0], found[3])] == [3, 64]
    assert found[1] is None and "65 frames of speech, expected at most 64" in found[2].reason


def test_progress_counts_up_to_the_stage(bench):
    told = []
    bench.progress = lambda *said: told.append(said)
    bench.model.generator = lambda prompts, seeds, progress: [
        progress(i + 1) for i in range(len(prompts))
    ]
    bench.begin(3)
    bench.generate([prompt(1), prompt(1)], "writing")
    bench.advance(2)
    bench.generate([prompt(1)], "writing")
    assert told == [("writing", done, 3) for done in (1, 2, 3)]


@pytest.mark.parametrize("name", ["../../etc/x", "a/b", ".hidden", "", "名字 x", "a" * 300])
def test_an_id_that_is_no_file_name(bench, tmp_path, name):
    path = bench.save("tts", name, Wave(np.zeros(10, np.float32), 24000))
    assert path.startswith("audio/tts/") and (tmp_path / path).is_file()
    assert path.count("/") == 2 and not path.split("/")[2].startswith(".")
    assert path != bench.save("tts", f"{name}-", Wave(np.zeros(10, np.float32), 24000))
    assert len(bench.load(path).wave_S) == 10 and bench.load("") is None
    assert isinstance(bench.load("audio/gone.wav"), Failure)


def test_a_recording_is_written_as_it_is_heard_or_not_at_all(bench, tmp_path):
    part = bench.statements[0].parts[0]
    path = bench.recording(part, "x")
    assert len(bench.load(path).wave_S) == len(small_bench.recorded(part).wave_S)
    assert bench.recording(Part(audio=b"no audio", seconds=1.0), "y") == ""
