"""AISHELL-1: read Mandarin."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ba_jax.corpora.sources.base import Item, Rejected, Rejection, SourceError
from ba_jax.corpora.sources.clips import Clip, ClipSource, reject_unlisted, speech_item
from ba_jax.corpora.sources.listing import (
    clean_text,
    find_recordings,
    list_items,
    read_lines,
    require_file,
    require_folder,
)

_TRANSCRIPT = "transcript/aishell_transcript_v0.8.txt"
_SPLITS = ("train", "dev", "test")


@dataclasses.dataclass(frozen=True)
class Aishell(ClipSource):
    """data_aishell/wav/{train,dev,test}/S0002/BAC009S0002W0122.wav and
    data_aishell/transcript/aishell_transcript_v0.8.txt with lines "BAC009S0002W0122 而 对 楼市",
    whose spaces between words are removed. A few recordings have no transcript: they are counted.

    Attributes:
      folder: data_aishell/, or the folder that contains it.
      splits: a selection of train, dev, test.
    """

    splits: tuple[str, ...] = _SPLITS

    name = "aishell"
    description = "AISHELL-1 (Bu et al., 2017), openslr.org/33."
    licence = "Apache License 2.0"

    def items(self) -> Iterator[Item | Rejection]:
        """List the utterances."""
        root = require_folder(self.folder, "source.folder")
        if (root / "data_aishell").is_dir():
            root = root / "data_aishell"
        table = require_file(root / _TRANSCRIPT, "data_aishell/")
        wav = root / "wav"
        folders = [require_folder(wav / split, "a split of source.splits") for split in self.splits]
        recordings, doubles = find_recordings(folders, ".wav")
        yield from doubles
        unlisted = dict(recordings)
        if not recordings:
            raise SourceError(f"{wav}: no .wav files; unpack wav/S*.tar.gz first")
        has_all_splits = set(self.splits) >= set(_SPLITS)

        def make_item(where: str, line: str) -> Item | None:
            if not line.strip():
                return None
            id, *words = line.split()
            path = recordings.get(id)
            if path is None:
                if has_all_splits:  # else it may belong to another split
                    raise Rejected("missing file", f"no {id}.wav below {wav}")
                return None
            unlisted.pop(id, None)
            text = clean_text("".join(words))
            clip = Clip(text=text, path=str(path), speaker=path.parent.name)
            return speech_item(id, path.relative_to(wav).parts[0], where, "zh", clip)

        yield from list_items(read_lines(table), make_item)
        yield from reject_unlisted(unlisted, f"is not in {table}")
