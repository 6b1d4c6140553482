"""A table of our numbers with verdicts on the paper's orderings, as Markdown and JSON."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ba_jax.evals.paper.published import CLAIMS, TABLES, TITLES, Claim, PublishedTable


class Measurement(NamedTuple):
    """A number, with its 95 % interval if it has one."""

    value: float
    interval: Sequence[float] | None = None


Cell = Measurement | str | None
"""A row's value of a measure; None: not measured."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A measure.

    Attributes:
      better: "lower", "higher", or "" for neither.
      digits: digits after the point.
      share: shown in percent, from a value between 0 and 1.
    """

    name: str
    better: str = "higher"
    digits: int = 1
    share: bool = True

    def show(self, cell: Cell) -> str:
        """Format a cell; a dash if it was not measured."""
        if not isinstance(cell, Measurement):
            return cell or "-"
        shown = self._format_number(cell.value) + " %" * self.share
        if cell.interval is not None:
            low, high = map(self._format_number, cell.interval)
            shown += f" ({low} to {high})"
        return shown

    def _format_number(self, value: float) -> str:
        return f"{100 * value if self.share else value:.{self.digits}f}"


@dataclasses.dataclass
class Table:
    """Our numbers for a table of the paper.

    Attributes:
      number: the table's in the paper; 0: it has none.
      rows: row -> measure -> cell.
      notes: conditions and limits of the numbers.
    """

    number: int
    columns: Sequence[Column]
    rows: Mapping[str, Mapping[str, Cell]]
    notes: Sequence[str] = ()

    def column(self, name: str) -> Column:
        """Return a measure by name."""
        return {column.name: column for column in self.columns}[name]


def check_claim(table: Table, claim: Claim) -> dict[str, Any]:
    """Compare our rows with an ordering: each pair of neighbours, and whether all are in order.

    A tie is not in order. A pair is `clear` if the 95 % intervals do not overlap, a stricter test
    than necessary for two rows with the same items. Rows that were not measured are left out;
    `holds` is None for fewer than two rows.
    """
    lower = table.column(claim.measure).better == "lower"
    measured = []
    for row in claim.order:
        cell = table.rows.get(row, {}).get(claim.measure)
        if isinstance(cell, Measurement):
            measured.append((row, cell))
    pairs = []
    for (better, a), (worse, b) in itertools.pairwise(measured):
        low, high = (a, b) if lower else (b, a)
        clear = None
        if low.interval is not None and high.interval is not None:
            clear = low.interval[1] < high.interval[0] or high.interval[1] < low.interval[0]
        pair = {"better": better, "worse": worse, "holds": low.value < high.value, "clear": clear}
        pairs.append(pair)
    return {
        "measure": claim.measure,
        "paper": claim.says,
        "paper_numbers": dict(claim.numbers),
        "source": claim.source,
        "order": list(claim.order),
        "ours": {row: _to_plain(cell) for row, cell in measured},
        "pairs": pairs,
        "holds": all(pair["holds"] for pair in pairs) if pairs else None,
    }


def _to_plain(cell: Cell) -> Any:
    if not isinstance(cell, Measurement):
        return cell
    return {"value": cell.value, "ci95": cell.interval and list(cell.interval)}


def to_json(table: Table) -> dict[str, Any]:
    """Return the table, with the checked claims, as JSON values."""
    rows = {
        row: {name: _to_plain(cell) for name, cell in cells.items()}
        for row, cells in table.rows.items()
    }
    return {
        "table": table.number,
        "title": TITLES[table.number],
        "rows": rows,
        "paper": dataclasses.asdict(TABLES[table.number]),
        "claims": [check_claim(table, claim) for claim in CLAIMS[table.number]],
        "notes": list(table.notes),
    }


def to_markdown(table: Table) -> str:
    """Format a table of the paper, see `to_page`."""
    title = f"Table {table.number}: {TITLES[table.number]}"
    return to_page(title, table, CLAIMS[table.number], TABLES[table.number])


def to_page(
    title: str, table: Table, claims: Sequence[Claim], published: PublishedTable | None = None
) -> str:
    """Format our rows (with 95 % intervals), the paper's, and each of its orderings beside ours."""
    ours = {
        row: [column.show(values.get(column.name)) for column in table.columns]
        for row, values in table.rows.items()
    }
    lines = [f"## {title}", "", *_lines([column.name for column in table.columns], ours)]
    if published:
        numbers = {
            row: ["-" if number is None else f"{number:g}" for number in values]
            for row, values in published.rows.items()
        }
        lines += ["The paper's:", "", *_lines(published.columns, numbers)]
    for claim in claims:
        lines += [_describe(table, claim), ""]
    lines += [f"- {note}" for note in table.notes]
    return "\n".join(lines).rstrip() + "\n"


def _lines(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines of a table, and an empty one."""
    head = ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    return [*head, *(f"| {row} | " + " | ".join(cells) + " |" for row, cells in rows.items()), ""]


def _describe(table: Table, claim: Claim) -> str:
    """Describe a claim and our numbers in a paragraph."""
    result, column = check_claim(table, claim), table.column(claim.measure)
    numbers = ", ".join(f"{row} {value:g}" for row, value in claim.numbers.items())
    text = f"**{claim.measure}** ({column.better} is better). "
    text += f"Paper: {' > '.join(claim.order)} ({claim.says}"
    text += f": {numbers}). " if numbers else "). "
    text += f"Source: {claim.source}. "
    if result["holds"] is None:
        return text + "Ours: not measured."
    ours = [f"{row} {column.show(table.rows[row][claim.measure])}" for row in result["ours"]]
    text += f"Ours: {', '.join(ours)}. "
    pairs = result["pairs"]
    if result["holds"]:
        text += "The ordering **holds**"
    else:
        wrong = [f"{p['better']} > {p['worse']}" for p in pairs if not p["holds"]]
        text += (
            f"The ordering **does not hold**: {len(pairs) - len(wrong)} of {len(pairs)} neighbours "
            f"are in order, not {', '.join(wrong)}"
        )
    unclear = [f"{p['better']} and {p['worse']}" for p in pairs if p["clear"] is False]
    if unclear:
        text += f"; the 95 % intervals overlap for {', '.join(unclear)}"
    return text + "."
