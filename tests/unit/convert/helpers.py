"""Helpers of the converter's tests: the command, and refusals of bad input."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ba_jax.convert.__main__ import main
from ba_jax.convert.engine import ConversionError

TINY = Path(__file__).parents[2] / "data" / "tiny"


def run(*arguments: object) -> int:
    """Run `python -m ba_jax.convert`; return its exit code."""
    return main([str(a) for a in arguments] + ["--quiet"])


def user_error(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Run a command that must fail; return its message."""
    capsys.readouterr()
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
    return captured.err


def assert_refused(call: Callable[[], object], *words: object, seconds: float = 1.0) -> str:
    """Check that `call` raises `ConversionError` with all `words` within CPU `seconds`."""
    started = time.process_time()
    with pytest.raises(ConversionError) as caught:
        call()
    assert time.process_time() - started < seconds
    for word in words:
        assert str(word) in str(caught.value)
    return str(caught.value)
