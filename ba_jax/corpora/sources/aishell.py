"""AISHELL-1: read Mandarin."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ba_jax.corpora.clips import Clip, ClipSource, sorted_files, speech_item
from ba_jax.corpora.sources.base import Item, Rejection
from ba_jax.corpora.sources.listing import SourceError, read_lines, require_file, require_folder

_TRANSCRIPT = "transcript/aishell_transcript_v0.8.txt"


@dataclasses.dataclass(frozen=True)
class Aishell(ClipSource):
    """data_aishell/wav/{train,dev,test}/S0002/BAC009S0002W0122.wav and
    data_aishell/transcript/aishell_transcript_v0.8.txt with lines "BAC009S0002W0122 而 对 楼市",
    whose spaces between words are taken out. Some recordings have no transcript: they are counted.

    Attributes:
      folder: data_aishell/, or the one that holds it.
      splits: some of train, dev, test.
    """

    splits: tuple[str, ...] = ("train", "dev", "test")

    name = "aishell"
    description = "AISHELL-1 (Bu et al., 2017), openslr.org/33."
    licence = "Apache License 2.0"

    def items(self) -> Iterator[Item | Rejection]:
        """As `Source.items`."""
        root = require_folder(self.folder, "source.folder")
        if (root / "data_aishell").is_dir():
            root = root / "data_aishell"
        table = require_file(root / _TRANSCRIPT, "data_aishell/")
        audio, splits = {}, {}
        for split in self.splits:
            part = require_folder(str(root / "wav" / split), "a split of source.splits")
            for path in sorted_files([part], "*.wav"):
                audio[path.stem], splits[path.stem] = path, split
        if not audio:
            raise SourceError(f"{root / 'wav'}: no .wav files; unpack wav/S*.tar.gz first")
        all_splits = set(self.splits) >= {"train", "dev", "test"}
        for line in read_lines(table):
            if isinstance(line, Rejection):
                yield line
                continue
            where, text = line
            if not text.strip():
                continue
            id, *words = text.split()
            path = audio.pop(id, None)
            if path is None:
                # Of the other splits, if these are not all.
                if all_splits:
                    yield Rejection(where, "missing file", f"no {id}.wav below {root / 'wav'}")
                continue
            if not words:
                yield Rejection(where, "empty transcript", f"of {id}")
                continue
            clip = Clip(text="".join(words), path=str(path), speaker=path.parent.name)
            yield speech_item(id, splits[id], where, "zh", clip)
        for id, path in audio.items():
            yield Rejection(str(path), "no transcript", f"{id} is not in {table}")
