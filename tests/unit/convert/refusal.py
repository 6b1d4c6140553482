"""What every reader of the converter owes bad input."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from ba_jax.convert.engine import ConversionError


def assert_refused(call: Callable[[], object], *words: object, seconds: float = 1.0) -> str:
    """`call` raises `ConversionError` within CPU `seconds`, its message holding all `words`."""
    started = time.process_time()
    with pytest.raises(ConversionError) as caught:
        call()
    assert time.process_time() - started < seconds
    for word in words:
        assert str(word) in str(caught.value)
    return str(caught.value)
