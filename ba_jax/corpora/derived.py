"""What a source that makes a dataset of another one takes over from it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping

from ba_jax.corpora.sources.listing import SourceError
from ba_jax.data.record import dataset_directory

INFO = "dataset_info.json"


class Derived:
    """A source with another `dataset`, a folder or "embedded"."""

    dataset: str

    @functools.cached_property
    def info(self) -> Mapping:
        """The dataset's own description.

        Raises:
          SourceError: no dataset there.
        """
        path = dataset_directory(self.dataset) / INFO
        try:
            if not self.dataset:
                raise OSError("no source.dataset")
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SourceError(f"{path}: {error}, expected a dataset's {INFO}") from None

    def described(self, change: str) -> str:
        """The dataset's description, and what was done to it."""
        return f"{self.info.get('description', '')}\n{change}".strip()

    @property
    def licence(self) -> str:
        """The dataset's: TFDS writes it to LICENSE, which may have been put there since."""
        path = dataset_directory(self.dataset) / "LICENSE"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        return self.info.get("redistributionInfo", {}).get("license", "")
