"""The judge of speech: a recogniser that has no part in the model, in its own processes.

English is recognised by Whisper tiny.en, whose weights are not those of Whisper-base, which an
audio tokenizer may have been initialised with. Mandarin is recognised by Whisper-base, the only
recogniser available. Every evaluation's figures name the recogniser of each language. The processes
also run other CPU-bound work (Griffin-Lim), through `map`.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ba_jax.config import check_at_least
from ba_jax.speech import assets
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.types import Failure

MODELS = {"en": "whisper-tiny.en", "zh": "whisper-base"}
"""Language -> asset of its recogniser."""


@dataclasses.dataclass(frozen=True)
class SpeechJudgeSettings:
    """Number of processes that recognise side by side, and their beam width; 1 is greedy."""

    processes: int = 2
    beam: int = 1

    def __post_init__(self):
        check_at_least(self, processes=1, beam=1)


class SpeechJudge:
    """Recognises speech; a context manager. Its processes start with the first work.

    `names` is language -> recogniser.
    """

    names: Mapping[str, str] = MODELS

    def __init__(self, settings: SpeechJudgeSettings = SpeechJudgeSettings()):
        self.settings = settings
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> SpeechJudge:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Stop the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, function: Callable[[Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        """`map` over the processes; results in order."""
        return self._start_pool().map(function, values)

    def hear(
        self,
        waves: Sequence[tuple[np.ndarray, int] | None],
        languages: Sequence[str],
        progress: Callable[[int], None] | None = None,
    ) -> list[str | Failure]:
        """Recognise the words of each (mono wave of at most 30 s, Hz); "" for None.

        A wave that cannot be recognised (too long, an unknown language, missing weights, a process
        that died) fails; the others are recognised. `progress` is called with the number done.
        """
        unheard = {language: self._check_language(language) for language in set(languages)}
        work: list[concurrent.futures.Future | str | Failure] = []
        for wave, language in zip(waves, languages, strict=True):
            if wave is None:
                work.append("")
            elif unheard[language] is not None:
                work.append(unheard[language])
            else:
                arguments = (wave[0], wave[1], language, self.settings.beam)
                work.append(self._start_pool().submit(_recognise, arguments))
        texts = []
        for result in work:
            if isinstance(result, concurrent.futures.Future):
                try:
                    result = result.result()
                except concurrent.futures.BrokenExecutor as error:
                    result = Failure(f"judge: {error}")
                    self.close()
            texts.append(result)
            if progress is not None:
                progress(len(texts))
        return texts

    def _check_language(self, language: str) -> Failure | None:
        """Fetch a language's weights, once for all processes; a failure if that is impossible."""
        if language not in MODELS:
            return Failure(f"judge: language {language!r}, expected one of {tuple(MODELS)}")
        try:
            assets.ensure(MODELS[language])
        except (SpeechToolError, OSError) as error:
            return Failure(f"judge: {error}")
        return None

    def _start_pool(self) -> concurrent.futures.ProcessPoolExecutor:
        if self._pool is None:
            # A fork of a process with JAX's threads may hang.
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self.settings.processes,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_use_one_thread,
            )
        return self._pool


_recognisers: dict[tuple[str, int], Any] = {}


def _use_one_thread() -> None:
    import threadpoolctl

    threadpoolctl.threadpool_limits(1)


def _recognise(work: tuple[np.ndarray, int, str, int]) -> str | Failure:
    """Recognise a wave, in a process of the pool."""
    from ba_jax.speech.whisper import Whisper

    wave_S, rate, language, beam = work
    if (language, beam) not in _recognisers:
        folder = assets.ensure(MODELS[language])
        _recognisers[language, beam] = Whisper(folder, beam=beam)
    try:
        return _recognisers[language, beam].recognise(wave_S, rate, language).text
    except (SpeechToolError, ValueError, RuntimeError) as error:
        return Failure(f"judge: {error}")
