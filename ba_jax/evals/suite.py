"""The contract of an evaluation: inputs and outputs of each phase of a suite.

    items -> generate -> present -> judge -> score -> figures

`generate` runs the model on an item; `present` turns its output into the judge's input, with
recordings as files; `judge` returns the judge's answer. These three run in batches, and their lines
are saved before the next batch (`ba_jax.evals.runner`). `score` and `figures` are functions of the
saved lines, so a suite is scored again without a model and judged again without generating.

An item that a phase cannot use is a `Failure` with its reason: later phases do not see it, `score`
gets an empty line in its place and counts it as wrong.

A new evaluation is a file in `ba_jax/evals/suites` with a subclass and its `SUITES`, and a line in
`ba_jax/evals/suites/registry.py`.
"""

from __future__ import annotations

from typing import Any

from ba_jax.evals.bench import Bench
from ba_jax.evals.items import EvalItem, Items, Line, Lines, Outputs, Results, make_items


class Suite:
    """An evaluation; subclasses define the questions and the scoring.

    Attributes:
      name: name of its files and prefix of its figures.
      components: components of the model that it uses.
      speaks: it also uses the vocoder, where synthesis is set to use one.
      judged: it has the phases `present` and `judge`.
    """

    name: str = ""
    components: tuple[str, ...] = ()
    speaks: bool = False
    judged: bool = False

    def require(self) -> None:
        """Raise EvalError, before generating, if a package that the suite needs is missing."""

    def items(self, bench: Bench) -> list[EvalItem]:
        """Return the items, the same on every host: by default the dataset's single utterances."""
        return make_items(bench.records.statements)

    def generate(self, bench: Bench, items: Items) -> Results:
        """Run the model on a batch of items."""
        raise NotImplementedError

    def present(self, bench: Bench, items: Items, generated: Lines) -> Results:
        """Make the judge's input of each item; waves are saved as files."""
        raise NotImplementedError

    def judge(self, bench: Bench, items: Items, presented: Lines) -> Results:
        """Return the judge's answers."""
        raise NotImplementedError

    def score(self, bench: Bench, item: EvalItem, outputs: Outputs) -> Line:
        """Score an item, without a model: reference, hypothesis, errors, units, correct, audio.

        An item with a failed phase counts as wrong. Its id and language are added to the row.
        """
        raise NotImplementedError

    def figures(self, bench: Bench, rows: Lines) -> dict[str, Any]:
        """Compute name -> number, or a text that declares how numbers were made, of all rows."""
        raise NotImplementedError
