r"""Interleaved speech and text out of long recordings (paper Figure 4, "crawl").

    long audio -> windows -> VAD -> one voice -> ASR -> filters -> agreement -> alignment -> cutting

  1. Windows of `window` seconds that end in silence; memory does not grow with the recording.
  2. Voice activity; silences shorter than 0.3 s do not separate spans of speech.
  3. Each span is embedded in pieces of some 1.6 s. A span whose pieces differ has more than one
     voice and is dropped; a change of voice, or a silence longer than `gap`, begins a new turn, so
     that a turn has one voice.
  4. The spans of a turn are packed into utterances of at most 28 s and recognised. It is dropped
     for low confidence, no speech, an implausible speech rate, loops, or the wrong language.
  5. Agreement: the utterance is recognised again (in two halves, slower, or by a second
     recogniser); it is dropped if the two transcripts differ too much.
  6. The transcript is aligned; consecutive accepted utterances are cut into parts, in pauses, at
     punctuation where possible. Consecutive parts of a turn make records of at least two parts and
     less than `max_seconds`.

Every loss is reported with its seconds: the records and rejections of a recording, silence and
music ("not speech") included, add up to its length. The rejections' reasons: not speech, mixed
voices, too short to tell the voice, no pause, probably no speech, empty transcript, low confidence,
repetition, other language, speech rate, no agreement, no alignment, a lone part; and those of a
file that cannot be read.

    python -m ba_jax.corpora --config=configs/prepare.py:crawl \
        --config.source.path=/data/talks --config.source.language=en --out=/data/records/talks

docs/experiments.md has the measurements behind the thresholds, and the speed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from ba_jax.audio import AudioError, AudioReader, resample
from ba_jax.audio.read import AUDIO_SUFFIXES
from ba_jax.config import check_choices
from ba_jax.corpora.encode import encode_speech
from ba_jax.corpora.interleave import regions, timing
from ba_jax.corpora.interleave.cuts import best_cuts, fill_records
from ba_jax.corpora.interleave.filters import TranscriptLimits, disagreement, find_fault
from ba_jax.corpora.interleave.text import tidy
from ba_jax.corpora.sources.base import Item, Rejected, Rejection, SourceError
from ba_jax.corpora.sources.interleaved import InterleavedSource
from ba_jax.corpora.sources.listing import (
    check_fields,
    clean_text,
    find_files,
    find_inside,
    list_items,
    parse_object,
    read_lines,
)
from ba_jax.data.record import LANGUAGES, Part, Record, RecordError, Word, check_language
from ba_jax.speech.interfaces import SpeechToolError

AGREEMENTS = ("halves", "speed", "second", "")
"""Second recognition of an utterance: in halves, 10 % slower, by the second recogniser, none."""

_ROW_KEYS = dict.fromkeys(("audio", "id", "language", "split"), (str,))
_RATE = 16000  # Hz of the tools: resampled once for all of them
_SLOWER = 14400  # Hz: 16 kHz sound played at this rate is 10 % slower and lower
_SHORT_SILENCE = 0.3  # seconds; between words, not between utterances
_SHORTEST = 0.6  # seconds of speech needed to tell a voice
_MARGIN = 0.3  # seconds of silence kept before and behind speech: VAD comes late
_UTTERANCE = 28.0  # seconds of speech; with its margins a recogniser takes 30
_RECOGNISED = 30.0
_TARGET = 20.0  # seconds of an utterance: more context makes words easier to recognise


@dataclasses.dataclass(frozen=True)
class RecognisedUtterance:
    """Continuous speech of one voice with its transcript; times count from the window's start."""

    start: float
    end: float
    words: tuple[Word, ...]
    language: str


