"""Common Voice, and CoVoST 2: translations of what is said in its version 4."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from ba_jax.corpora.clips import Clip, ClipSource, speech_item, stated_float
from ba_jax.corpora.sources.base import Item, Rejected, Rejection
from ba_jax.corpora.sources.listing import (
    SourceError,
    inside,
    read_rows,
    require_file,
    require_folder,
)

LANGUAGE_OF = {"en": "en", "zh-CN": "zh", "zh-TW": "zh"}
SPEAKER_DIGITS = 16
"""Of a client's 128 hexadecimal digits; 16 tell them apart."""
_REQUIRED = ("client_id", "path", "sentence")


def _language_of(locale: str) -> str:
    if locale not in LANGUAGE_OF:
        raise SourceError(f"language {locale!r}, expected one of {sorted(LANGUAGE_OF)}")
    return LANGUAGE_OF[locale]


@dataclasses.dataclass(frozen=True)
class CommonVoice(ClipSource):
    """cv-corpus-VERSION/LOCALE/{train,dev,test,validated,...}.tsv with at least the columns
    client_id, path and sentence, and clips/*.mp3. Newer versions add clip_durations.tsv.

    Attributes:
      language: the locale, "en", "zh-CN" or "zh-TW"; "" for the folder's name.
      splits: names of tables, in order: a clip that an earlier one holds is a duplicate in a later
        one, so that ("test", "dev", "validated") makes a training set without the other two.
    """

    language: str = ""
    splits: tuple[str, ...] = ("test", "dev", "train")

    name = "common_voice"
    description = "Mozilla Common Voice (Ardila et al., 2020)."
    licence = "CC0 1.0"

    def items(self) -> Iterator[Item | Rejection]:
        """As `Source.items`."""
        root = require_folder(self.folder, "source.folder")
        language = _language_of(self.language or root.resolve().name)
        clips = require_folder(str(root / "clips"), "clips")
        seconds = _durations(root)
        for split in self.splits:
            table = require_file(root / f"{split}.tsv", "Common Voice")
            for row in read_rows(table, required=_REQUIRED):
                if isinstance(row, Rejection):
                    yield row
                    continue
                where, fields = row
                yield _item(where, fields, clips, language, split, seconds)


@dataclasses.dataclass(frozen=True)
class Covost2(ClipSource):
    """A locale's folder of Common Voice 4 with validated.tsv and clips/, and, in it, beside it, or
    in `translations`, one of

        covost_v2.en_zh-CN.tsv                      path, translation, split
        covost_v2.en_zh-CN.{train,dev,test}.tsv     path, sentence, translation, client_id

    the second as get_covost_splits.py makes them of the first. In these tables a backslash makes
    the character that follows it text. CoVoST 2's "train" is its split train and Common Voice's.

    Attributes:
      translations: folder of these files, "" to look in `folder` and above it.
      spoken, written: CoVoST 2's languages: en and zh-CN, or zh-CN and en.
      splits: some of train, dev, test.
    """

    translations: str = ""
    spoken: str = "en"
    written: str = "zh-CN"
    splits: tuple[str, ...] = ("test", "dev", "train")

    name = "covost2"
    description = "CoVoST 2 (Wang et al., 2020): translations of Common Voice 4."
    licence = "CC0 1.0 (speech and transcripts), CC BY-NC 4.0 (translations)"

    def __post_init__(self):
        if {self.spoken, self.written} != {"en", "zh-CN"}:
            raise ValueError(
                f"spoken = {self.spoken!r}, written = {self.written!r}: expected en and zh-CN, in "
                "either order"
            )

    def items(self) -> Iterator[Item | Rejection]:
        """As `Source.items`."""
        root = require_folder(self.folder, "source.folder")
        clips = require_folder(str(root / "clips"), "clips")
        language = _language_of(self.spoken)
        stem = f"covost_v2.{self.spoken}_{self.written}"
        folders = [Path(self.translations)] if self.translations else [root, root.resolve().parent]
        for folder in folders:
            if (folder / f"{stem}.tsv").is_file():
                yield from self._joined(folder / f"{stem}.tsv", root, clips, language)
                return
            if all((folder / f"{stem}.{split}.tsv").is_file() for split in self.splits):
                for split in self.splits:
                    table = folder / f"{stem}.{split}.tsv"
                    required = (*_REQUIRED, "translation")
                    for row in read_rows(table, required=required, escaped=True):
                        if isinstance(row, Rejection):
                            yield row
                            continue
                        yield _item(*row, clips, language, split, {}, translated=True)
                return
        looked = " and ".join(str(folder) for folder in folders)
        raise SourceError(f"{looked}: neither {stem}.tsv nor {stem}.train.tsv and the like")

    def _joined(self, table: Path, root: Path, clips: Path, language: str):
        """Common Voice's transcripts and CoVoST 2's translations, joined by their clips."""
        transcripts = require_file(root / "validated.tsv", "Common Voice 4")
        said = {}
        for row in read_rows(transcripts, required=_REQUIRED, escaped=True):
            if isinstance(row, Rejection):
                yield row
                continue
            said[row[1]["path"]] = row[1]
        for row in read_rows(table, required=("path", "translation", "split"), escaped=True):
            if isinstance(row, Rejection):
                yield row
                continue
            where, fields = row
            # The part of the training set that Common Voice has none of.
            split = fields["split"].removesuffix("_covost")
            if split not in self.splits or (split != "train" and split != fields["split"]):
                continue
            path = fields["path"]
            if path not in said:
                yield Rejection(where, "no transcript", f"{path} is not in {transcripts}")
                continue
            yield _item(where, {**said[path], **fields}, clips, language, split, {}, True)


def _durations(root: Path) -> Mapping[str, float]:
    """Clip -> seconds, of the versions that tell."""
    table = root / "clip_durations.tsv"
    if not table.is_file():
        return {}
    found = {}
    for row in read_rows(table):
        if not isinstance(row, Rejection):
            clip, length, *_ = row[1].values()
            found[clip] = stated_float(length, 1e-3)
    return found


def _item(
    where: str,
    fields: Mapping[str, str],
    clips: Path,
    language: str,
    split: str,
    seconds: Mapping[str, float],
    translated: bool = False,
) -> Item | Rejection:
    name, text = fields["path"], fields["sentence"].strip()
    length = seconds.get(name, 0.0)
    translation = fields["translation"].strip() if translated else ""
    if not text:
        return Rejection(where, "empty transcript", f"of {name}", length)
    if translated and not translation:
        return Rejection(where, "empty translation", f"of {name}", length)
    # The first versions left the suffix out.
    file = name if name.endswith((".mp3", ".wav")) else f"{name}.mp3"
    try:
        path = inside(clips, file)
    except Rejected as rejected:
        return Rejection(where, rejected.reason, rejected.detail, length)
    clip = Clip(
        text=text,
        path=path,
        translation=translation,
        speaker=fields["client_id"][:SPEAKER_DIGITS],
    )
    return speech_item(Path(file).stem, split, where, language, clip, length)
