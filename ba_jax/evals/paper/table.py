"""A table of ours beside the paper's orderings: what holds, as Markdown and JSON."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ba_jax.evals.paper.published import CLAIMS, TITLES, Claim


class Measured(NamedTuple):
    """A number, and its 95 % interval where it has one."""

    value: float
    interval: Sequence[float] | None = None


Cell = Measured | str | None
"""What a row says of a measure; None: not measured."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A measure.

    Attributes:
      name: of it.
      better: "lower", "higher", or "" for what is no matter of good and bad.
      digits: shown after the point.
      share: from 0 to 1, shown in percent.
    """

    name: str
    better: str = "higher"
    digits: int = 1
    share: bool = True

    def show(self, cell: Cell) -> str:
        """As text; what was not measured as a dash."""
        if not isinstance(cell, Measured):
            return cell or "-"
        shown = self._number(cell.value) + " %" * self.share
        if cell.interval is not None:
            low, high = map(self._number, cell.interval)
            shown += f" ({low} to {high})"
        return shown

    def _number(self, value: float) -> str:
        return f"{100 * value if self.share else value:.{self.digits}f}"


@dataclasses.dataclass
class Table:
    """Our numbers.

    Attributes:
      number: of the paper's table.
      columns: the measures.
      rows: row -> measure -> its cell.
      notes: how they were made, and what they do not say.
    """

    number: int
    columns: Sequence[Column]
    rows: Mapping[str, Mapping[str, Cell]]
    notes: Sequence[str] = ()

    def column(self, name: str) -> Column:
        """A measure by name.

        Raises:
          KeyError: there is none.
        """
        return {column.name: column for column in self.columns}[name]


def verdict(table: Table, claim: Claim) -> dict[str, Any]:
    """How our rows stand to an ordering: which neighbours are in order, and whether all are.

    A tie is not in order. A pair is `clear` if the 95 % intervals do not overlap, which is more
    than a difference needs where both rows have the same items. Rows that were not measured are
    left out; with fewer than two left `holds` is None.
    """
    lower = table.column(claim.measure).better == "lower"
    known = []
    for row in claim.order:
        cell = table.rows.get(row, {}).get(claim.measure)
        if isinstance(cell, Measured):
            known.append((row, cell))
    pairs = []
    for (better, a), (worse, b) in itertools.pairwise(known):
        low, high = (a, b) if lower else (b, a)
        clear = None
        if low.interval is not None and high.interval is not None:
            clear = low.interval[1] < high.interval[0] or high.interval[1] < low.interval[0]
        holds = low.value < high.value
        pairs.append({"better": better, "worse": worse, "holds": holds, "clear": clear})
    return {
        "measure": claim.measure,
        "paper": claim.says,
        "paper_numbers": dict(claim.numbers),
        "source": claim.source,
        "order": list(claim.order),
        "ours": {row: _plain(cell) for row, cell in known},
        "pairs": pairs,
        "holds": all(pair["holds"] for pair in pairs) if pairs else None,
    }


def _plain(cell: Cell) -> Any:
    if not isinstance(cell, Measured):
        return cell
    return {"value": cell.value, "ci95": cell.interval and list(cell.interval)}


def as_json(table: Table) -> dict[str, Any]:
    """All of it."""
    return {
        "table": table.number,
        "title": TITLES[table.number],
        "rows": {
            row: {name: _plain(cell) for name, cell in cells.items()}
            for row, cells in table.rows.items()
        },
        "claims": [verdict(table, claim) for claim in CLAIMS[table.number]],
        "notes": list(table.notes),
    }


def as_markdown(table: Table) -> str:
    """Our rows (with 95 % intervals), then each ordering of the paper's with ours beside it."""
    found = [f"## Table {table.number}: {TITLES[table.number]}", ""]
    found.append("| | " + " | ".join(column.name for column in table.columns) + " |")
    found.append("| --- |" + " --- |" * len(table.columns))
    for row, values in table.rows.items():
        shown = [column.show(values.get(column.name)) for column in table.columns]
        found.append(f"| {row} | " + " | ".join(shown) + " |")
    found.append("")
    for claim in CLAIMS[table.number]:
        found += [_sentence(table, claim), ""]
    found += [f"- {note}" for note in table.notes]
    return "\n".join(found).rstrip() + "\n"


def _sentence(table: Table, claim: Claim) -> str:
    found, column = verdict(table, claim), table.column(claim.measure)
    numbers = ", ".join(f"{row} {value:g}" for row, value in claim.numbers.items())
    said = f"**{claim.measure}** ({column.better} is better). "
    said += f"Paper: {' > '.join(claim.order)} ({claim.says}"
    said += f": {numbers}). " if numbers else "). "
    said += f"Source: {claim.source}. "
    if found["holds"] is None:
        return said + "Ours: not measured."
    ours = [f"{row} {column.show(table.rows[row][claim.measure])}" for row in found["ours"]]
    said += f"Ours: {', '.join(ours)}. "
    if found["holds"]:
        said += "The ordering **holds**"
    else:
        wrong = [f"{p['better']} > {p['worse']}" for p in found["pairs"] if not p["holds"]]
        right = len(found["pairs"]) - len(wrong)
        said += (
            f"The ordering **does not hold**: {right} of {len(found['pairs'])} neighbours are in "
            f"order, not {', '.join(wrong)}"
        )
    unclear = [f"{p['better']} and {p['worse']}" for p in found["pairs"] if p["clear"] is False]
    if unclear:
        said += f"; the 95 % intervals overlap for {', '.join(unclear)}"
    return said + "."
