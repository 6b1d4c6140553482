"""The operations of a step, read off its jaxpr."""

import jax
import numpy as np
import pytest
from jax.extend import core

from ba_jax.sampling.alternate import TextVocabulary, TurnLimits
from ba_jax.sampling.loop import Generator
from ba_jax.sampling.settings import GenerationSettings
from tests.unit.sampling.conftest import EOS, prompt

ROWS = 3


def equations(jaxpr, into_conditionals):
    """List all equations; those inside conditionals only if requested."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name == "cond" and not into_conditionals:
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner
                if isinstance(inner, core.Jaxpr):
                    yield from equations(inner, into_conditionals)


def products(jaxpr, width, into_conditionals):
    """List matrix products with a result of this width."""
    return sum(
        equation.primitive.name == "dot_general" and width in equation.outvars[0].aval.shape
        for equation in equations(jaxpr, into_conditionals)
    )


@pytest.fixture(scope="module")
def step(config, variables, writable):
    settings = GenerationSettings(rows=ROWS, lengths=(8,))
    generator = Generator(config, variables, TextVocabulary(EOS, writable), settings)
    session = generator.session([0])
    runner = session._runner
    session.read([prompt(config, 8, 0)])
    limits = TurnLimits(*(np.full(ROWS, 5, np.int32),) * 2, np.ones(ROWS, bool))
    keys = jax.vmap(jax.random.key)(np.zeros(ROWS, np.uint32))
    return jax.make_jaxpr(runner.step)(variables, session._state, keys, limits).jaxpr


def test_text_head_runs_only_while_a_row_writes(config, step):
    assert products(step, config.llm.vocab_size, into_conditionals=False) == 0
    assert products(step, config.llm.vocab_size, into_conditionals=True) == 1


def test_frame_takes_one_evaluation_per_depth(config, step):
    head = config.audio_head
    wide = 2 * head.width  # of the depths' feed-forward layers
    assert products(step, wide, into_conditionals=False) == 0
    assert products(step, wide, into_conditionals=True) == head.depth * head.layers
    for size in head.codebook_sizes:
        assert products(step, size + 1, into_conditionals=True) == 1
