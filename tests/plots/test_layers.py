from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from cockpit_lite import plots
from cockpit_lite.plots import style
from cockpit_lite.plots.heat import MOST_COLUMNS, MOST_ROWS, HeatScale, log_scale, picture
from cockpit_lite.plots.labels import Note
from cockpit_lite.plots.layers import LayerTable, layer_table, short_names
from cockpit_lite.run import Run, load_run
from cockpit_lite.run_log import RunWriter
from tests.plots.synthetic import readings_run
from tests.plots.test_panel import words

SHARES = HeatScale(0.0, 1.0, limit=0.5, shares=True)


def table(values: list[list[float]], steps: list[int] | None = None) -> LayerTable:
    array = np.array(values)
    places = np.arange(array.shape[1]) if steps is None else np.array(steps)
    return LayerTable(tuple(f"layer{row}" for row in range(len(array))), places, array, np.full(array.shape, True))


def hue(pixel: np.ndarray) -> str:
    """Return whether a pixel is more blue or more orange."""
    return "blue" if pixel[2] > pixel[0] else "orange"


def test_a_table_has_the_layers_in_the_order_of_the_network(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", {"shapes": {"a.weight": [2, 2], "b.weight": [2, 2]}})
    for step in (0, 3, 4):
        writer.step(step, {"gsnr/b.weight": step + 0.5, **({"gsnr/a.weight": 7.0} if step == 3 else {})})
    writer.step(5, {"gsnr/b.weight": math.nan})
    writer.close()
    found = layer_table(load_run(tmp_path / "run"), "gsnr")
    assert found is not None
    assert found.names == ("a.weight", "b.weight")
    assert found.steps.tolist() == [0, 3, 4, 5]
    assert found.known.tolist() == [[False, True, False, False], [True] * 4]
    assert np.array_equal(found.values, [[np.nan, 7, np.nan, np.nan], [0.5, 3.5, 4.5, np.nan]], equal_nan=True)
    assert found.broken() == ["b.weight"]
    assert found.last(1).tolist() == [7.0, 4.5]


def test_no_layers_are_no_table(tmp_path: Path) -> None:
    assert layer_table(readings_run(tmp_path, {"gsnr": [1.0]}), "gsnr") is None


def test_names_still_tell_layers_apart() -> None:
    names = [f"transformer.encoder.layers.{index}.self_attention.out_proj.weight" for index in range(12)]
    assert short_names(names) == [str(index) for index in range(12)]
    blocks = [
        f"model.blocks.{index}.{part}" for index in range(3) for part in ("attention.query_projection", "mlp.up_projection")
    ]
    assert len(set(short_names(blocks))) == 6
    assert max(map(len, short_names(blocks))) <= 15


def test_colours_change_at_the_limit_and_what_is_not_finite_stands_out() -> None:
    image, rows = picture(table([[0.1, 0.4, 0.6, math.nan]]), SHARES, 3, style.LIGHT)
    assert rows == [0]
    assert [hue(pixel) for pixel in image[0, :3]] == ["blue", "blue", "orange"]
    assert tuple(image[0, 3, :3]) == to_rgb(style.LIGHT.text)
    assert image[..., 3].all()


def test_low_values_can_be_the_bad_ones() -> None:
    scale = HeatScale(0.01, 1.0, log=True, limit=0.05, bad="low")
    image, _ = picture(table([[0.9, 0.1, 0.02]]), scale, 2, style.DARK)
    assert [hue(pixel) for pixel in image[0]] == ["blue", "blue", "orange"]


def test_the_worst_of_many_layers_and_steps_is_seen() -> None:
    values = np.full((500, 5_000), 0.1)
    values[233, 4_321] = 0.9
    image, rows = picture(table(values.tolist()), SHARES, 4_999, style.LIGHT)
    assert image.shape == (MOST_ROWS, MOST_COLUMNS, 4)
    assert len(rows) == MOST_ROWS
    found = np.argwhere(image[..., 0] > image[..., 2])
    assert len(found) == 1
    assert rows[found[0][0]] <= 233 < rows[found[0][0] + 1]


def test_a_value_holds_until_the_next_measurement_but_not_for_ever() -> None:
    image, _ = picture(table([[0.1, 0.9]], steps=[0, 10]), SHARES, 100, style.LIGHT)
    assert image[0, :20, 3].all()
    assert not image[0, 25:, 3].any()
    once, _ = picture(table([[0.1]], steps=[0]), SHARES, 0, style.LIGHT)
    assert once[..., 3].all()


def test_a_layer_that_was_not_measured_is_left_blank() -> None:
    found = LayerTable(("a", "b"), np.arange(2), np.array([[0.1, np.nan], [0.2, 0.2]]), np.array([[False, False], [True, True]]))
    image, _ = picture(found, SHARES, 1, style.LIGHT)
    assert image[..., 3].tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("values", [[0.0], [1e-320, 1e308], [math.nan], [math.inf, 1.0], [3.0]])
def test_a_logarithmic_scale_holds_any_data(values: list[float]) -> None:
    scale = log_scale(table([values]))
    assert 0 < scale.low < scale.high < math.inf
    finite = [value for value in values if not math.isnan(value)]
    assert np.isfinite(scale.colours(np.array([*finite, 0.0, -1.0]), style.LIGHT)).all()
    assert len(scale.swatches(style.LIGHT)) == 3


def deep_run(folder: Path, count: int, steps: int = 30) -> Run:
    readings = {f"dead_units/net.blocks.{index}.relu": [0.01 * (index % 90)] * steps for index in range(count)}
    return readings_run(folder, {"dead_units": [0.5] * steps, **readings})


@pytest.mark.parametrize("count", [1, 2, 7, 200])
def test_names_of_the_rows_do_not_lie_over_each_other(count: int, tmp_path: Path) -> None:
    figure = Figure(figsize=(4.6, 2.2))
    ax = figure.add_subplot()
    plots.dead_units(deep_run(tmp_path, count), ax)
    figure.canvas.draw()
    if count == 1:
        assert not ax.images
        assert "limit 50 %" in words(ax)
        return
    rows = [note for note in ax.findobj(Note) if note.text.isdigit()]
    assert len(rows) >= min(count, 5)
    boxes = sorted((note.get_window_extent() for note in rows), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))


