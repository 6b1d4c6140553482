"""Common Voice, and CoVoST 2: translations of the transcripts of its version 4."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from ba_jax.corpora.sources.base import Item, Rejected, Rejection, SourceError
from ba_jax.corpora.sources.clips import Clip, ClipSource, speech_item
from ba_jax.corpora.sources.listing import (
    clean_text,
    find_inside,
    list_items,
    parse_seconds,
    read_rows,
    require_file,
    require_folder,
)
from ba_jax.data.record import RecordError, check_language

LANGUAGE_OF = {"zh-HK": "yue"}
"""Locale -> its language; others begin with it ("zh-CN")."""
SPEAKER_DIGITS = 16
"""Digits kept of a client's 128 hexadecimal ones; 16 tell all clients apart."""
_REQUIRED = ("client_id", "path", "sentence")
ItemMaker = Callable[[str, Mapping[str, str], str], Item]
"""Makes an item of ("file:line", column -> value, split)."""


@dataclasses.dataclass(frozen=True)
class CommonVoice(ClipSource):
    """cv-corpus-VERSION/LOCALE/{train,dev,test,validated,...}.tsv with at least the columns
    client_id, path and sentence, and clips/*.mp3. Newer versions add clip_durations.tsv, with the
    columns clip and duration[ms].

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
        """List the utterances of each table."""
        root = require_folder(self.folder, "source.folder")
        make_item = _item_maker(root, self.language or root.resolve().name, _read_durations(root))
        for split in self.splits:
            table = require_file(root / f"{split}.tsv", "Common Voice")
            yield from list_items(
                read_rows(table, _REQUIRED),
                lambda where, fields, split=split: make_item(where, fields, split),
            )


@dataclasses.dataclass(frozen=True)
class Covost2(ClipSource):
    """A locale's folder of Common Voice 4 with validated.tsv and clips/, and, in it, beside it, or
    in `translations`, one of

        covost_v2.en_zh-CN.tsv                      path, translation, split
        covost_v2.en_zh-CN.{train,dev,test}.tsv     path, sentence, translation, client_id

    the second made from the first by get_covost_splits.py. In these tables a backslash makes
    the character that follows it text. CoVoST 2's "train" is its split train and Common Voice's.

    Attributes:
      translations: folder of these files, "" to look in `folder` and above it.
      spoken, written: CoVoST 2's languages: en and zh-CN, or zh-CN and en.
      splits: a selection of train, dev, test.
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
        """List the utterances that have a translation."""
        root = require_folder(self.folder, "source.folder")
        make_item = _item_maker(root, self.spoken, {}, translated=True)
        stem = f"covost_v2.{self.spoken}_{self.written}"
        folders = [Path(self.translations)] if self.translations else [root, root.resolve().parent]
        for folder in folders:
            if (folder / f"{stem}.tsv").is_file():
                yield from self._join_tables(folder / f"{stem}.tsv", root, make_item)
                return
            tables = {split: folder / f"{stem}.{split}.tsv" for split in self.splits}
            if all(table.is_file() for table in tables.values()):
                for split, table in tables.items():
                    yield from list_items(
                        read_rows(table, (*_REQUIRED, "translation"), escaped=True),
                        lambda where, fields, split=split: make_item(where, fields, split),
                    )
                return
        looked = " and ".join(str(folder) for folder in folders)
        raise SourceError(f"{looked}: neither {stem}.tsv nor {stem}.train.tsv and the like")

    def _join_tables(
        self, table: Path, root: Path, make_item: ItemMaker
    ) -> Iterable[Item | Rejection]:
        """Join Common Voice's transcripts and CoVoST 2's translations by their clips."""
        transcripts = require_file(root / "validated.tsv", "Common Voice 4")
        utterances: dict[str, Mapping[str, str]] = {}
        for row in read_rows(transcripts, _REQUIRED, escaped=True):
            if isinstance(row, Rejection):
                yield row
            else:
                utterances[row[1]["path"]] = row[1]

        def make_joined(where: str, fields: Mapping[str, str]) -> Item | None:
            # CoVoST 2 adds clips to its training set that Common Voice leaves out of its own.
            split = fields["split"].removesuffix("_covost")
            if split not in self.splits or (split != "train" and split != fields["split"]):
                return None
            path = fields["path"]
            if path not in utterances:
                raise Rejected("no transcript", f"{path} is not in {transcripts}")
            return make_item(where, {**utterances[path], **fields}, split)

        rows = read_rows(table, ("path", "translation", "split"), escaped=True)
        yield from list_items(rows, make_joined)


def _item_maker(
    root: Path, locale: str, durations: Mapping[str, str], translated: bool = False
) -> ItemMaker:
    """Make the function that makes the item of a row of a locale's table, if its clips are there.

    `durations` is clip -> its length in ms, as far as it is known.
    """
    try:
        language = check_language(LANGUAGE_OF.get(locale, locale.partition("-")[0]))
    except RecordError as error:
        raise SourceError(str(error)) from None
    clips = require_folder(root / "clips", "clips")

    def make_item(where: str, fields: Mapping[str, str], split: str) -> Item:
        name, text = fields["path"], clean_text(fields["sentence"])
        length = parse_seconds(durations.get(name, ""), 1e-3)
        translation = clean_text(fields["translation"]) if translated else ""
        if not text:
            raise Rejected("empty transcript", f"of {name}", length)
        if translated and not translation:
            raise Rejected("empty translation", f"of {name}", length)
        # The first versions left the suffix out.
        file = name if name.lower().endswith((".mp3", ".wav")) else f"{name}.mp3"
        try:
            path = find_inside(clips, file)
        except Rejected as rejected:
            raise Rejected(rejected.reason, rejected.detail, length) from None
        speaker = fields["client_id"][:SPEAKER_DIGITS]
        clip = Clip(text=text, path=path, translation=translation, speaker=speaker)
        return speech_item(Path(file).stem, split, where, language, clip, length)

    return make_item


def _read_durations(root: Path) -> Mapping[str, str]:
    """Clip -> its length in ms, for the versions that list them."""
    table, needed = root / "clip_durations.tsv", ("clip", "duration[ms]")
    if not table.is_file():
        return {}
    rows = [row[1] for row in read_rows(table, needed) if not isinstance(row, Rejection)]
    return {row["clip"]: row["duration[ms]"] for row in rows}
