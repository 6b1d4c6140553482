"""Tables of tests/data/scores: a pair of texts, an answer or a reply, and what it scores."""

import json
import pathlib

_FOLDER = pathlib.Path(__file__).resolve().parents[2] / "data" / "scores"


def read_cases(name):
    """Read the rows of a table."""
    return json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
