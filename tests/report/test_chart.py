from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from cockpit_lite.report.chart import charts, story_chart
from tests.report.cases import alert, record


def drawn(run, values, step=1, steps=None):
    record(run, "reading", values, steps)
    (chart,) = charts(run, ["reading"], alert(step=step))
    return chart, ElementTree.fromstring(chart.svg)


def points(svg):
    return [[tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in svg.findall("polyline")]


def test_a_rising_curve_rises_and_the_finding_is_marked(make_run):
    chart, svg = drawn(make_run(), [0.0, 1.0, 2.0], step=1)
    ((first, middle, last),) = points(svg)
    assert first[1] > middle[1] > last[1]
    assert float(svg.find("line").get("x1")) == pytest.approx(middle[0])
    assert (chart.low, chart.high, chart.scale, chart.steps) == ("0", "2", "linear", (0, 2))
    assert svg.get("aria-label").startswith("reading over steps 0 to 2: from 0 to 2, between 0 and 2")


def test_decades_are_drawn_on_a_log_scale(make_run):
    chart, svg = drawn(make_run(), [1.0, 10.0, 100.0])
    ((first, middle, last),) = points(svg)
    assert chart.scale == "log"
    assert middle[1] == pytest.approx((first[1] + last[1]) / 2)


def test_values_that_are_not_finite_are_shown_and_interrupt_the_curve(make_run):
    _, svg = drawn(make_run(), [1.0, 2.0, math.nan, 3.0, math.inf])
    assert [len(line) for line in points(svg)] == [2, 2]
    assert len(svg.findall("path")) == 2
    assert "2 values not finite" in svg.get("aria-label")


def test_a_long_run_is_thinned_but_keeps_its_spikes(make_run):
    values = np.zeros(100_000)
    values[12_345] = 7.0
    chart, svg = drawn(make_run(), values)
    assert len(chart.svg) < 10_000
    assert min(y for line in points(svg) for _, y in line) == 10.0


@pytest.mark.parametrize("values", [[1e308, -1e308], [5.0, 5.0], [0.0, 1e-320]])
def test_extreme_and_constant_values_stay_on_the_picture(make_run, values):
    _, svg = drawn(make_run(), values)
    assert all(0 <= y <= 84 for line in points(svg) for _, y in line)


def test_what_cannot_be_drawn_is_left_out(make_run):
    run = make_run()
    record(run, "never_finite", [math.nan, math.nan])
    record(run, "array", [[1.0], [2.0]])
    record(run, "once", [1.0])
    assert charts(run, ["never_finite", "array", "once", "missing"], alert()) == []


def test_names_are_escaped(make_run):
    run = make_run()
    record(run, '"><script>', [0.0, 1.0])
    (chart,) = charts(run, ['"><script>'], alert())
    assert not re.search(r"<script", chart.svg)


@pytest.mark.parametrize("place", ["0", "0.weight"])  # a module or a parameter
def test_a_reading_by_layer_is_shown_where_the_finding_was_made(make_run, place):
    run = make_run()
    assert [chart.name for chart in charts(run, ["grad_norm"], alert(where=(place,)))] == ["grad_norm/0.weight", "grad_norm"]
    assert [chart.name for chart in charts(run, ["grad_norm"], alert(where=("another",)))] == ["grad_norm"]


def test_the_story_chart_marks_where_phases_begin(make_run):
    chart = story_chart(make_run(), [10, 20])
    svg = ElementTree.fromstring(chart.svg)
    places = [float(line.get("x1")) for line in svg.findall("line")]
    assert places == pytest.approx([4 + 992 * step / 39 for step in (10, 20)], abs=0.1)
    assert "a new phase begins at step 10 and 20" in svg.get("aria-label")
    assert story_chart(make_run(steps=0, folder="empty"), []) is None
