from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cockpit_lite.alert import Alert
from cockpit_lite.compare import compare_runs
from cockpit_lite.compare import html as compare_html
from cockpit_lite.compare import model as compare_model
from cockpit_lite.compare.by_layer import common_scale, largest_change, layerwise_names
from cockpit_lite.compare.overlay import overlay, stretches
from cockpit_lite.errors import NotARunError
from cockpit_lite.plots.layers import layer_table
from cockpit_lite.report.model import build_report
from cockpit_lite.run import load_run
from cockpit_lite.run_log import RunWriter
from tests.report.cases import RULES, alert
from tests.report.test_html import HOSTILE, Page
from tests.report.test_schema import faults

SETTINGS = {"model": "Net", "optimizer": [{"class": "SGD", "lr": 0.1}], "seed": 0, "versions": {"torch": "2.15.0"}}


@pytest.fixture(autouse=True)
def _cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_model, "build_report", lambda run: build_report(run, RULES))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Write a run: ``loss`` of ``level`` / (step + 1), the gradient norm beside it; ``info`` goes over the settings."""

    def write(
        name: str, *alerts: Alert, level: float = 1.0, steps: int = 20, info: dict | None = None, without: tuple[str, ...] = ()
    ) -> Path:
        writer = RunWriter(tmp_path / name, {**SETTINGS, "created": name, "pid": hash(name), **(info or {})})
        for step in range(steps):
            values = {"loss": level / (step + 1), "grad_norm": 2.0 * level, "gradient_noise_scale": 8.0, f"only_{name[:3]}": 1.0}
            writer.step(step, {key: value for key, value in values.items() if key not in without})
        for one in alerts:
            writer.alert(one.to_dict())
        writer.close(status="completed", steps=steps, cost={"share": 0.04, "instruments": {"loss": 0.1}})
        return writer.folder

    return write


@pytest.fixture
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_html, "draw_overlays", lambda comparison: compare_html.Overlays(problem="left out by the test"))


def test_findings_come_go_and_stay(make):
    noise = alert("CL902", "noise-dominates", "warning", 3)
    before, after = make("before", alert(), noise), make("after", noise, alert("CL999", "of-old", "note", 1))
    comparison = compare_runs([before, after])
    assert {row.name: row.change for row in comparison.findings} == {
        "loss-rises": "went",
        "noise-dominates": "stayed",
        "of-old": "differs",  # the first run could not look for it
    }
    assert comparison.tone == "clean"
    back = compare_runs([after, before])
    assert {row.name: row.change for row in back.findings}["loss-rises"] == "appeared"
    assert back.tone == "error"
    assert back.summary == (
        "Appeared: loss-rises. In some runs only, or not known: of-old. 1 finding stayed. No setting differs between 2 runs."
    )


def test_a_finding_that_could_not_be_looked_for_has_not_gone(make):
    before, after = (
        make("before", alert("CL902", "noise-dominates", "warning", 3)),
        make("after", without=("gradient_noise_scale",)),
    )
    (row,) = compare_runs([before, after]).findings
    assert row.change == "differs"
    assert row.runs[1].text == "not checked: gradient_noise_scale was not measured: its instrument was not switched on"
    (row,) = compare_runs([before, after, make("third")]).findings
    assert row.change == "went"  # of those that could look


def test_settings_that_differ_are_named_and_what_merely_happened_is_none(make):
    first = make("first", info={"schedule": "<function often at 0x7fe6>", "instruments": ["loss", "alpha"]})
    other = {**SETTINGS, "optimizer": [{"class": "SGD", "lr": 0.2}], "seed": 1, "schedule": "<function often at 0x1234>"}
    second = make("second", info={**other, "instruments": ["loss", "gsnr"], "loss_fn": "MSELoss"})
    comparison = compare_runs([first, second])
    assert {row.name: row.values for row in comparison.settings} == {
        "optimizer.lr": ("0.1", "0.2"),
        "seed": ("0", "1"),
        "instruments": ("1 shared, and alpha", "1 shared, and gsnr"),
        "loss_fn": ("not set", "MSELoss"),
    }
    assert comparison.same_settings == 4  # model, optimizer.class, versions.torch, schedule
    assert comparison.summary.endswith("4 settings differ between 2 runs.")


def test_many_differing_entries_of_one_kind_are_one_row(make):
    shapes = {f"blocks.{index}.weight": [index + 1] for index in range(200)}
    (row,) = compare_runs([make("small"), make("large", info={"shapes": shapes})]).settings
    assert row.name == "shapes (200 entries)"
    assert row.values == ("not set", "200, such as shapes.blocks.0.weight: 1")


def test_shared_readings_and_how_they_changed(make):
    comparison = compare_runs([make("first"), make("second", level=3.0), make("third", level=0.5)])
    assert [reading.name for reading in comparison.readings] == ["loss", "grad_norm", "gradient_noise_scale"]
    loss, norm, noise = comparison.readings
    assert loss.last == pytest.approx([level * np.median(1 / np.arange(11, 21)) for level in (1.0, 3.0, 0.5)])
    assert [loss.change(run) for run in range(3)] == ["", "3 times", "2 times less"]
    assert noise.constant
    assert not norm.constant


def test_a_reading_that_broke_is_not_called_by_its_last_good_value(make):
    writer = RunWriter(make("x").parent / "broken", SETTINGS)
    for step in range(20):
        writer.step(step, {"loss": 1.0 if step < 19 else math.nan})
    writer.close(status="completed")
    comparison = compare_runs([make("fine"), writer.folder])
    assert math.isnan(comparison.readings[0].last[1])
    assert comparison.to_dict()["readings"]["loss"][1] == "NaN"


def test_runs_that_cannot_be_read_are_left_out_by_name(make, tmp_path):
    first, second = make("first"), make("second")
    newer = make("newer")
    info = json.loads((newer / "run.json").read_text())
    (newer / "run.json").write_text(json.dumps({**info, "schema": 99}))
    (make("torn") / "run.json").write_text("{")
    folders = [tmp_path / "missing", first, newer, tmp_path / "torn", second, first]
    comparison = compare_runs(folders)
    assert comparison.names == ("first", "second")
    assert [one.folder for one in comparison.left_out] == [str(tmp_path / name) for name in ("missing", "newer", "torn", "first")]
    for one, part in zip(comparison.left_out, ("is not a folder", "schema 99", "cannot be read", "given twice"), strict=True):
        assert part in one.reason
    with pytest.raises(NotARunError, match=r"not two runs to compare.*missing is not a folder.*schema 99"):
        compare_runs([tmp_path / "missing", first, newer])


def test_names_tell_runs_of_the_same_folder_name_apart(make, tmp_path):
    comparison = compare_runs([make("one/run"), make("two/run")])
    assert comparison.names == ("one/run", "two/run")


def test_the_page_says_it_all_in_order(make):
    page = Page(compare_runs([make("before", alert()), make("after", level=3.0, info={"seed": 7})]).to_html())
    text = " ".join(" ".join(page.text).split())
    in_order = [
        "Went away: loss-rises.",
        "Loss at the end: A 0.06458, B 0.1938 (3 times).",
        "1 error in 20 steps",
        "loss-rises CL901 went",
        "seed 0 7",
        "Medians of the last ten",
        "loss 0.06458 0.1938 3 times",
    ]
    places = [text.find(part) for part in in_order]
    assert -1 not in places, in_order[places.index(-1)]
    assert places == sorted(places)
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert labels[0] == "Loss: at the end: A 0.0646, B 0.194"
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert all(link["href"].removeprefix("#") in identifiers for link in page.all("a"))


def test_hostile_names_stay_text(make):
    bad = alert(name=HOSTILE, cause=HOSTILE)
    info = {"model": HOSTILE, HOSTILE: HOSTILE}
    comparison = compare_runs([make("first", bad, info=info), make("second")])
    page = Page(comparison.to_html())
    assert page.all("script") == page.all("img") == []
    assert "60481729" not in "".join(page.text)
    console = Console(file=io.StringIO(), width=200)
    comparison.print(console)
    assert "\x1b" not in console.file.getvalue()


@pytest.mark.usefixtures("_undrawn")
@pytest.mark.parametrize("steps", [0, 1])
def test_runs_without_readings_are_compared_by_their_settings(make, steps):
    page = Page(compare_runs([make("long"), make("short", steps=steps, info={"seed": 3})]).to_html())
    text = " ".join(" ".join(page.text).split())
    assert "seed differs (0, 3) between 2 runs" in text
    if not steps:
        assert "The runs share no reading." in text


def test_the_terminal_names_runs_findings_settings_and_values(make):
    console = Console(file=io.StringIO(), width=160)
    compare_runs([make("before", alert()), make("after", level=3.0, info={"seed": 7})]).print(console)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "loss-rises went error at step 12 not there" in lines
    assert "seed 0 7" in lines
    assert "Loss at the end: A 0.06458, B 0.1938 (3 times)." in lines
    assert "loss 0.06458 0.1938 (3 times)" in lines
    assert any(line.startswith("A before 20 completed 4 % 1 error in 20 steps.") for line in lines)


def test_a_long_series_is_its_median_in_the_band_of_its_scatter():
    random = np.random.default_rng(0)
    steps, values = np.arange(6000), random.standard_normal(6000)
    values[3000:3200] = np.nan
    middle, low, median, high = stretches(steps, values)
    assert len(middle) == 60
    assert (middle[0], middle[-1]) == (0, 5999)
    assert np.isnan(median).sum() == 2
    for index in (0, 17, 59):
        part = values[100 * index : 100 * (index + 1)]
        assert (low[index], median[index], high[index]) == pytest.approx(np.quantile(part, [0.1, 0.5, 0.9]))
    short_steps, short_values = np.arange(100), np.arange(100.0)
    assert stretches(short_steps, short_values)[2] is short_values


def test_values_that_are_not_finite_are_marked_in_a_long_run(make, tmp_path):
    writer = RunWriter(tmp_path / "broken", SETTINGS)
    writer.block(list(range(1000)), {"loss": [math.nan if step == 500 else 1.0 + step % 3 for step in range(1000)]})
    writer.close(status="completed")
    comparison = compare_runs([make("fine"), writer.folder])
    assert "NaN or Inf" in overlay(comparison.runs, comparison.labels, comparison.readings[0], "key")


def test_the_published_schema_tells_of_all_that_is_written(make):
    schema = json.loads((Path(__file__).parents[2] / "docs" / "comparison.schema.json").read_text(encoding="utf-8"))
    noise = alert("CL902", "noise-dominates", "warning", 3)
    runs = [make("one", alert(), noise), make("two", noise, level=math.nan), make("six", steps=0, info={"seed": "<b>"})]
    (make("torn") / "run.json").write_text("{")
    written = json.loads(compare_runs([*runs, runs[0].parent / "torn"]).to_json())
    assert faults(written, schema) == []
    assert written["left_out"] and written["findings"] and written["settings"]
    assert written["readings"]["loss"][1:] == ["NaN", None]
    assert faults({**written, "score": 7}, schema) == ["$: score is not in the schema"]
    assert faults({**written, "readings": {"loss": ["nan", 1.0]}}, schema) != []


def layered(folder: Path, scale: float, names: tuple[str, ...], steps: int = 12, worst: float = 1.0) -> Path:
    writer = RunWriter(folder, {"model": "Net"})
    for step in range(steps):
        values = {f"update_ratio/{name}": scale * (1 + index) for index, name in enumerate(names)}
        values[f"update_ratio/{names[-1]}"] *= worst
        writer.step(step, {"loss": 1.0 / (1 + step), **values, "alone/0": 1.0})
    writer.close(status="completed")
    return writer.folder


def test_layers_are_shown_side_by_side_in_the_same_colours(tmp_path):
    names = ("body.0", "body.1", "<b>head</b>")
    folders = [layered(tmp_path / "A", 1e-3, names), layered(tmp_path / "B", 1e-3, names, worst=8.0)]
    page = compare_runs([*folders, layered(tmp_path / "C", math.nan, names)]).to_html()
    assert page.count("Update ratio") >= 3 and "alone</code> " not in page
    assert "&lt;b&gt;head&lt;/b&gt;: 8 times that of A at the end" in page and "<b>head" not in page
    assert "no layer can be compared with A" in page
    first, other = (load_run(folder) for folder in folders)
    scale = common_scale([layer_table(run, "update_ratio") for run in (first, other)])
    assert scale.low <= 1e-3 and scale.high >= 8 * 3e-3
    assert (
        largest_change(layer_table(first, "update_ratio"), layer_table(first, "update_ratio"), "A") == "every layer ends as in A"
    )


def test_layers_of_one_run_only_are_not_compared(tmp_path):
    folders = [layered(tmp_path / "A", 1e-3, ("0", "1")), layered(tmp_path / "B", 1e-3, ("0",))]
    assert layerwise_names([load_run(folder) for folder in folders]) == []
