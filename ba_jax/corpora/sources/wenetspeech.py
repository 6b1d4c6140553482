"""WenetSpeech: Mandarin from videos and podcasts, long recordings with segments."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ba_jax.corpora.clips import Clip, ClipSource, Recipe
from ba_jax.corpora.sources.base import Item, Rejected, Rejection
from ba_jax.corpora.sources.listing import (
    SourceError,
    check_unicode,
    inside,
    require_file,
    require_folder,
)

TRAINING = ("S", "M", "L", "W")
EVALUATION = {"DEV": "dev", "TEST_NET": "test_net", "TEST_MEETING": "test_meeting"}


@dataclasses.dataclass(frozen=True)
class WenetSpeech(ClipSource):
    """WenetSpeech.json beside audio/train/youtube/B00000/Y0000000000_--5llN02F84.opus:

        {"audios": [{"aid": "Y0000000000_--5llN02F84", "duration": 2494.57,
                     "path": "audio/train/youtube/B00000/Y0000000000_--5llN02F84.opus",
                     "segments": [{"sid": "Y0000000000_--5llN02F84_S00000", "confidence": 1.0,
                                   "begin_time": 20.08, "end_time": 24.4, "subsets": ["L"],
                                   "text": "怎么样这些日子住得还习惯吧"}, ...]}, ...]}

    A segment is a record; an item is a recording with all of its segments of a split.

    Attributes:
      subset: of the training set, "S", "M", "L" or the weakly labelled "W". The evaluation sets are
        the splits dev, test_net and test_meeting.
    """

    subset: str = "L"

    name = "wenetspeech"
    description = "WenetSpeech (Zhang et al., 2022), wenet-e2e.github.io/WenetSpeech."
    licence = "CC BY 4.0, for non-commercial use; the owners of the recordings keep their rights"

    def __post_init__(self):
        if self.subset not in TRAINING:
            raise ValueError(f"subset = {self.subset!r}, expected one of {TRAINING}")

    def items(self) -> Iterator[Item | Rejection]:
        """As `Source.items`."""
        root = require_folder(self.folder, "source.folder")
        path = require_file(root / "WenetSpeech.json", "WenetSpeech")
        try:
            content = json.loads(path.read_bytes().decode("utf-8-sig"))
        except ValueError as error:
            raise SourceError(f"{path}: no JSON ({error})") from None
        audios = content.get("audios") if isinstance(content, dict) else None
        if not isinstance(audios, list):
            raise SourceError(f"{path}: expected an object with a list 'audios'")
        splits = {self.subset: "train", **EVALUATION}
        for number, audio in enumerate(audios):
            where = f"{path}: audios[{number}]"
            try:
                yield from _items_of(audio, where, root, splits)
            except Rejected as rejected:
                yield Rejection(where, rejected.reason, rejected.detail, rejected.seconds)


def _items_of(audio: Any, where: str, root: Path, splits: dict[str, str]):
    aid, name = _field(audio, "aid", str), _field(audio, "path", str)
    duration = _field(audio, "duration", (int, float))
    by_split: dict[str, list[Recipe]] = {}
    rejected = []
    path = ""
    for number, segment in enumerate(_field(audio, "segments", list)):
        try:
            subsets = _field(segment, "subsets", list)
            wanted = [splits[key] for key in splits if key in subsets]
            if not wanted:
                continue  # of a subset that was not asked for
            sid, text = _field(segment, "sid", str), _field(segment, "text", str).strip()
            if not sid.startswith(aid):
                raise Rejected("bad value", f"sid {sid!r}, expected to begin with {aid!r}")
            begin = _field(segment, "begin_time", (int, float))
            end = _field(segment, "end_time", (int, float))
            if not text:
                raise Rejected("empty transcript", f"of {sid}", max(0.0, end - begin))
        except Rejected as error:
            place = f"{where}.segments[{number}]"
            rejected.append(Rejection(place, error.reason, error.detail, error.seconds))
            continue
        # Only a recording that something is wanted of has to be there. The folder audio/ may be a
        # link to where there is room for it.
        if not path:
            inner = name.removeprefix("audio/")
            path = inside(root / "audio", inner) if inner != name else inside(root, name)
        clip = Clip(
            text=text, path=path, start=float(begin), end=float(end), stated_seconds=float(duration)
        )
        recipe = Recipe(sid, "speech", "zh", (clip,))
        by_split.setdefault(wanted[0], []).append(recipe)
    yield from rejected
    for split, recipes in by_split.items():
        # No recording is of two splits; if one were, both items would need ids of their own.
        if len(by_split) > 1:
            raise Rejected("bad value", f"{aid} has segments of splits {sorted(by_split)}")
        seconds = sum(recipe.clips[0].end - recipe.clips[0].start for recipe in recipes)
        yield Item(aid, split, f"{where} {aid}", tuple(recipes), seconds)


def _field(fields: Any, name: str, types) -> Any:
    if not isinstance(fields, dict):
        raise Rejected("bad value", f"{ascii(fields)[:80]}, expected an object")
    value = fields.get(name)
    if not isinstance(value, types) or isinstance(value, bool):
        raise Rejected("bad value", f"{name} {ascii(value)[:80]}")
    return check_unicode(value, name) if isinstance(value, str) else value