def test_long_names_have_room_beside_the_map(tmp_path: Path) -> None:
    readings = {f"dead_units/{name}": [0.1] * 9 for name in ("encoder.attention.activation", "decoder.feedforward.relu")}
    figure = Figure(figsize=(4.6, 2.2))
    ax = figure.add_axes((0.12, 0.2, 0.8, 0.6))
    plots.dead_units(readings_run(tmp_path, {"dead_units": [0.1] * 9, **readings}), ax)
    figure.canvas.draw()
    for text in ax.findobj(Note):
        assert text.get_window_extent().x0 >= 0
    (picture_,) = ax.images
    assert picture_.get_window_extent().x0 > ax.get_window_extent().x0


def test_a_map_follows_a_growing_run_and_gives_way_to_words(tmp_path: Path) -> None:
    ax = Figure(figsize=(5, 2)).add_subplot()
    plots.dead_units(deep_run(tmp_path / "a", 3, steps=10), ax)
    (before,) = ax.images
    plots.dead_units(deep_run(tmp_path / "b", 4, steps=20), ax)
    assert ax.images[0] is before
    assert before.get_array().shape[:2] == (4, 20)
    plots.dead_units(readings_run(tmp_path / "c", {"loss": [1.0]}), ax)
    assert not ax.images
    assert "not measured, because" in words(ax)


def test_a_verdict_names_a_layer_as_the_axis_does(tmp_path: Path) -> None:
    found = layer_table(deep_run(tmp_path, 12), "dead_units")
    assert found is not None
    assert [found.label(index) for index in (0, 11)] == ["layer 0", "layer 11"]
