r"""Interleaved speech and text out of long recordings (paper Figure 4, "crawl").

    long audio -> windows -> VAD -> one voice -> ASR -> filters -> agreement -> alignment -> cutting

  1. Windows of `window` seconds that end in silence; memory does not grow with the recording.
  2. Voice activity; silences shorter than 0.3 s do not part speech.
  3. Each span of speech is embedded in pieces of some 1.6 s. A span whose pieces differ has more
     than one voice and is dropped; where the voice changes, or after a silence of `gap`, a new turn
     begins. Turns are what one voice says.
  4. A turn's spans are packed into utterances of at most 28 s and recognised. An utterance is
     dropped for low confidence, no speech, a speech rate nobody has, loops, or the wrong language.
  5. Agreement: the utterance is recognised again (in two halves, slower, or by a second
     recogniser); if the two transcripts differ too much it is dropped.
  6. The transcript is aligned; accepted utterances that follow each other are cut into parts, in
     pauses, at punctuation where there is some. Parts of a turn that follow each other without a
     loss make records of at least two parts and less than `max_seconds`.

Everything that is lost is reported with its seconds: a recording's length is that of its records
and of its rejections together, silence and music ("not speech") included. The rejections' reasons:
not speech, mixed voices, too short to tell the voice, no pause, probably no speech, empty
transcript, low confidence, repetition, other language, speech rate, no agreement, no alignment, a
lone part; and those of a file that cannot be read.

    python -m ba_jax.corpora --config=configs/prepare.py:crawl \
        --config.source.path=/data/talks --config.source.language=en --out=/data/records/talks

How the thresholds were found (those of voices: `interleave.regions.Voices`). 202 utterances of 2 to
13 s, by ten voices of Kokoro's, clean and in white noise from 20 to -5 dB, heard by Whisper-base:

                                    agreement by "speed"  by "halves"  confidence < 0.6
    error over 0.3 (30), dropped    30                    30           16
    error up to 0.1 (154), dropped  1                     3            0

so 0.2 of disagreement and 0.6 of confidence; clean speech has a confidence of 0.91 to 0.97, a
person's Mandarin sentence (tests/data/speech) 0.72. "speed" is the default: halves of a short
utterance are too short to be heard well. No transcript with an error up to 0.1 had a probability of
no speech over 0.21; the bound is Whisper's own 0.6. Kokoro says 2.4 to 3.7 English words and 5.0 to
5.4 Mandarin characters a second; the bounds leave room for people. Pauses and the word times they
are compared with: `interleave.timing`.

Speed, on one core of the machine of the tests: 4.1 seconds of recording a CPU-second (6.6 without
the agreement, 2.6 if the language has to be found). Three hours in one file take 752 MB.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ba_jax.audio import AudioError, AudioReader, resample
from ba_jax.corpora.clips import sorted_files
from ba_jax.corpora.encode import CODINGS, encode_speech
from ba_jax.corpora.interleave import regions, timing
from ba_jax.corpora.interleave.agreement import disagreement
from ba_jax.corpora.interleave.cuts import best_cuts, fill_records
from ba_jax.corpora.interleave.filters import Limits, find_fault
from ba_jax.corpora.interleave.text import Lengths, tidy
from ba_jax.corpora.sources.base import Item, Rejected, Rejection
from ba_jax.corpora.sources.listing import SourceError, check_unicode, inside, read_lines
from ba_jax.data.record import LANGUAGES, Part, Record, Word
from ba_jax.speech import tools
from ba_jax.speech.interfaces import SpeechToolError

AGREEMENTS = ("halves", "speed", "second", "")
"""What an utterance is recognised again as: two halves, 10 % slower, by the second recogniser; or
not at all."""
_TOOLS = ("vad", "speaker_encoder", "recogniser", "second_recogniser", "aligner")
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")

_ROW_KEYS = ("audio", "id", "language", "split")
_RATE = 16000  # Hz, what the tools work at: resampled once for all of them
_SLOWER = 14400  # Hz: 16 kHz sound taken for this is 10 % slower and lower
_BLOCK = 30.0  # seconds read at a time
_SHORT_SILENCE = 0.3  # seconds; between words, not between utterances
_SHORTEST = 0.6  # seconds of speech that a voice can be told from
_MARGIN = 0.3  # seconds kept before and behind speech, of the silence there: VAD comes late
_UTTERANCE = 28.0  # seconds of speech; with its margins a recogniser takes 30
_RECOGNISED = 30.0
_TARGET = 20.0  # seconds of an utterance: with more of a sentence around it a word is heard better


@dataclasses.dataclass(frozen=True)
class Utterance:
    """What one voice says in one go, recognised; times as in the window."""

    start: float
    end: float
    words: tuple[Word, ...]
    language: str


@dataclasses.dataclass(frozen=True)
class Crawl:
    """Long recordings.

    Attributes:
      name: of the dataset.
      path: a folder, searched for audio files, or a JSONL file with a row a recording:
        {"audio": path relative to the file, "id": ..., "language": ..., "split": ...}, all but the
        first optional.
      language: of recordings that do not say; "" tries all languages and takes, for each
        utterance, the one that is recognised with more confidence.
      split: of recordings that do not say.
      coding: "opus" or "flac".
      vad, speaker_encoder, recogniser, second_recogniser, aligner: names, see
        `ba_jax.speech.tools`.
      options: one of these -> arguments of the tool's class,
        {"second_recogniser": {"model": "/models/whisper-large-v3"}}.
      agreement: of what two transcripts must agree; one of AGREEMENTS.
      window: seconds held in memory at a time.
      gap: seconds; a longer silence ends a turn.
      max_seconds: of a record.
      parts: seconds of a part.
      voices, limits: thresholds.
      description, licence: stored with the dataset.
    """

    name: str = "crawl"
    path: str = ""
    language: str = ""
    split: str = "train"
    coding: str = "opus"
    vad: str = "silero"
    speaker_encoder: str = "resemblyzer"
    recogniser: str = "whisper"
    second_recogniser: str = "whisper"
    aligner: str = "pocketsphinx"
    options: dict = dataclasses.field(default_factory=dict)
    agreement: str = "speed"
    window: float = 600.0
    gap: float = 1.5
    max_seconds: float = 300.0
    parts: Lengths = Lengths()
    voices: regions.Voices = regions.Voices()
    limits: Limits = Limits()
    description: str = ""
    licence: str = ""

    def __post_init__(self):
        if self.language not in ("", *LANGUAGES):
            raise ValueError(f"language {self.language!r}, expected '' or one of {LANGUAGES}")
        if self.window < 2 * _UTTERANCE:
            raise ValueError(f"window {self.window} s, expected at least {2 * _UTTERANCE}")
        if not 2 * self.parts.high < self.max_seconds <= 300:
            raise ValueError(
                f"max_seconds {self.max_seconds}, expected over twice the longest part, up to 300"
            )
        if self.agreement not in AGREEMENTS:
            raise ValueError(f"agreement {self.agreement!r}, expected one of {AGREEMENTS}")
        if unknown := sorted(set(self.options) - set(_TOOLS)):
            raise ValueError(f"options {unknown}, expected some of {_TOOLS}")
        if self.coding not in CODINGS:
            raise ValueError(f"coding {self.coding!r}, expected one of {CODINGS}")

    def __getstate__(self) -> dict[str, Any]:
        # The tools that a worker made stay in it.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    # Made on first use, in the worker.

    @functools.cached_property
    def _vad(self):
        return tools.make_vad(self.vad, **self.options.get("vad", {}))

    @functools.cached_property
    def _encoder(self):
        options = self.options.get("speaker_encoder", {})
        return tools.make_speaker_encoder(self.speaker_encoder, **options)

    @functools.cached_property
    def _recogniser(self):
        return tools.make_recogniser(self.recogniser, **self.options.get("recogniser", {}))

    @functools.cached_property
    def _second(self):
        options = self.options.get("second_recogniser", {})
        return tools.make_recogniser(self.second_recogniser, **options)

    @functools.cached_property
    def _aligner(self):
        return tools.make_aligner(self.aligner, **self.options.get("aligner", {}))

    def items(self) -> Iterator[Item | Rejection]:
        """One item a recording."""
        path = Path(self.path)
        if path.is_dir():
            listed = self._list_folder(path)
        elif self.path and path.is_file():
            listed = self._list_rows(path)
        else:
            raise SourceError(f"path = {self.path!r}: no such folder or JSONL file")
        yield from listed

    def _list_folder(self, folder: Path) -> Iterator[Item]:
        for path in sorted_files([folder], "*"):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                name = path.relative_to(folder)
                # With the suffix: a.wav and a.mp3 may lie side by side.
                id = name.as_posix().replace("/", "-")
                yield Item(id, self.split, str(path), (str(path), self.language))

    def _list_rows(self, path: Path) -> Iterator[Item | Rejection]:
        for line in read_lines(path):
            if isinstance(line, Rejection):
                yield line
                continue
            where, text = line
            if not text.strip():
                continue
            try:
                yield self._row(where, text, path.parent)
            except Rejected as rejected:
                yield Rejection(where, rejected.reason, rejected.detail)

    def _row(self, where: str, text: str, root: Path) -> Item:
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Rejected("malformed JSON", f"{error}: {text[:80]!r}") from None
        if not isinstance(row, dict) or not all(isinstance(v, str) for v in row.values()):
            raise Rejected("malformed JSON", f"expected an object of strings: {text[:80]!r}")
        if unknown := sorted(set(row) - set(_ROW_KEYS)):
            detail = f"{unknown}, expected some of {_ROW_KEYS}"
            raise Rejected("unknown key", ascii(detail)[1:-1])
        for key, value in row.items():
            check_unicode(value, key)
        audio = inside(root, row.get("audio", ""))
        language, split = row.get("language", self.language), row.get("split", self.split)
        if language not in ("", *LANGUAGES):
            raise Rejected("unknown language", f"{language!r}, expected one of {LANGUAGES}")
        if not split.isidentifier() or not split.isascii():
            raise Rejected("bad value", f"split {split!r}, expected letters, digits and _")
        id = row.get("id", row["audio"].replace("/", "-"))
        if not id:
            raise Rejected("bad value", "id '', expected some text")
        return Item(id, split, where, (audio, language))

    def records(self, item: Item) -> Iterator[Record | Rejection]:
        """The records of a recording, and what of it is lost."""
        path, language = item.payload
        used = total = 0.0
        book = regions.VoiceBook(self.voices.same)
        try:
            with AudioReader(path) as audio:
                for offset, wave_S, tool_S, spans in self._windows(audio):
                    total += len(wave_S) / audio.rate
                    window = _Window(self, item, language, offset, wave_S, audio.rate, tool_S, book)
                    for found in window.run(spans):
                        used += found.seconds
                        yield found
        except AudioError as error:
            # What was made of it before it broke is kept; the length of the rest is not known.
            yield Rejection(item.where, error.reason, str(error))
        if total - used > 1e-3:
            yield Rejection(item.where, "not speech", seconds=total - used)

    def finish(self, directory: Path) -> None:
        """Nothing beside the shards."""

    def _windows(self, audio: AudioReader):
        """Yields windows that end in silence: seconds before it, wave, at 16 kHz, its speech."""
        offset, kept_S = 0.0, np.zeros(0, np.float32)
        blocks = audio.blocks(_BLOCK)
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
            spans = regions.merge_spans(self._vad.speech(tool_S, _RATE), _SHORT_SILENCE)
            end = seconds if is_last else regions.find_split(spans, seconds, self.gap)
            # Nobody speaks that long without a breath: what is cut there is noise or music.
            cut = len(wave_S) if end is None else round(end * audio.rate)
            kept_S = wave_S[cut:]
            seconds = cut / audio.rate
            spans = [(a, min(b, seconds)) for a, b in spans if a < seconds]
            yield offset, wave_S[:cut], tool_S[: round(seconds * _RATE)], spans
            offset += seconds


class _Window:
    """One window of a recording; times count from its start."""

    def __init__(
        self, crawl: Crawl, item: Item, language: str, offset, wave_S, rate: int, tool_S, book
    ):
        self.crawl, self.item, self.book = crawl, item, book
        self.languages = (language,) if language else LANGUAGES
        self.offset, self.wave_S, self.rate = offset, wave_S, rate
        self.tool_S = tool_S
        self.seconds = len(wave_S) / rate

    def run(self, spans: list[regions.Span]) -> Iterator[Record | Rejection]:
        """The records, and what of the speech is lost."""
        spans = [piece for span in spans for piece in self._divide(span)]
        # A span is cut out with a margin, at most half of the silence beside it.
        ends = [0.0, *(end for _, end in spans)]
        starts = [*(start for start, _ in spans), self.seconds]
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
                yield self._lost(*self.edges[span], reason)
        for turn in turns:
            yield from self._turn(turn)

    def _divide(self, span: regions.Span) -> list[regions.Span]:
        """A span without silences that is too long for a recogniser, cut in its pauses."""
        start, end = span
        if end - start <= _UTTERANCE:
            return [span]
        pauses = timing.find_pauses(self._tool(start, end), _RATE)
        marks = [start, *(start + (a + b) / 2 for a, b in pauses), end]
        costs = [0.3 * (1 - min(b - a, 1.0)) for a, b in pauses] + [0.0]
        cuts = best_cuts(
            np.diff(marks), costs, target=_UTTERANCE / 2, low=0.0, high=_UTTERANCE - 2 * _MARGIN
        )
        return [(marks[a], marks[b]) for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]

    def _embed(self, span: regions.Span) -> np.ndarray:
        """Unit vectors (P, D) of a span's pieces; (0, 1) if it is too short for one."""
        pieces = regions.divide_span(span, self.crawl.voices.piece)
        found = []
        for start, end in pieces:
            if end - start >= _SHORTEST:
                with contextlib.suppress(SpeechToolError):  # less speech in it than it seemed
                    found.append(self.crawl._encoder.embed(self._tool(start, end), _RATE))
        return np.stack(found) if found else np.zeros((0, 1), np.float32)

    def _tool(self, start: float, end: float) -> np.ndarray:
        return self.tool_S[max(0, round(start * _RATE)) : round(end * _RATE)]

    def _lost(self, start: float, end: float, reason: str, detail: str = "") -> Rejection:
        where = f"{self.item.where} ({self.offset + start:.1f} to {self.offset + end:.1f} s)"
        return Rejection(where, reason, detail, end - start)

    def _turn(self, turn: regions.Turn) -> Iterator[Record | Rejection]:
        speaker = f"{self.item.id}-{self.book.number(turn.voice_D)}"
        run: list[Utterance] = []
        for spans in regions.pack_utterances(turn.spans, _TARGET, _UTTERANCE):
            found = self._utterance(spans)
            if isinstance(found, Rejection):
                yield found
            if run and (isinstance(found, Rejection) or found.language != run[0].language):
                yield from self._stretch(run, speaker)
                run = []
            if isinstance(found, Utterance):
                run.append(found)
        if run:
            yield from self._stretch(run, speaker)

    def _utterance(self, spans: list[regions.Span]) -> Utterance | Rejection:
        """Recognises, checks and aligns."""
        crawl = self.crawl
        start, end = self.edges[spans[0]][0], self.edges[spans[-1]][1]
        if end - start > _RECOGNISED:
            return self._lost(start, end, "no pause", f"{end - start:.1f} s without one")
        wave_S = self._tool(start, end)
        spoken = sum(b - a for a, b in spans)
        fault, heard, language = ("", ""), None, ""
        for candidate in self.languages:
            trial = crawl._recogniser.recognise(wave_S, _RATE, candidate)
            problem = find_fault(trial, spoken, candidate, crawl.limits)
            # Of what can be used, the most confident; a fault is told of the most confident too.
            rank = (problem is None, trial.confidence)
            if heard is None or rank > (fault is None, heard.confidence):
                fault, heard, language = problem, trial, candidate
        if fault:
            return self._lost(start, end, *fault)
        if crawl.agreement:
            second = self._recognise_again(wave_S, language)
            difference = disagreement(heard.text, second, language)
            if difference > crawl.limits.disagreement:
                detail = f"{difference:.2f} between {heard.text[:60]!r} and {second[:60]!r}"
                return self._lost(start, end, "no agreement", detail)
        # Recognisers mix half-width commas into Mandarin.
        text = " ".join(tidy(heard.text, language).split())
        try:
            words = timing.locate(text, crawl._aligner.align(wave_S, _RATE, text, language))
        except (timing.TimingError, SpeechToolError) as error:
            return self._lost(start, end, "no alignment", str(error))
        words = tuple(Word(w.text, start + w.start, start + w.end) for w in words)
        return Utterance(start, end, words, language)

    def _recognise_again(self, wave_S: np.ndarray, language: str) -> str:
        """A second opinion of what is said."""
        crawl = self.crawl
        if crawl.agreement == "second":
            return crawl._second.recognise(wave_S, _RATE, language).text
        if crawl.agreement == "speed":
            return crawl._recogniser.recognise(wave_S, _SLOWER, language).text
        # Cut at the quietest tenth of a second of the middle third.
        level_T, hop = timing.loudness(wave_S, _RATE, window=0.1)
        third = len(level_T) // 3
        middle = third + int(np.argmin(level_T[third : max(third + 1, 2 * third)]))
        cut = round(middle * hop * _RATE)
        halves = (wave_S[:cut], wave_S[cut:])
        return " ".join(crawl._recogniser.recognise(w, _RATE, language).text for w in halves)

    def _stretch(self, run: list[Utterance], speaker: str) -> Iterator[Record | Rejection]:
        """Cuts what was accepted into parts, and puts them into records."""
        crawl = self.crawl
        start, end, language = run[0].start, run[-1].end, run[0].language
        pauses = [
            (start + a, start + b) for a, b in timing.find_pauses(self._tool(start, end), _RATE)
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
        records = fill_records([p.seconds for p in parts], is_kept, limit=crawl.max_seconds)
        for part in [p for p, kept in zip(parts, is_kept, strict=True) if not kept]:
            yield self._lost(part.start, part.end, "no pause", f"a part of {part.seconds:.1f} s")
        used = {i for first, last in records for i in range(first, last)}
        for i, part in enumerate(parts):
            if is_kept[i] and i not in used:
                yield self._lost(part.start, part.end, "a lone part", part.text[:60])
        for first, last in records:
            at = self.offset + parts[first].start
            yield Record(
                id=f"{self.item.id}-{round(at * 100):08d}",
                kind="interleaved",
                language=language,
                parts=tuple(self._part(part, speaker, language) for part in parts[first:last]),
                source=crawl.name,
            )

    def _part(self, part: timing.Stretch, speaker: str, language: str) -> Part:
        a, b = round(part.start * self.rate), round(part.end * self.rate)
        audio, seconds = encode_speech(self.wave_S[max(0, a) : b], self.rate, self.crawl.coding)
        return Part(
            text=part.text,
            audio=audio,
            seconds=seconds,
            speaker=speaker,
            words=part.words_for_record(language),
        )
