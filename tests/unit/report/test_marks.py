"""Words that are marked."""

import pytest

from ba_jax.report.marks import mark_differences


def marked(reference: str, hypothesis: str) -> tuple[list[str], list[str]]:
    both = mark_differences(reference, hypothesis)
    for pieces, text in zip(both, (reference, hypothesis), strict=True):
        assert "".join(piece for piece, _ in pieces) == text
    return tuple([piece for piece, differs in pieces if differs] for pieces in both)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("The river runs.", "the river runs", ([], [])),
        ("the river runs", "the rover runs", (["river"], ["rover"])),
        ("the old river runs", "the runs", (["old river"], [])),
        ("蜘蛛有八条腿。", "知了有八条腿", (["蜘蛛"], ["知了"])),
        ("我有iPhone手机", "我有iPad手机", (["iPhone"], ["iPad"])),
        ("", "anything at all", ([], ["anything at all"])),
        ("gone", "", (["gone"], [])),
        ("<b>&", "<b>&", ([], [])),
    ],
)
def test_marked_words(reference, hypothesis, expected):
    assert marked(reference, hypothesis) == expected
