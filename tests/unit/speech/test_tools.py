"""Speech tools by name."""

from __future__ import annotations

import pickle

import pytest

from ba_jax.speech import tools
from ba_jax.speech.align import PocketSphinxAligner, WhisperAligner
from ba_jax.speech.interfaces import SpeechToolError


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in tools.TOOLS.items() for name in names]
)
def test_every_tool_is_made_by_name_and_can_be_pickled(kind, name):
    tool = tools.make_tool(kind, name)
    assert type(pickle.loads(pickle.dumps(tool))) is type(tool)


@pytest.mark.parametrize("kind", list(tools.TOOLS))
def test_unknown_names_and_options_are_refused(kind):
    with pytest.raises(SpeechToolError, match=f"{kind} 'espeak', expected one of"):
        tools.make_tool(kind, "espeak")
    with pytest.raises(SpeechToolError, match="colour"):
        tools.make_tool(kind, next(iter(tools.TOOLS[kind])), colour="red")


def test_options_arrive():
    assert tools.make_tool("recogniser", "whisper", beam=2)._beam == 2
    assert isinstance(tools.make_tool("aligner", "whisper"), WhisperAligner)
    assert isinstance(tools.make_tool("aligner", "pocketsphinx"), PocketSphinxAligner)