@dataclasses.dataclass(frozen=True)
class Crawl(InterleavedSource):
    """Long recordings.

    Attributes:
      path: a folder, searched for audio files, or a JSONL file with a row for each recording:
        {"audio": path relative to the file, "id": ..., "language": ..., "split": ...}, all but the
        first optional.
      language: language of recordings that name none; "" tries English and Mandarin and
        takes, for each utterance, the one recognised with the most confidence.
      vad, speaker_encoder, recogniser, second_recogniser, aligner: names, see
        `ba_jax.speech.tools`.
      agreement: second recognition, one of AGREEMENTS.
      window: seconds held in memory at a time.
      gap: seconds; a longer silence ends a turn.
      voices, limits: thresholds.
    """

    name: str = "crawl"
    language: str = ""
    vad: str = "silero"
    speaker_encoder: str = "resemblyzer"
    recogniser: str = "whisper"
    second_recogniser: str = "whisper"
    aligner: str = "pocketsphinx"
    agreement: str = "speed"
    window: float = 600.0
    gap: float = 1.5
    voices: regions.Voices = regions.Voices()
    limits: TranscriptLimits = TranscriptLimits()

    TOOLS: ClassVar[tuple[str, ...]] = (
        "vad",
        "speaker_encoder",
        "recogniser",
        "second_recogniser",
        "aligner",
        "mos",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.language:
            check_language(self.language)
        check_choices(self, agreement=AGREEMENTS)
        if self.window < 2 * _UTTERANCE:
            raise ValueError(f"window {self.window} s, expected at least {2 * _UTTERANCE}")

    def items(self) -> Iterator[Item | Rejection]:
        """List the recordings."""
        path = Path(self.path)
        if path.is_dir():
            yield from self._list_folder(path)
        elif self.path and path.is_file():
            yield from list_items(
                read_lines(path), lambda where, text: self._make_item(where, text, path.parent)
            )
        else:
            raise SourceError(f"path = {self.path!r}: no such folder or JSONL file")

    def _list_folder(self, folder: Path) -> Iterator[Item]:
        for path in find_files(folder, *AUDIO_SUFFIXES):
            # The suffix stays: a.wav and a.mp3 may lie side by side.
            id = path.relative_to(folder).as_posix().replace("/", "-")
            yield Item(id, self.split, str(path), (str(path), self.language))

    def _make_item(self, where: str, text: str, root: Path) -> Item | None:
        if not text.strip():
            return None
        row = check_fields(parse_object(text), _ROW_KEYS, needed=("audio",))
        audio = find_inside(root, row["audio"])
        language, split = row.get("language", self.language), row.get("split", self.split)
        try:
            if language:
                check_language(language)
        except RecordError as error:
            raise Rejected("unknown language", str(error)) from None
        id = row.get("id", row["audio"].replace("/", "-"))
        if not clean_text(id):
            raise Rejected("bad value", f"id {id!r}, expected some text")
        return Item(id, split, where, (audio, language))

    def records(self, item: Item) -> Iterator[Record | Rejection]:
        """Make the records of a recording, and count its losses."""
        path, language = item.payload
        used = total = 0.0
        book = regions.VoiceBook(self.voices.same)
        try:
            with AudioReader(path) as audio:
                for window in self._read_windows(audio):
                    total += window.seconds
                    for result in _WindowPipeline(self, item, language, window, book).run():
                        used += result.seconds
                        yield result
        except AudioError as error:
            # Records from before the damage are kept; the length of the rest is unknown.
            yield Rejection(item.where, error.reason, str(error))
        if total - used > 1e-3:
            yield Rejection(item.where, "not speech", seconds=total - used)

    def _read_windows(self, audio: AudioReader) -> Iterator[_RecordingWindow]:
        """Yield windows that end in silence."""
        offset, kept_S = 0.0, np.zeros(0, np.float32)
        blocks = audio.blocks()
        is_last = False
        while not is_last:
            pieces, length = [kept_S], len(kept_S)
            while length < self.window * audio.rate:
                block_S = next(blocks, None)
                if block_S is None:
                    is_last = True
                    break
                pieces.append(block_S)
                length += len(block_S)
            wave_S = np.concatenate(pieces)
            if not len(wave_S):
                return
            seconds = len(wave_S) / audio.rate
            tool_S = wave_S if audio.rate == _RATE else resample(wave_S, audio.rate, _RATE)
            spans = regions.merge_spans(self.tool("vad").speech(tool_S, _RATE), _SHORT_SILENCE)
            end = seconds if is_last else regions.find_split(spans, seconds, self.gap)
            # Speech has breaths: sound without any silence in half a window is noise or music.
            cut = len(wave_S) if end is None else round(end * audio.rate)
            kept_S = wave_S[cut:]
            seconds = cut / audio.rate
            spans = [(a, min(b, seconds)) for a, b in spans if a < seconds]
            tool_S = tool_S[: round(seconds * _RATE)]
            yield _RecordingWindow(offset, wave_S[:cut], audio.rate, tool_S, spans)
            offset += seconds


@dataclasses.dataclass(frozen=True)
class _RecordingWindow:
    """A piece of a recording, and its spans of speech; times count from its start.

    `offset` is its own start, in seconds; `tool_S` is the sound at 16 kHz, for the tools.
    """

    offset: float
    wave_S: np.ndarray
    rate: int
    tool_S: np.ndarray
    spans: list[regions.Span]

    @property
    def seconds(self) -> float:
        return len(self.wave_S) / self.rate

    def cut_tool_wave(self, start: float, end: float) -> np.ndarray:
        return self.tool_S[max(0, round(start * _RATE)) : round(end * _RATE)]


class _WindowPipeline:
    """Makes records of a window."""

    def __init__(
        self,
        crawl: Crawl,
        item: Item,
        language: str,
        window: _RecordingWindow,
        book: regions.VoiceBook,
    ):
        self.crawl, self.item, self.window, self.book = crawl, item, window, book
        self.languages = (language,) if language else LANGUAGES

    def run(self) -> Iterator[Record | Rejection]:
        """Yield the records, and the losses of speech."""
        spans = [piece for span in self.window.spans for piece in self._divide(span)]
        # A span keeps a margin of at most half of the silence beside it.
        ends = [0.0, *(end for _, end in spans)]
        starts = [*(start for start, _ in spans), self.window.seconds]
        self.edges = {
            (start, end): (
                start - min(_MARGIN, max(0.0, start - before) / 2),
                end + min(_MARGIN, max(0.0, after - end) / 2),
            )
            for (start, end), before, after in zip(spans, ends, starts[1:], strict=False)
        }
        pieces = [self._embed(span) for span in spans]
        turns, mixed, short = regions.find_turns(spans, pieces, self.crawl.voices, self.crawl.gap)
        for lost, reason in ((mixed, "mixed voices"), (short, "too short to tell the voice")):
            for span in lost:
                yield self._reject(*self.edges[span], reason)
        for turn in turns:
            yield from self._process_turn(turn)

    def _divide(self, span: regions.Span) -> list[regions.Span]:
        """Cut a span that is too long for a recogniser in its pauses."""
        start, end = span
        if end - start <= _UTTERANCE:
            return [span]
        pauses = timing.find_pauses(self.window.cut_tool_wave(start, end), _RATE)
        marks = [start, *(start + (a + b) / 2 for a, b in pauses), end]
        costs = [0.3 * (1 - min(b - a, 1.0)) for a, b in pauses] + [0.0]
        cuts = best_cuts(
            np.diff(marks), costs, target=_UTTERANCE / 2, low=0.0, high=_UTTERANCE - 2 * _MARGIN
        )
        return [(marks[a], marks[b]) for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]

    def _embed(self, span: regions.Span) -> np.ndarray:
        """Unit vectors (P, D) of a span's pieces; (0, 1) if it is too short for one."""
        encoder, vectors = self.crawl.tool("speaker_encoder"), []
        for start, end in regions.divide_span(span, self.crawl.voices.piece):
            if end - start >= _SHORTEST:
                with contextlib.suppress(SpeechToolError):  # the encoder hears too little speech
                    vectors.append(encoder.embed(self.window.cut_tool_wave(start, end), _RATE))
        return np.stack(vectors) if vectors else np.zeros((0, 1), np.float32)

    def _reject(self, start: float, end: float, reason: str, detail: str = "") -> Rejection:
        offset = self.window.offset
        where = f"{self.item.where} ({offset + start:.1f} to {offset + end:.1f} s)"
        return Rejection(where, reason, detail, end - start)

    def _process_turn(self, turn: regions.VoiceTurn) -> Iterator[Record | Rejection]:
        speaker = f"{self.item.id}-{self.book.number(turn.voice_D)}"
        run: list[RecognisedUtterance] = []
        for spans in regions.pack_utterances(turn.spans, _TARGET, _UTTERANCE):
            result = self._recognise(spans)
            if isinstance(result, Rejection):
                yield result
            if run and (isinstance(result, Rejection) or result.language != run[0].language):
                yield from self._make_records(run, speaker)
                run = []
            if isinstance(result, RecognisedUtterance):
                run.append(result)
        if run:
            yield from self._make_records(run, speaker)

    def _recognise(self, spans: list[regions.Span]) -> RecognisedUtterance | Rejection:
        crawl = self.crawl
        start, end = self.edges[spans[0]][0], self.edges[spans[-1]][1]
        if end - start > _RECOGNISED:
            return self._reject(start, end, "no pause", f"{end - start:.1f} s without one")
        wave_S = self.window.cut_tool_wave(start, end)
        if problem := crawl.find_poor(wave_S, _RATE):
            return self._reject(start, end, *problem)
        spoken = sum(b - a for a, b in spans)
        fault, heard, language = ("", ""), None, ""
        for candidate in self.languages:
            trial = crawl.tool("recogniser").recognise(wave_S, _RATE, candidate)
            problem = find_fault(trial, spoken, candidate, crawl.limits)
            # Usable transcripts come first, then the more confident ones.
            rank = (problem is None, trial.confidence)
            if heard is None or rank > (fault is None, heard.confidence):
                fault, heard, language = problem, trial, candidate
        if fault:
            return self._reject(start, end, *fault)
        if crawl.agreement:
            second = self._recognise_again(wave_S, language)
            difference = disagreement(heard.text, second, language)
            if difference > crawl.limits.disagreement:
                detail = f"{difference:.2f} between {heard.text[:60]!r} and {second[:60]!r}"
                return self._reject(start, end, "no agreement", detail)
        # Recognisers mix half-width commas into Mandarin.
        text = " ".join(tidy(heard.text, language).split())
        try:
            aligned = crawl.tool("aligner").align(wave_S, _RATE, text, language)
            words = timing.locate(text, aligned)
        except SpeechToolError as error:
            return self._reject(start, end, "no alignment", str(error))
        words = tuple(Word(w.text, start + w.start, start + w.end) for w in words)
        return RecognisedUtterance(start, end, words, language)

    def _recognise_again(self, wave_S: np.ndarray, language: str) -> str:
        recogniser = self.crawl.tool("recogniser")
        if self.crawl.agreement == "second":
            second = self.crawl.tool("second_recogniser")
            return second.recognise(wave_S, _RATE, language).text
        if self.crawl.agreement == "speed":
            return recogniser.recognise(wave_S, _SLOWER, language).text
        # Cut at the quietest tenth of a second of the middle third.
        level_T, hop = timing.loudness(wave_S, _RATE, window=0.1)
        third = len(level_T) // 3
        middle = third + int(np.argmin(level_T[third : max(third + 1, 2 * third)]))
        cut = round(middle * hop * _RATE)
        halves = (wave_S[:cut], wave_S[cut:])
        return " ".join(recogniser.recognise(w, _RATE, language).text for w in halves)

    def _make_records(
        self, run: list[RecognisedUtterance], speaker: str
    ) -> Iterator[Record | Rejection]:
        crawl = self.crawl
        start, end, language = run[0].start, run[-1].end, run[0].language
        pauses = [
            (start + a, start + b)
            for a, b in timing.find_pauses(self.window.cut_tool_wave(start, end), _RATE)
        ]
        parts = timing.cut_into_parts(
            timing.join([utterance.words for utterance in run], language),
            pauses,
            language,
            start=start,
            end=end,
            lengths=crawl.parts,
        )
        is_kept = [part.seconds <= crawl.parts.high for part in parts]
        records, lone = fill_records([p.seconds for p in parts], is_kept, limit=crawl.max_seconds)
        for part in [p for p, kept in zip(parts, is_kept, strict=True) if not kept]:
            yield self._reject(part.start, part.end, "no pause", f"a part of {part.seconds:.1f} s")
        for part in (parts[number] for number in lone):
            yield self._reject(part.start, part.end, "a lone part", part.text[:60])
        for first, last in records:
            at = self.window.offset + parts[first].start
            yield Record(
                id=f"{self.item.id}-{round(at * 100):08d}",
                kind="interleaved",
                language=language,
                parts=tuple(self._make_part(part, speaker, language) for part in parts[first:last]),
                source=crawl.name,
            )

    def _make_part(self, part: timing.Stretch, speaker: str, language: str) -> Part:
        rate = self.window.rate
        wave_S = self.window.wave_S[max(0, round(part.start * rate)) : round(part.end * rate)]
        audio, seconds = encode_speech(wave_S, rate, self.crawl.coding)
        return Part(
            text=part.text,
            audio=audio,
            seconds=seconds,
            speaker=speaker,
            words=part.words_for_record(language),
        )
