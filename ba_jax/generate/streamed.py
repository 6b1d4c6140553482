"""Requests one by one, their text written and their speech played as it comes."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import select
import shlex
import subprocess
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

from ba_jax.audio import AudioError, crossfade
from ba_jax.audio.checks import check_samples
from ba_jax.audio.lengths import SAMPLE_RATE
from ba_jax.files import with_path
from ba_jax.generate.requests import Request, UserTurn
from ba_jax.generate.results import Results
from ba_jax.generate.turns import Line, TaskModel
from ba_jax.sampling.prompt import Prompt
from ba_jax.sampling.session import (
    END,
    FRAME,
    SEGMENT,
    SEGMENT_END,
    TEXT,
    Event,
    Generated,
    Session,
    collect,
)
from ba_jax.sampling.stream import StreamingSynthesizer, for_streaming
from ba_jax.types import Failure

_PATIENCE = 30.0
"""Seconds without progress after which a player hangs."""


class PlayerError(RuntimeError):
    """A player that cannot be started, ended early, or hangs."""


@dataclasses.dataclass
class Timing:
    """Wall-clock seconds since the end of the user's turn, including reading its recording.

    Attributes:
      first_text, first_audio: until the first text id and the first samples; None: never.
      total: until the end.
      audio: seconds of speech.
    """

    first_text: float | None = None
    first_audio: float | None = None
    total: float = 0.0
    audio: float = 0.0

    def line(self) -> Line:
        """The times as JSON; the real-time factor is seconds taken per second of speech."""
        values = {
            "seconds_to_first_text": self.first_text,
            "seconds_to_first_audio": self.first_audio,
            "seconds_in_all": self.total,
            "real_time_factor": self.total / self.audio if self.audio else None,
        }
        return {name: round(value, 4) for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        parts = []
        if self.first_text is not None:
            parts.append(f"first text {1000 * self.first_text:.0f} ms")
        if self.first_audio is not None:
            parts.append(f"first audio {1000 * self.first_audio:.0f} ms")
        if self.audio:
            parts.append(f"{self.audio:.2f} s of speech")
            parts.append(f"real-time factor {self.total / self.audio:.2f}")
        parts.append(f"{self.total:.2f} s in all")
        return ", ".join(parts)


class Player:
    """A program that plays raw mono samples of 16 bits from its standard input.

    Args:
      command: see `StreamSettings.player`.
      rate: Hz.

    Raises:
      PlayerError: it cannot be started.
    """

    def __init__(self, command: str, rate: int):
        self._name = f"stream.player {command!r}"
        words = [word.replace("{rate}", str(rate)) for word in shlex.split(command)]
        try:
            self._process = subprocess.Popen(words, stdin=subprocess.PIPE, bufsize=0)
        except (OSError, ValueError) as error:
            raise PlayerError(f"{self._name}: {error}") from None
        self._rate, self._bytes = rate, 0
        os.set_blocking(self._process.stdin.fileno(), False)
        self._poll = select.poll()
        self._poll.register(self._process.stdin, select.POLLOUT)

    def write(self, samples: bytes) -> None:
        """Pass samples on, at the pace at which they are played.

        Raises:
          PlayerError: the player has ended, or takes no more.
        """
        self._bytes += len(samples)
        while samples:
            if not self._poll.poll(1000 * _PATIENCE):
                raise PlayerError(f"{self._name} took no samples for {_PATIENCE} s")
            try:
                samples = samples[self._process.stdin.write(samples) or 0 :]
            except OSError as error:
                raise PlayerError(f"{self._name} ended early: {error}") from None

    def finish(self) -> None:
        """Wait until everything is played.

        Raises:
          PlayerError: the player failed, or does not end.
        """
        self._process.stdin.close()
        seconds = self._bytes / 2 / self._rate + _PATIENCE
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise PlayerError(f"{self._name} did not end in {seconds:.0f} s") from None
        if code and self._bytes:
            raise PlayerError(f"{self._name} ended with exit code {code}")

    def stop(self) -> None:
        """End the program if it still runs."""
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()


class Speaker:
    """Writes samples to a growing WAV file, and to a player.

    Args:
      path: path of the file; it has the suffix ".partial" until it is whole.
      rate: Hz.
      player: command, see `StreamSettings`.

    Raises:
      PlayerError: a player that cannot be started.
      OSError: names the file that cannot be written.
    """

    def __init__(self, path: Path, rate: int, player: str):
        self._path, self._partial = path, path.with_name(path.name + ".partial")
        self.samples, self._rate = 0, rate
        self._stream = open(self._partial, "wb")
        self._file = wave.open(self._stream, "wb")
        self._file.setparams((1, 2, rate, 0, "NONE", ""))
        self._player = None
        try:
            self._player = Player(player, rate) if player else None
        except PlayerError:
            self.drop()
            raise

    def write(self, wave_S: np.ndarray) -> None:
        """Append samples, maybe none.

        Raises:
          AudioError: NaN.
          PlayerError: the player has ended, or hangs.
          OSError: names the file that cannot be written.
        """
        if not len(wave_S):
            return
        check_samples(wave_S[:, None], str(self._path), self.samples)
        # Rounded by libsndfile as in `write_audio`; written here, as it gives no reason for errors.
        encoded = io.BytesIO()
        soundfile.write(encoded, wave_S, self._rate, "PCM_16", format="RAW")
        samples = encoded.getvalue()
        with self._naming():
            self._file.writeframes(samples)
            self._stream.flush()
        self.samples += len(wave_S)
        if self._player is not None:
            self._player.write(samples)

    def finish(self) -> bool:
        """Wait for the player, and complete the file; True if there is one.

        Raises:
          PlayerError: the player failed, or does not end.
          OSError: names the file that cannot be written.
        """
        if self._player is not None:
            self._player.finish()
        with self._naming():
            self._file.close()
            self._stream.close()
            if self.samples:
                self._partial.replace(self._path)
        return bool(self.samples)

    def drop(self) -> None:
        """End the player and remove an incomplete file; does nothing after `finish`."""
        if self._player is not None:
            self._player.stop()
        for file in (self._file, self._stream):
            with contextlib.suppress(OSError):
                file.close()
        with contextlib.suppress(OSError):
            self._partial.unlink()

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """Add the file's name to errors of writing."""
        try:
            yield
        except OSError as error:
            raise with_path(error, self._path) from error


