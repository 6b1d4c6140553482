"""The bench: seeds, limits and progress."""

import dataclasses
import types

import numpy as np
import pytest

from ba_jax.evals.items import make_items
from ba_jax.sampling.prompt import Prompt
from ba_jax.sampling.session import Generated
from ba_jax.sampling.synthesize import Wave
from ba_jax.types import Failure
from tests.unit.evals import small_bench


@pytest.fixture
def bench(tmp_path):
    return small_bench.empty_bench(tmp_path)


def make_prompt(length):
    return Prompt(np.zeros(length, np.int32), np.zeros((length, 8), np.int32))


def test_a_seed_depends_on_the_item_alone(bench):
    """Failures before it and its batch do not matter."""
    seen = {}

    def generator(prompts, seeds, progress):
        seen.update(zip(map(len, prompts), seeds, strict=True))
        progress(len(prompts))
        return [Generated([], np.zeros((0, 8), np.int32), True) for _ in prompts]

    bench.model.generator = generator
    prompts = [make_prompt(3), Failure("before"), make_prompt(65), make_prompt(5)]
    outputs = bench.generate(prompts, "writing", [10, 11, 12, 13])
    assert [isinstance(output, Failure) for output in outputs] == [False, True, True, False]
    assert outputs[1].reason == "before"
    assert "65 positions, expected at most 64" in outputs[2].reason
    whole = dict(seen)
    bench.generate(prompts[3:], "writing", [13])
    assert seen == whole and len(set(whole.values())) == 2
    bench.settings = dataclasses.replace(bench.settings, seed=1)
    bench.generate(prompts[3:], "writing", [13])
    assert seen[5] != whole[5]


def test_segments_that_are_too_long_or_empty(bench):
    bench.model.synthesizer = types.SimpleNamespace(
        waves=lambda codes, seeds: [Wave(np.ones(len(codes_NQ)), 24000) for codes_NQ in codes]
    )
    codes = [np.zeros((n, 8), np.int32) for n in (3, 0, 65, 64)]
    waves = bench.synthesize(codes, [0, 1, 2, 3])
    assert [len(wave.wave_S) for wave in (waves[0], waves[3])] == [3, 64]
    assert waves[1] is None and "65 frames of speech, expected at most 64" in waves[2].reason


def test_progress_counts_up_to_the_phase(bench):
    calls = []
    bench.progress = lambda *arguments: calls.append(arguments)
    bench.model.generator = lambda prompts, seeds, progress: [
        progress(i + 1) for i in range(len(prompts))
    ]
    bench.begin(3)
    bench.generate([make_prompt(1), make_prompt(1)], "writing", [0, 1])
    bench.advance(2)
    bench.generate([make_prompt(1)], "writing", [2])
    assert calls == [("writing", done, 3) for done in (1, 2, 3)]


def test_texts_are_spoken_in_turns_or_at_once(tmp_path):
    """A text without words fails alone."""
    calls = []

    class FakeGenerator:
        def __call__(self, prompts, seeds, progress):
            calls.append(("at once", prompts))
            return [Generated([], np.zeros((2, 8), np.int32), True) for _ in prompts]

        def in_turns(self, prompts, seeds, progress):
            calls.append(("in turns", prompts))
            return [Generated([], np.zeros((3, 8), np.int32), True) for _ in prompts]

    for words, frames in ((0, 2), (2, 3)):
        bench = small_bench.empty_bench(tmp_path, tts_words_per_turn=words)
        bench.model.generator = FakeGenerator()
        items = make_items(bench.records.statements)
        silent = dataclasses.replace(items[1].record.parts[0], text="")
        items[1] = dataclasses.replace(
            items[1], record=dataclasses.replace(items[1].record, parts=(silent,))
        )
        lines = bench.say(items, "speaking")
        assert isinstance(lines[1], Failure) and "text" in lines[1].reason
        counts = [len(line["codes"]) for line in lines if not isinstance(line, Failure)]
        assert counts == [frames] * 3
    (first, at_once), (second, in_turns) = calls
    assert (first, second) == ("at once", "in turns")
    decode = bench.model.tokenizer.decode
    for whole, pieces in zip(at_once, in_turns, strict=True):
        words = [decode(piece.ids_L[:-1].tolist()) for piece in pieces]
        text = decode(whole.ids_L[:-1].tolist())
        assert len(pieces) > 1 and "".join(words).replace(" ", "") == text.replace(" ", "")


def test_recordings_in_the_prompt_are_encoded_alone(tmp_path):
    """Stored codes are used unchanged; recordings of answers are not encoded."""
    bench = small_bench.empty_bench(tmp_path)
    encoded = []

    def encoder(waves, progress):
        encoded.extend(waves)
        return [np.full((len(wave) // 1280, 8), 7, np.int32) for wave in waves]

    bench.model.encoder = encoder
    dialogues = bench.records.dialogues[:2]
    stored = dataclasses.replace(dialogues[1].parts[0], codes_NQ=np.full((5, 8), 9))
    dialogues[1] = dataclasses.replace(dialogues[1], parts=(stored, dialogues[1].parts[1]))
    tokens = bench.model.config.tokens
    pad = tokens.audio_pad
    for task, options in (("sft", {"answers": "spoken"}), ("aqa", {})):
        first, second = bench.make_prompts(dialogues, task, **options)
        question = dialogues[0].parts[0]
        assert (first.ids_L == pad).sum() == round(question.seconds * 16000) // 1280
        assert (first.codes_LQ[first.ids_L == pad] == 7).all()
        assert (second.codes_LQ[second.ids_L == pad] == 9).all()
        assert (second.ids_L == pad).sum() == 5
        assert tokens.audiogen_start not in first.ids_L
    assert len(encoded) == 1  # the only question without codes, once
    written = bench.make_prompts(dialogues, "sft", questions="written", answers="spoken")
    texts = bench.make_prompts(bench.records.statements, "tts")
    assert all(pad not in prompt.ids_L for prompt in written + texts) and len(encoded) == 1
    assert all(prompt.ids_L[-1] == tokens.audiogen_start for prompt in texts)
