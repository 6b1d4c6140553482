"""Curves of the report's charts, and the metrics in each chart."""

import base64
import math
import xml.etree.ElementTree as ET

import pytest

from ba_jax.report import charts
from ba_jax.report.charts import Curve

NAN = math.nan
SVG = "{http://www.w3.org/2000/svg}"


def draw(*curves: Curve, unit: str = "nats") -> ET.Element:
    uri = charts.draw_chart(curves, unit)
    assert uri.startswith("data:image/svg+xml;base64,")
    return ET.fromstring(base64.b64decode(uri.split(",")[1]))


def texts(svg: ET.Element) -> list[str]:
    return ["".join(element.itertext()).strip() for element in svg.iter(f"{SVG}text")]


def test_axis_is_logarithmic_for_wide_ranges_only():
    assert charts.is_logarithmic([1, 20])
    assert not charts.is_logarithmic([1, 19])
    assert not charts.is_logarithmic([0, 100])
    assert not charts.is_logarithmic([])


def test_chart_has_labels_and_units():
    svg = draw(Curve("train", ((0, 1.0), (100, 10.0))), Curve("evaluation", ((100, 9.0),)))
    assert {"nats", "step", "train", "evaluation", "100"} <= set(texts(svg))
    assert "nats (log)" in texts(draw(Curve("train", ((0, 1.0), (100, 100.0)))))


def test_values_that_are_not_finite_are_marked():
    points = ((0, 1.0), (1, 2.0), (2, NAN), (3, math.inf), (4, 3.0), (5, 2.0))
    broken = ET.tostring(draw(Curve("train", points)), encoding="unicode")
    whole = ET.tostring(draw(Curve("train", points[:2])), encoding="unicode")
    assert charts._RED in broken and charts._RED not in whole
    assert charts.note([Curve("train", points)]) == (
        "train: 2 values not finite, the first at step 2"
    )


def test_charts_of_few_points():
    assert charts.draw_chart([], "nats") == ""
    assert charts.draw_chart([Curve("train", ())], "nats") == ""
    for points in (((7, 1.0),), ((7, NAN), (8, NAN)), ((0, 0.0), (9, 0.0))):
        draw(Curve("train", points))


def test_text_is_escaped_and_equal_charts_are_equal():
    curve = Curve("a<b", ((0, 1.0), (1, 2.0)), True)
    svg = draw(curve, Curve("c", ((0, 1.0),)), unit="$<u$_{")
    assert {"$<u$_{", "a<b"} <= set(texts(svg))
    assert charts.draw_chart([curve], "x") == charts.draw_chart([curve], "x")


def test_long_curves_stay_small():
    values = [1.0 + (i % 7) / 10 for i in range(50_000)]
    values[31_234] = 99.0
    assert len(charts.draw_chart([Curve("train", tuple(enumerate(values)))], "nats")) < 200_000


def test_training_and_evaluation_share_a_chart_and_codebooks_a_family():
    points = ((0, 1.0), (1, 2.0))
    names = ["text", "loss", "eval/loss", "eval/only", "audio/0", "audio/1", "learning_rate"]
    names += ["codebook/0/use", "throughput/tokens_per_second", "mel_mae/1"]
    losses, rates = charts.stage_charts({name: points for name in names})
    assert [chart.title for chart in losses] == ["loss", "text", "only", "mel_mae/1", "audio/*"]
    assert losses[0].labels == ("train", "evaluation")
    assert losses[2].labels == ("evaluation",)
    assert losses[-1].labels == ("0", "1")
    assert [chart.title for chart in rates] == ["learning_rate", "throughput/tokens_per_second"]


def test_codebooks_have_their_last_finite_values():
    series = {
        "codebook/0/use": ((0, 0.1), (5, 0.9), (6, NAN)),
        "codebook/10/use": ((0, 0.2),),
        "codebook/2/use": (),
        "codebook/0/perplexity": ((5, 30.0),),
        "loss": ((0, 1.0),),
    }
    codebooks = charts.codebook_charts(series)
    assert codebooks.quantities == ("use", "perplexity")
    assert codebooks.rows == ((0, (0.9, 30.0)), (2, (None, None)), (10, (0.2, None)))
    assert codebooks.charts[0].labels == ("0", "2", "10")
    assert charts.codebook_charts({"loss": ((0, 1.0),)}) is None


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("eval/loss", "weighted sum"),
        ("text", "nats per token"),
        ("audio/*", "nats per code"),
        ("mel_l1", "nats (log-mel)"),
        ("throughput/tokens_per_second", "tokens/s"),
        ("codebook/*/perplexity", "codes"),
        ("something_else", "something_else"),
    ],
)
def test_axes_have_units(name, unit):
    assert charts.unit(name) == unit
