"""Prompts hold the question and nothing of the answer."""

import dataclasses

import numpy as np

from tests.unit.evals import small_bench


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
