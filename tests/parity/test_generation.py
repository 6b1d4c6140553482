"""The generator on the tiny golden model: greedy text, `<audiogen_start>`, greedy frames."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.checkpoints import arrays
from ba_jax.convert import sources, verify
from ba_jax.models.baichuan_audio import variable_shapes
from ba_jax.sampling.alternate import MODES, Alternation, StopMasks, TextVocabulary
from ba_jax.sampling.logits import GREEDY
from ba_jax.sampling.loop import Generator
from ba_jax.sampling.prompt import Prompt
from ba_jax.sampling.session import collect
from ba_jax.sampling.settings import GenerationSettings

DATA = Path(__file__).resolve().parent.parent / "data"


@pytest.mark.parametrize("mode", MODES)
def test_golden(tiny_checkpoint, mode):
    """The golden's sixth id is followed by `<audiogen_start>`.

    Clean mode appends it after six ids. Reference mode puts it in the seventh id's place, and
    the frames are the same: the model had not read the overwritten id.
    """
    golden = verify.read_golden(DATA / "tiny" / "golden.npz")
    _, config = sources.checkpoint_config(tiny_checkpoint)
    variables = arrays.load_variables(tiny_checkpoint, variable_shapes(config), dtype=jnp.float32)
    vocab, text = config.llm.vocab_size, golden["greedy_text"].tolist()
    generator = Generator(
        config,
        variables,
        TextVocabulary(2, np.ones(vocab, bool), StopMasks(*np.zeros((3, vocab), bool))),
        GenerationSettings(rows=2, lengths=(16,), max_frames=len(golden["greedy_audio"])),
        Alternation(mode, later_text=GREEDY, stops=(), stretch=len(text) + (mode == "reference")),
    )
    ids = golden["greedy_prompt"].astype(np.int32)
    frames = int((ids == config.tokens.audio_pad).sum())
    codes = np.zeros((len(ids), golden["mixed_codes"].shape[1]), np.int32)
    codes[ids == config.tokens.audio_pad] = golden["mixed_codes"][:frames]
    prompt = Prompt(ids, codes, wants_speech=True)
    (output,) = generator([prompt])
    assert output.pieces[0].ids[: len(text)] == text
    assert len(output.pieces[0].ids) == len(text) + (mode == "reference")
    np.testing.assert_array_equal(output.pieces[1].codes_NQ, golden["greedy_audio"])
    assert not output.complete  # it would have spoken on
    events = [event for batch in generator.stream([prompt]) for event in batch]
    streamed = collect(events, codes.shape[1])[0]
    assert streamed.ids == output.ids
    np.testing.assert_array_equal(streamed.codes_NQ, output.codes_NQ)