class Streamer:
    """Does requests one by one.

    Args:
      task: with a model of one row.
      write: called with text as it comes; a line break ends a turn.
    """

    def __init__(self, task: TaskModel, write: Callable[[str], None]):
        self._task, self._write = task, write
        stream = task.settings.stream
        self._synthesis = for_streaming(task.settings.synthesis, stream.blocks, stream.norm_frames)

    @property
    def _synthesizer(self) -> StreamingSynthesizer:
        return self._task.model.streaming_synthesizer(self._synthesis)

    def warm_up(self, hears: bool) -> None:
        """Compile everything that requests need, so that their times exclude compilation.

        Args:
          hears: a request holds a recording.
        """
        task, settings = self._task, self._task.settings
        request = Request("warm-up", "warm-up", settings.language, (UserTurn(text="x"),))
        if hears:
            for seconds in settings.encode_seconds:
                task.model.encoder([np.zeros(int(seconds * SAMPLE_RATE), np.float32)])
        frame = np.zeros((1, len(task.model.codebook_sizes)), np.int32)
        prompt = task.prompt(request, 0, frame if task.task in ("asr", "translate") else None)
        if isinstance(prompt, list):
            prompt = prompt[0]
        if isinstance(prompt, Failure):
            raise ValueError(f"warm-up: {prompt.reason}")
        for length in settings.generation.lengths:
            repeated = dataclasses.replace(
                prompt,
                ids_L=np.resize(prompt.ids_L, length),
                codes_LQ=np.resize(prompt.codes_LQ, (length, prompt.codes_LQ.shape[1])),
            )
            session = task.model.generator.session([0])
            session.read([repeated])
            for _ in session.stream(chunk=settings.stream.chunk, text_limit=2, frame_limit=2):
                pass
            # Prompts of later turns are read by another compiled function.
            later = task.chats or task.in_turns
            if later and isinstance(task.check_room(session, 0, repeated), Prompt):
                session.read([repeated])
        if task.speaks:
            self._synthesizer.warm_up()

    def __call__(self, request: Request, results: Results) -> Line:
        """Process a request and return its line."""
        task = self._task
        line = task.begin_line(request)
        if "error" in line:
            return line
        session = task.model.generator.session([task.seed(request)])
        segments = 0
        for number, turn in enumerate(request.turns):
            started = time.monotonic()
            (codes_NQ,) = task.encode([turn])
            prompt = task.prompt(request, number, codes_NQ)
            if task.chats:
                prompt = task.check_room(session, 0, prompt)
            if isinstance(prompt, Failure):
                task.fail_turn(line, number, prompt)
                return line
            prompts = prompt if isinstance(prompt, list) else [prompt]
            path = results.wave_path(request.id, number if task.chats else None)
            speech = None
            try:
                if task.speaks:
                    player = task.settings.stream.player
                    speaker = Speaker(path, self._synthesizer.rate, player)
                    speech = _TurnSpeech(self._synthesizer, speaker, task.seed(request), segments)
                generated, timing, saved = self._stream_turn(session, prompts, speech, started)
            except (PlayerError, AudioError) as error:
                self._write("\n")
                task.fail_turn(line, number, Failure(str(error)))
                return line
            values = task.add_turn(line, request, number, generated)
            if saved:
                values["audio"] = results.relative(path)
                values["seconds"] = round(timing.audio, 3)
            values["timing"] = timing.line()
            self._write(f"[{request.id}: {timing}]\n")
            segments += 0 if speech is None else speech.segments
        task.finish_line(line)
        return line

    def _stream_turn(
        self,
        session: Session,
        prompts: Sequence[Prompt],
        speech: _TurnSpeech | None,
        started: float,
    ) -> tuple[Generated, Timing, bool]:
        """Read a turn's prompts, write and play what comes; (output, times, wave kept)."""
        model, timing = self._task.model, Timing()
        decoder = None if self._task.task == "tts" else model.tokenizer.stream()
        events = []
        saved = False
        try:
            for event in self._events(session, prompts):
                events.append(event)
                if event.kind == TEXT and decoder is not None:
                    self._write(decoder.push(event.token_id))
                    if timing.first_text is None:
                        timing.first_text = time.monotonic() - started
                if speech is not None and speech.take(event) and timing.first_audio is None:
                    timing.first_audio = time.monotonic() - started
            if decoder is not None:
                self._write(decoder.flush() + "\n")
            timing.total = time.monotonic() - started
            if speech is not None:
                saved, timing.audio = speech.finish(), speech.seconds
        finally:
            if speech is not None:
                speech.drop()
        return collect(events, len(model.codebook_sizes))[0], timing, saved

    def _events(self, session: Session, prompts: Sequence[Prompt]) -> Iterator[Event]:
        """The events of a turn; several prompts are pieces of a text, spoken as one segment."""
        chunk, frames_left = self._task.settings.stream.chunk, self._task.frame_limit
        held: list[Event] = []
        for number, prompt in enumerate(prompts):
            is_last = number == len(prompts) - 1
            # A prompt is read with the end of the piece before it, and needs a frame and its end.
            if number and (frames_left < 1 or len(prompt) + 3 > session.capacity - session.used[0]):
                yield from (event._replace(complete=False) for event in held)
                return
            session.read([prompt])
            held = []  # the end, which is that of the turn only after the last piece
            for events in session.stream(chunk=chunk, frame_limit=frames_left):
                for event in events:
                    frames_left -= event.kind == FRAME
                    if event.kind in (SEGMENT_END, END) and not is_last:
                        held.append(event)
                    elif event.kind != SEGMENT or not number:
                        yield event


