"""Names of tensors under the prefixes that wrappers and training loops add."""

from __future__ import annotations

import collections
import re
from collections.abc import Collection, Iterable, Iterator

import numpy as np

from ba_jax.convert.engine import ConversionError, TensorInfo, TensorSource

# Modules that PyTorch puts around others: data parallel, compiled, sharded, checkpointed.
_WRAPPER = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# Hugging Face's bare models lack it.
_ROOT = "model."


def release_names(
    names: Iterable[str], expected: Collection[str], left_out: tuple[str, ...] = ()
) -> dict[str, str]:
    """Map the names of a file to those of the tables, where a prefix that many share explains them.

    Args:
      names: of the file.
      expected: of the tables.
      left_out: prefixes of other names that are known.

    Returns:
      name -> name of the tables, or the name itself if it is not understood.
    """
    tails = {name.removeprefix(_ROOT): name for name in expected}
    tails |= {name: name for name in expected}
    plain = {n: n if n in expected else _WRAPPER.sub("", n) for n in names}
    votes: collections.Counter[tuple[str, str]] = collections.Counter()
    for name in plain.values():
        tail = next((t for t in _tails(name) if t in tails), None)
        if tail is not None and name not in expected:
            votes[name.removesuffix(tail), tails[tail].removesuffix(tail)] += 1
    most = max(votes.values(), default=0)
    prefixes = [pair for pair, count in votes.items() if 2 * count > most]

    def known(name: str) -> bool:
        return name in expected or name.startswith(left_out)

    def resolve(name: str) -> str:
        # The head of a model whose other names lack `_ROOT` has none either.
        matching = ((len(old), new) for old, new in prefixes if name.startswith(old))
        renamed = (start + name[cut:] for cut, new in matching for start in (new, ""))
        return next(filter(known, (name, *renamed)), name)

    resolved = {name: resolve(bare) for name, bare in plain.items()}
    return {name: new if known(new) else name for name, new in resolved.items()}


def _tails(name: str) -> Iterator[str]:
    """Yield a name without its first 0, 1, 2, ... parts."""
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield name


class RenamedSource:
    """A source under other names.

    Attributes:
      source: the file or folder.
      label: its path.
      tensors: new name -> `TensorInfo`, in the file's order.
      original: new name -> the file's name.

    Raises:
      ConversionError: two tensors with the same new name.
    """

    def __init__(self, source: TensorSource, names: dict[str, str]):
        self.source = source
        self.label = source.label
        self.tensors: dict[str, TensorInfo] = {}
        self.original: dict[str, str] = {}
        twice = []
        for name, info in source.tensors.items():
            new = names[name]
            if new in self.original:
                twice.append(f"{new} as {self.original[new]} and {name}")
            self.tensors[new] = info
            self.original[new] = name
        if twice:
            raise ConversionError(
                f"{self.label}: {len(twice)} duplicate tensors, expected one copy: {twice[0]}"
            )

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.source.read(self.original[name], start, stop)
