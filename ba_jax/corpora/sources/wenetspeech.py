"""WenetSpeech: Mandarin from videos and podcasts, long recordings with segments."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ba_jax.config import check_choices
from ba_jax.corpora.sources.base import Item, Rejected, Rejection, SourceError
from ba_jax.corpora.sources.clips import Clip, ClipSource, Recipe
from ba_jax.corpora.sources.listing import (
    MAX_SECONDS,
    check_fields,
    clean_text,
    find_inside,
    read_json,
    require_file,
    require_folder,
)

EVALUATION = {"DEV": "dev", "TEST_NET": "test_net", "TEST_MEETING": "test_meeting"}
_NUMBER = (int, float)
_RECORDING = {"aid": (str,), "path": (str,), "duration": _NUMBER, "segments": (list,)}
_SEGMENT = {"sid": (str,), "text": (str,), "begin_time": _NUMBER, "end_time": _NUMBER}


@dataclasses.dataclass(frozen=True)
class WenetSpeech(ClipSource):
    """WenetSpeech.json beside audio/train/youtube/B00000/Y0000000000_--5llN02F84.opus:

        {"audios": [{"aid": "Y0000000000_--5llN02F84", "duration": 2494.57,
                     "path": "audio/train/youtube/B00000/Y0000000000_--5llN02F84.opus",
                     "segments": [{"sid": "Y0000000000_--5llN02F84_S00000", "confidence": 1.0,
                                   "begin_time": 20.08, "end_time": 24.4, "subsets": ["L"],
                                   "text": "怎么样这些日子住得还习惯吧"}, ...]}, ...]}

    A segment is a record; an item is a recording with all its segments of a split.

    Attributes:
      subset: part of the training set, "S", "M", "L" or the weakly labelled "W". The evaluation
        sets are the splits dev, test_net and test_meeting.
    """

    subset: str = "L"

    name = "wenetspeech"
    description = "WenetSpeech (Zhang et al., 2022), wenet-e2e.github.io/WenetSpeech."
    licence = "CC BY 4.0, for non-commercial use; the owners of the recordings keep their rights"

    def __post_init__(self):
        check_choices(self, subset=("S", "M", "L", "W"))

    def items(self) -> Iterator[Item | Rejection]:
        """List the recordings that have segments of the subset or of an evaluation set."""
        root = require_folder(self.folder, "source.folder")
        path = require_file(root / "WenetSpeech.json", "WenetSpeech")
        content = read_json(path)
        recordings = content.get("audios") if isinstance(content, dict) else None
        if not isinstance(recordings, list):
            raise SourceError(f"{path}: expected an object with a list 'audios'")
        splits = {self.subset: "train", **EVALUATION}
        for number, recording in enumerate(recordings):
            where = f"{path}: audios[{number}]"
            try:
                yield from _list_recording(recording, where, root, splits)
            except Rejected as rejected:
                yield rejected.at(where)


def _list_recording(
    recording: Any, where: str, root: Path, splits: dict[str, str]
) -> Iterator[Item | Rejection]:
    fields = _check(recording, **_RECORDING)
    aid, name, duration = fields["aid"], fields["path"], fields["duration"]
    if not clean_text(aid):
        raise Rejected("bad value", f"aid {aid!r}, expected some text")
    if not 0 < duration < MAX_SECONDS:
        raise Rejected("bad times", f"duration {ascii(duration)[:80]}, expected more than 0 s")
    recipes: list[Recipe] = []
    used_splits: dict[str, None] = {}
    sids: set[str] = set()
    rejections = []
    path = ""
    for number, segment in enumerate(fields["segments"]):
        try:
            subsets = _check(segment, subsets=(list,))["subsets"]
            split = next((splits[key] for key in splits if key in subsets), "")
            if not split:
                continue
            content = _check(segment, **_SEGMENT)
            sid, text = content["sid"], clean_text(content["text"])
            if not sid.startswith(aid):
                raise Rejected("bad value", f"sid {sid!r}, expected to begin with {aid!r}")
            begin, end = content["begin_time"], content["end_time"]
            if not (0 <= begin < MAX_SECONDS and 0 <= end < MAX_SECONDS):
                raise Rejected("bad times", f"{sid}: from {begin!s:.80} s to {end!s:.80} s")
            if not text:
                raise Rejected("empty transcript", f"of {sid}", max(0.0, end - begin))
            if sid in sids:
                raise Rejected("duplicate id", f"sid {sid!r} again", max(0.0, end - begin))
        except Rejected as rejected:
            rejections.append(rejected.at(f"{where}.segments[{number}]"))
            continue
        # The file must exist only if a segment of it is wanted. The folder audio/ may be a link to
        # a larger disk.
        if not path:
            inner = name.removeprefix("audio/")
            path = find_inside(root / "audio", inner) if inner != name else find_inside(root, name)
        clip = Clip(
            text=text, path=path, start=float(begin), end=float(end), stated_seconds=float(duration)
        )
        recipes.append(Recipe(sid, "speech", "zh", (clip,)))
        sids.add(sid)
        used_splits[split] = None
    yield from rejections
    # No released recording has several splits; one that had would need two items of other ids.
    if len(used_splits) > 1:
        raise Rejected("bad value", f"{aid} has segments of splits {sorted(used_splits)}")
    for split in used_splits:
        seconds = sum(recipe.clips[0].end - recipe.clips[0].start for recipe in recipes)
        yield Item(aid, split, f"{where} {aid}", tuple(recipes), seconds)


def _check(fields: Any, **needed: tuple[type, ...]) -> dict[str, Any]:
    """The values of keys of a JSON object, all of them needed."""
    return check_fields(fields, needed, needed=tuple(needed), extra_keys=True)