class _TurnSpeech:
    """Speech of a turn: frames to samples, cross-faded from segment to segment.

    Args:
      synthesizer: makes the samples.
      speaker: takes them.
      seed: seed of the request.
      first: number of the turn's first segment among those of the request.
    """

    def __init__(self, synthesizer: StreamingSynthesizer, speaker: Speaker, seed: int, first: int):
        self._synthesizer, self._speaker = synthesizer, speaker
        self._fader = crossfade.Crossfader(crossfade.fade_samples(synthesizer.rate))
        self._seed, self._first, self._stream = seed, first, None
        self.segments = 0

    @property
    def seconds(self) -> float:
        """Speech so far."""
        return self._speaker.samples / self._synthesizer.rate

    def take(self, event: Event) -> bool:
        """Synthesize what an event makes possible; True if samples were written."""
        before = self._speaker.samples
        if event.kind == SEGMENT:
            self._stream = self._synthesizer.open(self._seed, self._first + self.segments)
            self.segments += 1
        elif event.kind == FRAME:
            self._fade(self._stream.push(event.codes_Q[None]))
        elif event.kind == SEGMENT_END:
            stream, self._stream = self._stream, None
            self._fade(stream.finish())
            self._speaker.write(self._fader.end_segment())
        elif event.kind == END:
            self._speaker.write(self._fader.finish())
        return self._speaker.samples > before

    def _fade(self, wave_S: np.ndarray) -> None:
        if len(wave_S):
            self._speaker.write(self._fader.push(wave_S))

    def finish(self) -> bool:
        """Complete the turn's speech, see `Speaker.finish`."""
        return self._speaker.finish()

    def drop(self) -> None:
        """End speech that is incomplete; does nothing after `finish`."""
        if self._stream is not None:
            self._stream.drop()
        self._speaker.drop()
