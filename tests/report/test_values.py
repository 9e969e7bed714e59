from __future__ import annotations

import math

from cockpit_lite.report.values import last_values, layer_spans
from tests.report.cases import record


def test_last_value_says_how_it_was_got(make_run):
    rows = {row.name: row for row in last_values(make_run())}
    assert (rows["loss"].step, rows["loss"].value, rows["loss"].how) == (39, 0.0575, "")
    assert rows["hessian_trace"].how == "estimated, standard error 0.25"
    assert "grad_norm/0.weight" not in rows


def test_layers_are_summed_up_in_one_row(make_run):
    run = make_run(layers=("a", "b", "c", "d"))
    record(run, "grad_norm/d", [math.nan], steps=[39])
    (row,) = layer_spans(run)
    assert (row.name, row.layers, row.not_finite) == ("grad_norm", 4, 1)
    assert (row.smallest_layer, row.largest_layer) == ("a", "c")
    assert math.isclose(row.median, 0.2)


def test_layers_that_are_all_broken_have_no_place(make_run):
    run = make_run(layers=("a",))
    record(run, "grad_norm/a", [math.inf], steps=[39])
    (row,) = layer_spans(run)
    assert (row.smallest_layer, row.not_finite) == ("", 1)
    assert math.isnan(row.largest)


def test_arrays_are_left_to_the_gauges(make_run):
    run = make_run(steps=2)
    record(run, "grad_hist_1d", [[1.0, 2.0], [1.0, 2.0]])
    record(run, "ragged", [[1.0, 2.0], [1.0]])
    assert {"grad_hist_1d", "ragged"}.isdisjoint(row.name for row in last_values(run))
