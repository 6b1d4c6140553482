"""One request after the other, told and heard while it comes."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from ba_jax.audio import crossfade
from ba_jax.audio.lengths import SAMPLE_RATE
from ba_jax.generate.batched import Line, begin, fail, lacking, turn_line
from ba_jax.generate.requests import Request, Turn
from ba_jax.generate.results import Results
from ba_jax.sampling import session as sessions
from ba_jax.sampling.prompt import Prompt
from ba_jax.sampling.session import Event, Session
from ba_jax.sampling.speech_model import Engine
from ba_jax.types import Failure


class PlayerError(RuntimeError):
    """A player that cannot be started, or stops listening."""


@dataclasses.dataclass
class Timing:
    """Seconds from the end of the user's turn (its recording is read), on the wall clock.

    Attributes:
      first_text, first_audio: to the first id of text and the first samples; None: never.
      total: to the end.
      audio: of speech.
    """

    first_text: float | None = None
    first_audio: float | None = None
    total: float = 0.0
    audio: float = 0.0

    def line(self) -> Line:
        """As results have it; the real-time factor is seconds taken a second of speech."""
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


class Speaker:
    """Where samples go as they come: a file that grows, and perhaps a player.

    Args:
      path: of a WAV file; it has the name with ".partial" until it is whole.
      rate: Hz.
      player: command, see `StreamSettings`.

    Raises:
      PlayerError: a player that cannot be started.
    """

    def __init__(self, path: Path, rate: int, player: str):
        self._path, self._partial = path, path.with_name(path.name + ".partial")
        self.samples = 0
        self._player = None
        if player:
            command = [word.replace("{rate}", str(rate)) for word in shlex.split(player)]
            try:
                self._player = subprocess.Popen(command, stdin=subprocess.PIPE)
            except OSError as error:
                raise PlayerError(f"stream.player {player!r}: {error}") from None
        self._file = soundfile.SoundFile(
            self._partial, "w", rate, 1, format="WAV", subtype="PCM_16"
        )

    def write(self, wave_S: np.ndarray) -> None:
        """More samples.

        Raises:
          PlayerError: the player has ended.
        """
        wave_S = np.clip(wave_S, -1.0, 1.0)
        self._file.write(wave_S)
        self._file.flush()
        self.samples += len(wave_S)
        if self._player is not None:
            try:
                self._player.stdin.write((wave_S * 32767).astype("<i2").tobytes())
                self._player.stdin.flush()
            except OSError as error:
                raise PlayerError(f"stream.player stopped listening: {error}") from None

    def close(self, keep: bool = True) -> None:
        """Ends file and player, and waits until all is played; `keep`: the file is whole."""
        self._file.close()
        if keep and self.samples:
            self._partial.replace(self._path)
        else:
            self._partial.unlink(missing_ok=True)
        if self._player is not None:
            with contextlib.suppress(OSError):
                self._player.stdin.close()
            self._player.wait()


class Streamer:
    """Does requests one by one; the engine has one row.

    Args:
      engine: made with rows=1.
      tell: is given text as it comes; a line break ends a turn.
    """

    def __init__(self, engine: Engine, tell: Callable[[str], None]):
        self._engine, self._tell = engine, tell

    def warm_up(self, hears: bool) -> None:
        """Compiles what requests need, so that their times are those of the work.

        Args:
          hears: some request holds a recording.
        """
        engine = self._engine
        turn = Turn(text="x")
        request = Request("warm-up", "warm-up", engine.settings.language, (turn,))
        if hears:
            for seconds in engine.settings.encode_seconds:
                engine.encoder([np.zeros(int(seconds * SAMPLE_RATE), np.float32)])
        if engine.task in ("asr", "translate"):
            codes_NQ = np.zeros((1, len(engine.config.audio_embed.codebook_sizes)), np.int32)
            prompt = engine.prompt(request, 0, codes_NQ)
        else:
            prompt = engine.prompt(request, 0, None)
        if isinstance(prompt, Failure):
            raise ValueError(f"warm-up: {prompt.reason}")
        for length in engine.settings.lengths:
            some = _of_length(prompt, length)
            session = engine.generator.session([0])
            session.read([some])
            chunk = engine.settings.stream.chunk
            for _ in session.stream(chunk=chunk, text_limit=2, frame_limit=2):
                pass
            # A later turn is read by another function.
            if (engine.task == "chat" or engine.in_turns) and not lacking(session, 0, length):
                session.read([some])
        if engine.task in ("tts", "chat") and self._speaks:
            engine.streaming_synthesizer.warm_up()

    @property
    def _speaks(self) -> bool:
        engine = self._engine
        return engine.task == "tts" or engine.settings.answers == "spoken"

    def __call__(self, request: Request, results: Results) -> Line:
        """Does a request; its line."""
        line = begin(self._engine, request)
        chats = self._engine.task == "chat"
        if chats:
            line["turns"] = []
        elif request.turns:
            line["input"] = request.turns[0].audio or request.turns[0].text
        if request.refusal:
            fail(line, f"{request.where}: {request.refusal}")
            return line
        session = self._engine.generator.session([self._engine.seed(request)])
        segments = 0
        for number, turn in enumerate(request.turns):
            started = time.monotonic()
            prompt, more = self._read(request, number, turn), []
            if isinstance(prompt, list):
                prompt, *more = prompt
            if chats and isinstance(prompt, Prompt):
                short = lacking(session, 0, len(prompt))
                prompt = Failure(short) if short else prompt
            if isinstance(prompt, Failure):
                reason = f"turn {number + 1}: {prompt.reason}" if chats else prompt.reason
                fail(line, reason)
                return line
            session.read([prompt])
            path = results.wave_path(request.id, number if chats else None)
            told, segments, timing, saved = self._turn(
                session, request, path, segments, started, more
            )
            if chats:
                line["turns"].append(own := turn_line(self._engine, request, number, told))
            else:
                own = line
                own["complete"] = told.complete
                if self._engine.task != "tts":
                    own["text"] = self._engine.tokenizer.decode(told.ids).strip()
            if saved:
                own["audio"], own["seconds"] = results.relative(path), round(timing.audio, 3)
            own["timing"] = timing.line()
            self._tell(f"[{request.id}: {timing}]\n")
        if chats:
            line["complete"] = all(turn["complete"] for turn in line["turns"])
        elif self._engine.task == "tts" and "audio" not in line:
            fail(line, "the model spoke no frame")
        return line

    def _read(self, request: Request, number: int, turn: Turn) -> Prompt | list[Prompt] | Failure:
        """A turn's prompt, or the pieces of its text."""
        if self._engine.in_turns:
            return self._engine.pieces(request)
        if not turn.audio:
            return self._engine.prompt(request, number, None)
        (codes_NQ,) = self._engine.hear([turn])
        if isinstance(codes_NQ, Failure):
            return codes_NQ
        return self._engine.prompt(request, number, codes_NQ)

    def _turn(
        self,
        session: Session,
        request: Request,
        path: Path,
        segments: int,
        started: float,
        more: list[Prompt],
    ):
        """(what came, segments so far, times, whether a wave was written) of one turn."""
        settings, timing = self._engine.settings.stream, Timing()
        decoder, voice = None, None
        if self._speaks and self._engine.task in ("tts", "chat"):
            voice = _Voice(self._engine, path, settings.player, self._engine.seed(request))
            voice.segment = segments
        if self._engine.task != "tts":
            decoder = self._engine.tokenizer.stream()
        events = []
        whole = False
        try:
            for event in self._events(session, settings.chunk, more):
                events.append(event)
                if event.kind == sessions.TEXT and decoder is not None:
                    self._tell(decoder.push(event.token_id))
                    if timing.first_text is None:
                        timing.first_text = time.monotonic() - started
                if voice is not None and voice.take(event) and timing.first_audio is None:
                    timing.first_audio = time.monotonic() - started
            if decoder is not None:
                self._tell(decoder.flush() + "\n")
            timing.total = time.monotonic() - started
            whole = True
        finally:
            saved = voice.close(whole) if voice is not None else False
        if voice is not None:
            segments, timing.audio = voice.segment, voice.seconds
        found = sessions.collect(events, len(self._engine.config.audio_embed.codebook_sizes))
        return found[0], segments, timing, saved

    def _events(self, session: Session, chunk: int, more: list[Prompt]) -> Iterator[Event]:
        """The events of a turn; pieces of its text, what comes of them is one segment."""
        left, joins, begun = self._engine.frame_limit, bool(more), False
        while True:
            held = []  # the end, if it is not the last piece's
            for some in session.stream(chunk=chunk, frame_limit=left):
                for event in some:
                    left -= event.kind == sessions.FRAME
                    if more and event.kind in (sessions.SEGMENT_END, sessions.END):
                        held.append(event)
                    elif not (joins and begun and event.kind == sessions.SEGMENT):
                        begun |= event.kind == sessions.SEGMENT
                        yield event
            if not more:
                return
            if left < 1 or len(more[0]) + 3 > session.capacity - session.used[0]:
                yield from (event._replace(complete=False) for event in held)
                return
            session.read([more.pop(0)])


