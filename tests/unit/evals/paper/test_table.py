"""Orderings compared with fake numbers."""

import pytest

from ba_jax.evals.paper import published
from ba_jax.evals.paper.published import CLAIMS, CODEBOOKS, TABLES, TITLES, Claim
from ba_jax.evals.paper.table import Column, Measurement, Table, check_claim, to_json, to_markdown

CLAIM = Claim("error", ("a", "b", "c"), "less is more", {"a": 1.0})


def table(*values, better="lower"):
    rows = {name: {"error": value} for name, value in zip("abc", values, strict=True)}
    return Table(1, [Column("error", better)], rows)


@pytest.mark.parametrize(
    ("values", "better", "pairs", "holds"),
    [
        ((0.1, 0.2, 0.3), "lower", [True, True], True),
        ((0.1, 0.3, 0.2), "lower", [True, False], False),
        ((0.1, 0.1, 0.2), "lower", [False, True], False),
        ((0.3, 0.2, 0.1), "higher", [True, True], True),
        ((0.1, None, 0.2), "lower", [True], True),
        ((0.1, None, None), "lower", [], None),
        (("?", 0.1, 0.2), "lower", [True], True),
    ],
)
def test_orderings(values, better, pairs, holds):
    cells = [Measurement(v) if isinstance(v, float) else v for v in values]
    result = check_claim(table(*cells, better=better), CLAIM)
    assert [pair["holds"] for pair in result["pairs"]] == pairs and result["holds"] is holds


def test_overlapping_intervals_are_reported():
    cells = (
        Measurement(0.1, (0.0, 0.15)),
        Measurement(0.2, (0.16, 0.3)),
        Measurement(0.25, (0.2, 0.4)),
    )
    result = check_claim(table(*cells), CLAIM)
    assert [pair["clear"] for pair in result["pairs"]] == [True, False]
    assert result["ours"]["a"] == {"value": 0.1, "ci95": [0.0, 0.15]}


def test_cells():
    column = Column("x")
    assert column.show(Measurement(0.123, (0.1, 0.2))) == "12.3 % (10.0 to 20.0)"
    assert column.show(None) == "-" and column.show("40+350") == "40+350"
    assert Column("x", digits=2, share=False).show(Measurement(3.14159)) == "3.14"


def test_pages():
    rows = {
        "8 codebooks": {"recognition WER": Measurement(0.2, (0.1, 0.3))},
        "1 codebook": {"recognition WER": Measurement(0.1, (0.05, 0.2))},
    }
    names = ("recognition WER", "WER, frozen model", "WER of resynthesis", "mel MAE")
    made = Table(1, [Column(name, "lower") for name in names], rows, ["made up"])
    page = to_markdown(made)
    assert page.startswith("## Table 1: Codebooks of the tokenizer\n")
    assert "| 8 codebooks | 20.0 % (10.0 to 30.0) | - | - |" in page
    assert "| no VQ | 3.8 | 2 | - | - |" in page and "| 6 codebooks | 5.5 | 3 | 0.485 |" in page
    assert "8 codebooks 5.3, 6 codebooks 5.5, 4 codebooks 6.3, 1 codebook 26.2" in page
    assert "**does not hold**: 0 of 1 neighbours are in order, not 8 codebooks > 1 codebook" in page
    assert "intervals overlap for 8 codebooks and 1 codebook" in page
    assert page.count("Ours: not measured.") == 3 and page.endswith("- made up\n")
    result = to_json(made)
    assert result["claims"][0]["holds"] is False and result["claims"][1]["holds"] is None
    assert result["paper"]["rows"]["8 codebooks"] == (5.3, 2.7, 0.466, 0.403)
    assert result["rows"]["8 codebooks"]["recognition WER"] == {"value": 0.2, "ci95": [0.1, 0.3]}


def test_every_claim_has_a_source():
    """Numbers have a source; every table has a title; a number is of a row of its ordering."""
    assert set(CLAIMS) == set(TITLES) == set(range(1, 9)) and set(CODEBOOKS) == {1, 4, 6, 8}
    for claims in CLAIMS.values():
        for claim in claims:
            assert len(set(claim.order)) == len(claim.order) >= 2
            assert set(claim.numbers) <= set(claim.order)
            assert claim.source == (published.PAPER if claim.numbers else published.EXPECTED)


def test_published_rows_are_complete():
    assert set(TABLES) == set(TITLES)
    for table in TABLES.values():
        for row in table.rows.values():
            assert len(row) == len(table.columns) and any(number is not None for number in row)
    hours = TABLES[4].rows
    assert sum(n for (n,) in hours.values()) == 2 * hours["all"][0]
