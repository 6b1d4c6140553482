"""The judge: a recogniser that has no part in the model, in processes of its own.

English is heard by Whisper tiny.en, whose weights are not those of Whisper-base, with which an
audio tokenizer may have been initialised; Mandarin by Whisper-base, as there is no other. Which
one heard what is in every evaluation's figures. The processes also do other work that takes a core
(Griffin-Lim), through `map`.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ba_jax.speech import assets
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.types import Failure

MODELS = {"en": "whisper-tiny.en", "zh": "whisper-base"}
"""Asset of the recogniser of each language."""


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """The recogniser.

    Attributes:
      processes: that listen side by side.
      beam: hypotheses kept; 1 is greedy.
    """

    processes: int = 2
    beam: int = 1

    def __post_init__(self):
        if self.processes < 1 or self.beam < 1:
            raise ValueError(f"{self}: expected processes >= 1, beam >= 1")


class Judge:
    """Hears speech; close it, or use it in a `with`. The processes start with the first work."""

    def __init__(self, settings: JudgeSettings = JudgeSettings()):
        self.settings = settings
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    @property
    def names(self) -> dict[str, str]:
        """Language -> the recogniser's name."""
        return dict(MODELS)

    def map(self, function: Callable[[Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        """`map` over the processes; results in order."""
        return self._started().map(function, values)

    def hear(
        self,
        waves: Sequence[tuple[np.ndarray, int] | None],
        languages: Sequence[str],
        progress: Callable[[int], None] | None = None,
    ) -> list[str | Failure]:
        """What is said in each wave of at most 30 s; "" where there is none.

        A wave that cannot be heard (too long, a language or weights that are missing, a process
        that died) fails; the others are heard.

        Args:
          waves: (mono wave, Hz), or None for no speech at all.
          languages: of each.
          progress: called with the number of waves heard.
        """
        deaf = {language: self._missing(language) for language in set(languages)}
        work: list[concurrent.futures.Future | str | Failure] = []
        for wave, language in zip(waves, languages, strict=True):
            if wave is None:
                work.append("")
            elif deaf[language] is not None:
                work.append(deaf[language])
            else:
                given = (wave[0], wave[1], language, self.settings.beam)
                work.append(self._started().submit(_hear, given))
        heard = []
        for number, one in enumerate(work):
            if isinstance(one, concurrent.futures.Future):
                try:
                    one = one.result()
                except concurrent.futures.BrokenExecutor as error:
                    one = Failure(f"judge: {error}")
                    self.close()
            heard.append(one)
            if progress is not None:
                progress(number + 1)
        return heard

    def _missing(self, language: str) -> Failure | None:
        """Why a language cannot be heard; fetches weights once, not in every process."""
        if language not in MODELS:
            return Failure(f"judge: language {language!r}, expected one of {tuple(MODELS)}")
        try:
            assets.ensure(MODELS[language])
        except (SpeechToolError, OSError) as error:
            return Failure(f"judge: {error}")
        return None

    def _started(self) -> concurrent.futures.ProcessPoolExecutor:
        if self._pool is None:
            # A process that was forked from one with JAX's threads may hang.
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self.settings.processes,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_one_thread,
            )
        return self._pool


_recognisers: dict[tuple[str, int], Any] = {}


def _one_thread() -> None:
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)


def _hear(work: tuple[np.ndarray, int, str, int]) -> str | Failure:
    """In a process of the pool: one wave's text."""
    from ba_jax.speech.whisper import Whisper

    wave_S, rate, language, beam = work
    if (language, beam) not in _recognisers:
        folder = assets.ensure(MODELS[language])
        _recognisers[language, beam] = Whisper(folder, beam=beam)
    try:
        return _recognisers[language, beam].recognise(wave_S, rate, language).text
    except (SpeechToolError, ValueError, RuntimeError) as error:
        return Failure(f"judge: {error}")