def _of_length(prompt: Prompt, length: int) -> Prompt:
    """Its ids again and again, up to a length."""
    codes_LQ = np.resize(prompt.codes_LQ, (length, prompt.codes_LQ.shape[1]))
    return dataclasses.replace(prompt, ids_L=np.resize(prompt.ids_L, length), codes_LQ=codes_LQ)


class _Voice:
    """Frames of a turn as samples: synthesis, cross-fade, file and player."""

    def __init__(self, engine: Engine, path: Path, player: str, seed: int):
        self._synthesizer = engine.streaming_synthesizer
        self._rate = self._synthesizer.rate
        self._speaker = Speaker(path, self._rate, player)
        self._fader = crossfade.Crossfader(crossfade.fade_samples(self._rate))
        self._seed, self._stream = seed, None
        self.segment = 0

    @property
    def seconds(self) -> float:
        """Of speech so far."""
        return self._speaker.samples / self._rate

    def take(self, event: Event) -> bool:
        """Does what an event asks for; whether samples came."""
        before = self._speaker.samples
        if event.kind == sessions.SEGMENT:
            self._stream = self._synthesizer.open(self._seed, self.segment)
            self.segment += 1
        elif event.kind == sessions.FRAME:
            self._say(self._stream.push(event.codes_Q[None]))
        elif event.kind == sessions.SEGMENT_END:
            self._say(self._stream.finish())
            self._stream = None
            self._write(self._fader.end_segment())
        elif event.kind == sessions.END:
            self._write(self._fader.finish())
        return self._speaker.samples > before

    def _say(self, wave_S: np.ndarray) -> None:
        if len(wave_S):
            self._write(self._fader.push(wave_S))

    def _write(self, wave_S: np.ndarray) -> None:
        if len(wave_S):
            self._speaker.write(wave_S)

    def close(self, whole: bool) -> bool:
        """Ends; whether a file was kept."""
        if self._stream is not None:
            self._stream.drop()
        self._speaker.close(whole)
        return whole and self._speaker.samples > 0
