"""Axes, numbers and curves of the report's charts, and which metric goes into which."""

import math
import xml.etree.ElementTree as ET

import pytest

from ba_jax.report import charts, curves
from ba_jax.report.charts import Line

NAN = math.nan


def parts(svg: str, tag: str) -> list[ET.Element]:
    return list(ET.fromstring(svg).iter(tag))


def curve_paths(svg: str, style: str) -> list[str]:
    groups = [g for g in parts(svg, "g") if g.get("class") == style]
    return [path.get("d") for g in groups for path in g.iter("path")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.13, 0.87, [0.2, 0.4, 0.6, 0.8]),
        (-3, 3, [-2, 0, 2]),
        (0, 1500, [0, 500, 1000, 1500]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_log_ticks_are_inside_and_few():
    assert charts.log_ticks(0.9, 11) == pytest.approx([1, 2, 5, 10])
    assert charts.log_ticks(1e-4, 1) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    many = charts.log_ticks(1e-12, 1e12)
    assert 3 <= len(many) <= 6 and all(1e-12 <= tick <= 1.1e12 for tick in many)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (-1.25, "−1.25"),
        (12000, "12k"),
        (9999, "9999"),
        (3.4e6, "3.4M"),
        (2e9, "2G"),
        (0.0001, "1e-4"),
        (NAN, "NaN"),
        (math.inf, "∞"),
    ],
)
def test_numbers_are_short(value, text):
    assert charts.number(value) == text


def test_columns_are_aligned():
    assert charts.aligned([1.0, 0.95, None, NAN]) == ["1.000", "0.950", None, "NaN"]
    assert charts.aligned([62.6, 7.125]) == ["62.60", "7.12"]
    assert charts.aligned([3.0, 0.0, 12.0]) == ["3", "0", "12"]
    assert charts.aligned([]) == []


def test_axis_is_logarithmic_only_where_it_helps():
    assert charts.is_logarithmic([1, 20])
    assert not charts.is_logarithmic([1, 19])
    assert not charts.is_logarithmic([0, 100])
    assert not charts.is_logarithmic([])


def test_curve_goes_from_corner_to_corner():
    svg = charts.line_chart([Line("train", ((0, 0.0), (100, 10.0)), "train")], "loss", "nats")
    (path,) = curve_paths(svg, "train")
    first, last = (tuple(map(float, p.split())) for p in path[1:].split("L"))
    assert first[0] < last[0] and first[1] > last[1]  # y grows downwards
    labels = [text.text for text in parts(svg, "text")]
    assert {"nats", "step", "0", "10", "100"} <= set(labels)


def test_curve_breaks_at_values_that_are_not_finite():
    points = ((0, 1.0), (1, 2.0), (2, NAN), (3, math.inf), (4, 3.0), (5, 2.0))
    svg = charts.line_chart([Line("train", points, "train")], "loss", "nats")
    assert len(curve_paths(svg, "train")) == 2
    assert len([p for p in parts(svg, "path") if p.get("class") == "broken"]) == 2
    assert "nan" not in svg.replace("NaN", "") and "inf" not in svg
    assert curves.note([Line("train", points, "train")]) == (
        "train: 2 values not finite, the first at step 2"
    )


def test_curves_without_a_line():
    assert charts.line_chart([], "loss", "nats") == ""
    assert charts.line_chart([Line("train", (), "train")], "loss", "nats") == ""
    one = charts.line_chart([Line("train", ((7, 1.0),), "train")], "loss", "nats")
    assert len(parts(one, "circle")) == 1
    none = charts.line_chart([Line("train", ((7, NAN), (8, NAN)), "train")], "loss", "nats")
    assert len([p for p in parts(none, "path") if p.get("class") == "broken"]) == 2
    flat = charts.line_chart([Line("train", ((0, 0.0), (9, 0.0)), "train")], "loss", "nats")
    assert len(curve_paths(flat, "train")) == 1


def test_text_is_escaped():
    svg = charts.line_chart([Line("a<b", ((0, 1.0), (1, 2.0)), "train", True)], '"<x>&', "<u>")
    assert ET.fromstring(svg).get("aria-label") == '"<x>&'
    assert "<u>" not in svg and "a<b" not in svg


def test_long_curves_keep_their_peaks():
    values = [1.0] * 50_000
    values[31_234] = 99.0
    thinned = charts.thin(tuple(enumerate(values)))
    assert len(thinned) <= 600
    assert (31_234, 99.0) in thinned
    assert list(thinned) == sorted(thinned)


def test_training_and_evaluation_share_a_chart_and_codebooks_a_family():
    points = ((0, 1.0), (1, 2.0))
    names = ["text", "loss", "eval/loss", "eval/only", "audio/0", "audio/1", "learning_rate"]
    names += ["codebook/0/use", "throughput/tokens_per_second", "mel_mae/1"]
    losses, rates = curves.stage_charts({name: points for name in names})
    assert [chart.title for chart in losses] == ["loss", "text", "only", "mel_mae/1", "audio/*"]
    assert losses[0].lines == (("train", "train"), ("evaluation", "evaluation"))
    assert losses[2].lines == (("evaluation", "evaluation"),)
    assert [label for label, _ in losses[-1].lines] == ["0", "1"]
    assert [chart.title for chart in rates] == ["learning_rate", "throughput/tokens_per_second"]


def test_codebooks_have_their_last_finite_values():
    series = {
        "codebook/0/use": ((0, 0.1), (5, 0.9), (6, NAN)),
        "codebook/10/use": ((0, 0.2),),
        "codebook/2/use": (),
        "codebook/0/perplexity": ((5, 30.0),),
        "loss": ((0, 1.0),),
    }
    books = curves.codebooks(series)
    assert books.quantities == ("use", "perplexity")
    assert books.rows == ((0, (0.9, 30.0)), (2, (None, None)), (10, (0.2, None)))
    assert [label for label, _ in books.charts[0].lines] == ["0", "2", "10"]
    assert curves.codebooks({"loss": ((0, 1.0),)}) is None


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("eval/loss", "weighted sum"),
        ("text", "nats a token"),
        ("audio/*", "nats a code"),
        ("mel_refined_l1", "nats (log-mel)"),
        ("throughput/tokens_per_second", "tokens/s"),
        ("codebook/*/perplexity", "codes"),
        ("something_else", "something_else"),
    ],
)
def test_axes_have_units(name, unit):
    assert curves.unit(name) == unit
