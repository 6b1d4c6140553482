"""Datasets from a JSONL manifest: one JSON object per line, UTF-8.

An utterance (`id` defaults to the line's number, `split` and `language` to the config's):

    {"id": "a1", "audio": "wav/a1.flac", "text": "Good morning.", "speaker": "ann",
     "language": "en", "split": "train", "translation": "早上好。"}

Further keys of an utterance:

    offset, duration   seconds: the stretch of a long file. A duration without an offset is the
                       file's length, and is checked
    sample_rate        Hz, checked against the file's header
    codes              a .npy file of audio codes (N, codebooks), instead of audio or beside it
    words              [["Good", 0.1, 0.4], ...]: start and end of each word in seconds, in the
                       order of the starts; blank ones (silence) are left out
    loss               false: never a target

`segments` is a list of such objects: interleaved speech and text, or, if each has a `role`
("system", "user", "assistant"), a dialogue:

    {"id": "d1", "language": "en", "segments": [
      {"role": "user", "text": "What is two and two?", "audio": "q.wav"},
      {"role": "assistant", "text": "Four."}]}

A line with `text` alone is text. A key with the value null is as if it were absent, except the only
one of `audio` and `codes`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ba_jax.config import LocalPath
from ba_jax.corpora.sources.base import Item, Rejected, Rejection, SourceError
from ba_jax.corpora.sources.clips import Clip, ClipSource, Recipe
from ba_jax.corpora.sources.listing import (
    MAX_SECONDS,
    check_fields,
    check_unicode,
    clean_text,
    find_inside,
    list_items,
    parse_object,
    read_lines,
)
from ba_jax.data.record import ROLES, RecordError, Word, check_language, drop_invisible

_NUMBER = (int, float)
# Key -> the types that its value may have.
_CLIP_KEYS: Mapping[str, tuple[type, ...]] = {
    "audio": (str,),
    "text": (str,),
    "codes": (str,),
    "speaker": (str,),
    "translation": (str,),
    "offset": _NUMBER,
    "duration": _NUMBER,
    "sample_rate": (int,),
    "words": (list,),
    "loss": (bool,),
    "role": (str,),
}
_LINE_KEYS = {"id": (str,), "split": (str,), "language": (str,), "segments": (list,)}
_ALONE_KEYS = _LINE_KEYS | _CLIP_KEYS
_MAX_SEGMENTS = 10_000


@dataclasses.dataclass(frozen=True)
class Manifest(ClipSource):
    """A JSONL manifest; `folder` is the root of its paths, "" for the manifest's own folder.

    Attributes:
      language, split: values of lines that name none.
      needs_text: reject speech without a transcript.
      allow_absolute: accept absolute paths, wherever they lead.
      extra_keys: ignore keys that are not named above, instead of rejecting the line.
    """

    path: LocalPath = ""
    name: str = "manifest"
    description: str = "Made from a JSONL manifest."
    licence: str = ""
    language: str = "en"
    split: str = "train"
    needs_text: bool = True
    allow_absolute: bool = False
    extra_keys: bool = False

    def items(self) -> Iterator[Item | Rejection]:
        """List the lines of the manifest."""
        path = Path(self.path)
        if not self.path or not path.is_file():
            raise SourceError(f"source.path = {self.path!r}: no such file, expected a manifest")
        root = Path(self.folder) if self.folder else path.parent
        if not root.is_dir():
            raise SourceError(f"source.folder = {self.folder!r}: no such folder")
        yield from list_items(
            read_lines(path), lambda where, text: self._make_item(where, text, root)
        )

    def _make_item(self, where: str, text: str, root: Path) -> Item | None:
        if not text.strip():
            return None
        fields = parse_object(text)
        is_alone = fields.get("segments") is None
        speech = [fields[key] for key in ("audio", "codes") if key in fields]
        if is_alone and speech and not any(value is not None for value in speech):
            # Text alone would be made of lost speech.
            raise Rejected("bad value", "audio null, expected a path, or no such key for text")
        fields = self._check(fields, _ALONE_KEYS if is_alone else _LINE_KEYS)
        parts = fields.get("segments")
        number = where.rsplit(":", 1)[1]
        id = fields.get("id", f"{Path(self.path).stem}-{number}")
        if not clean_text(id):
            raise Rejected("bad value", f"id {id!r}, expected some text")
        language = fields.get("language", self.language)
        try:
            check_language(language)
        except RecordError as error:
            raise Rejected("unknown language", str(error)) from None
        split = fields.get("split", self.split)
        if is_alone:
            if "role" in fields:
                raise Rejected("unknown key", "role outside of segments")
            clips = (self._make_clip(fields, root, alone=True),)
            is_spoken = clips[0].path or clips[0].codes_path
            kind = "speech" if is_spoken else "text"
        else:
            if not 2 <= len(parts) <= _MAX_SEGMENTS:
                detail = f"{len(parts)} segments, expected 2 to {_MAX_SEGMENTS}"
                raise Rejected("bad value", detail)
            parts = [self._check(p, _CLIP_KEYS, f"segment {n}: ") for n, p in enumerate(parts)]
            clips = tuple(self._make_clip(part, root, alone=False) for part in parts)
            roles = [bool(clip.role) for clip in clips]
            if any(roles) and not all(roles):
                raise Rejected("bad value", "a role in some segments, expected in all or none")
            kind = "dialogue" if all(roles) else "interleaved"
        seconds = sum(_known_seconds(clip) for clip in clips)
        return Item(id, split, where, (Recipe(id, kind, language, clips),), seconds)

    def _check(self, fields: Any, known: Mapping[str, tuple], name: str = "") -> dict[str, Any]:
        return check_fields(fields, known, extra_keys=self.extra_keys, name=name)

    def _make_clip(self, fields: Mapping[str, Any], root: Path, alone: bool) -> Clip:
        text = clean_text(fields.get("text", ""))
        audio, codes = fields.get("audio", ""), fields.get("codes", "")
        is_spoken = "audio" in fields or "codes" in fields
        if not text and (not is_spoken or "text" in fields or self.needs_text):
            raise Rejected("empty transcript", f"text {fields.get('text')!r}, expected some")
        if not is_spoken and not alone and "role" not in fields:
            raise Rejected("bad value", "a segment without audio or codes")
        role = fields.get("role", "")
        if role not in ROLES or ("role" in fields and not role):
            raise Rejected("bad value", f"role {role!r}, expected one of {ROLES[1:]}")
        offset, duration = fields.get("offset"), fields.get("duration")
        if duration is not None and not 0 < duration < MAX_SECONDS:
            raise Rejected("bad times", f"duration {duration}, expected more than 0 s")
        if offset is not None and not 0 <= offset < MAX_SECONDS:
            raise Rejected("bad times", f"offset {offset}, expected 0 s or more")
        rate = fields.get("sample_rate")
        if rate is not None and rate < 1:
            raise Rejected("bad value", f"sample_rate {rate}, expected 1 Hz or more")
        is_cut = offset is not None
        return Clip(
            text=text,
            path=self._find_file(root, audio) if "audio" in fields else "",
            start=float(offset) if is_cut else None,
            end=float(offset + duration) if is_cut and duration is not None else None,
            stated_seconds=float(duration) if duration is not None and not is_cut else 0.0,
            stated_rate=rate or 0,
            codes_path=self._find_file(root, codes) if "codes" in fields else "",
            codes_seconds=float(duration or 0.0),
            translation=clean_text(fields.get("translation", "")),
            role=role,
            speaker=clean_text(fields.get("speaker", "")),
            words=_parse_words(fields.get("words", ())),
            loss=fields.get("loss", True),
        )

    def _find_file(self, root: Path, name: str) -> str:
        return find_inside(root, name, allow_absolute=self.allow_absolute)


def _known_seconds(clip: Clip) -> float:
    if clip.end is not None and clip.start is not None:
        return clip.end - clip.start
    return clip.stated_seconds


def _parse_words(rows) -> tuple[Word, ...]:
    words: list[Word] = []
    for row in rows:
        is_row = isinstance(row, list) and len(row) == 3 and isinstance(row[0], str)
        if not is_row or not all(type(value) in _NUMBER for value in row[1:]):
            raise Rejected("bad word timings", f"{ascii(row)[:80]}, expected [word, start, end]")
        text, start, end = row
        check_unicode(text, "words")
        least = words[-1].start if words else 0
        if not (least <= start < MAX_SECONDS and 0 <= end < MAX_SECONDS):
            detail = f"{ascii(row)[:80]}, expected a start from {least} s on, and an end"
            raise Rejected("bad word timings", detail)
        text = drop_invisible(text)
        if text.strip():
            words.append(Word(text, float(start), float(end)))
    return tuple(words)
