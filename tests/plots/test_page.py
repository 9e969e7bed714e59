from __future__ import annotations

import io
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.text import Text

from cockpit_lite.instruments import INSTRUMENTS
from cockpit_lite.plots import OVERVIEW, PAGES, Layout, Page, pages, save_page
from cockpit_lite.plots import page as page_file
from cockpit_lite.plots.artists import Row
from cockpit_lite.plots.layout import shown
from tests.plots.synthetic import ALERTS, readings_run, training_run


def texts(page: Page) -> list[str]:
    return [text.get_text() for text in page.figure.findobj(Text) if text.get_text()]


def size_of(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def test_the_page_is_a_laptop_wide(tmp_path: Path) -> None:
    page = Page()
    page.update(training_run(tmp_path, steps=20))
    assert size_of(page.png(dpi=100)) == (1440, 900)
    assert size_of(page.png(dpi=150)) == (2160, 1350)


def test_the_header_says_what_ran_and_how_it_went(tmp_path: Path) -> None:
    page = Page()
    page.update(training_run(tmp_path / "mine", alerts=["ill-conditioning", "learning-rate-too-high", "exploding-gradients"]))
    said = "\n".join(texts(page))
    for word in (
        "ConvNet",
        "SGD",
        "completed",
        "step 299",
        "mine",
        "2 errors, 1 warning",
        "first: learning-rate-too-high at step 180",
    ):
        assert word in said
    assert "CL402 learning-rate-too-high, step 180" in said


def test_a_healthy_run_has_no_alerts(tmp_path: Path) -> None:
    page = Page()
    page.update(training_run(tmp_path))
    assert "no alerts" in texts(page)
    assert "Nothing found so far." in texts(page)


def test_a_growing_run_keeps_its_artists(tmp_path: Path) -> None:
    page = Page()
    page.update(training_run(tmp_path / "a", steps=100, status="running"))
    before = len(page.figure.findobj())
    axes = list(page.figure.axes)
    for steps in (150, 200):
        page.update(training_run(tmp_path / str(steps), steps=steps, status="running"))
        page.figure.canvas.draw()
    assert page.figure.axes == axes
    assert len(page.figure.findobj()) < 1.3 * before


def test_the_alerts_follow_the_run(tmp_path: Path) -> None:
    page = Page()
    page.update(training_run(tmp_path / "a", status="running"))
    page.update(training_run(tmp_path / "b", status="running", alerts=["exploding-gradients"]))
    assert "■ CL302 exploding-gradients, step 195" in texts(page)
    assert "Nothing found so far." not in texts(page)
    page.update(training_run(tmp_path / "c"))
    assert "■ CL302 exploding-gradients, step 195" not in texts(page)


def test_a_single_alert_says_what_to_do(tmp_path: Path) -> None:
    page = Page()
    page.update(training_run(tmp_path, alerts=["learning-rate-too-high"]))
    assert "→ Lower the learning rate to 0.02." in texts(page)


def test_more_alerts_than_fit_are_counted(tmp_path: Path) -> None:
    page = Page()
    page.update(
        readings_run(tmp_path, {"loss": [1.0] * 50}, alerts=[ALERTS["ill-conditioning"] | {"step": step} for step in range(40)])
    )
    listed = [text for text in texts(page) if text.startswith("▲ CL404")]
    assert 1 <= len(listed) <= 4
    assert f"and {40 - len(listed)} more" in texts(page)


def overlaps(page: Page) -> list[str]:
    """Return which titles, legends, verdicts and page texts lie over each other or reach out of the page."""
    renderer = page.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    page.figure.canvas.draw()
    boxes = []
    for ax in page.figure.axes:
        for box in ax.findobj(Row):
            boxes.append(("/".join(text.get_text() for text in box.findobj(Text)), box.get_window_extent(renderer)))
    boxes += [(text.get_text(), text.get_window_extent(renderer)) for text in page.figure.texts if text.get_text()]
    found = [
        f"{one} | {other}"
        for (one, a), (other, b) in itertools.combinations(boxes, 2)
        if a.shrunk(0.98, 0.8).overlaps(b.shrunk(0.98, 0.8))
    ]
    whole = page.figure.bbox
    return found + [name for name, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > whole.x1 or box.y1 > whole.y1]


@pytest.mark.parametrize("size", [(14.4, 9.0), (12.0, 7.0), (19.2, 10.8)])
def test_no_words_lie_over_each_other(tmp_path: Path, size: tuple[float, float]) -> None:
    page = Page()
    page.figure.set_size_inches(*size)
    everything = ["exploding-gradients", "learning-rate-too-high", "ill-conditioning"]
    for case, run in {
        "full": training_run(tmp_path / "full", nan_from=200, alerts=everything),
        "names": training_run(
            tmp_path / "names", steps=40, model="Long$Name_" * 30, optimizer={"class": "B" * 300}, layer_names=["y" * 300] * 2
        ),
        "empty": training_run(tmp_path / "empty", steps=0),
        "one": training_run(tmp_path / "one", steps=1),
    }.items():
        page.update(run)
        assert overlaps(page) == [], case


def test_the_page_fits_a_window_that_is_resized(tmp_path: Path) -> None:
    page = Page()
    page.update(training_run(tmp_path, steps=50, alerts=["ill-conditioning"]))
    page.figure.set_size_inches(12.0, 7.0)
    page._fit()
    assert overlaps(page) == []
    for ax in page.figure.axes:
        assert 0 < ax.get_position().x0 < ax.get_position().x1 < 1
        assert 0 < ax.get_position().y0 < ax.get_position().y1 < 1


def test_a_window_far_too_small_raises_nothing(tmp_path: Path) -> None:
    page = Page()
    page.figure.set_size_inches(1.0, 0.5)
    page.update(training_run(tmp_path, steps=50, alerts=["ill-conditioning"]))
    page.figure.canvas.draw()


def test_names_are_no_formulas_and_no_font_is_asked_for_too_much(tmp_path: Path) -> None:
    page = Page("dark")
    page.update(training_run(tmp_path, steps=10, model="$\\frac{1$ 模型 _x", optimizer={"class": "$"}))
    assert len(page.png(dpi=50)) > 1_000
    assert any("$\\frac{1$ 模型 _x" in text for text in texts(page))


def test_a_picture_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = training_run(tmp_path / "run", steps=5)
    target = run.folder / "cockpit.png"
    save_page(run, target, dpi=40)
    before = target.read_bytes()
    assert size_of(before) == (576, 360)

    def fail(*_: object) -> bytes:
        raise RuntimeError("no memory")

    monkeypatch.setattr(page_file.Page, "png", fail)
    with pytest.raises(RuntimeError):
        save_page(run, target)
    assert target.read_bytes() == before
    assert sorted(path.name for path in run.folder.iterdir()) == ["alerts.jsonl", "cockpit.png", "readings.jsonl", "run.json"]


def test_a_picture_goes_to_an_open_file_too(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    page = Page()
    page.update(training_run(tmp_path, steps=5))
    page.save(buffer, dpi=40)
    assert size_of(buffer.getvalue()) == (576, 360)


def test_the_users_pyplot_and_settings_stay_untouched(tmp_path: Path) -> None:
    run = training_run(tmp_path / "run", steps=5)
    program = (
        "import sys, matplotlib; before = dict(matplotlib.rcParams)\n"
        "from cockpit_lite.plots import save_page\n"
        "from cockpit_lite.run import load_run\n"
        "save_page(load_run(sys.argv[1]), sys.argv[2], dpi=40)\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot'\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "assert dict(matplotlib.rcParams) == before, 'settings'\n"
    )
    done = subprocess.run([sys.executable, "-c", program, run.folder, tmp_path / "page.png"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_reading_of_a_run_is_on_some_page(tmp_path: Path) -> None:
    """Also those of instruments that nobody has thought of yet."""
    own = {"my_reading": [1.0, 2.0], "my_layers/0": [1.0, 2.0], "my_layers/1": [0.0, -2.0], "validation_loss": [1.0, 1.0]}
    run = readings_run(tmp_path, {**{name: [0.5, 0.5] for name in INSTRUMENTS}, **own})
    layouts = [OVERVIEW, *pages(run).values()]
    seen = set().union(*(shown(layout) for layout in layouts))
    assert {name.partition("/")[0] for name in run.names} - {"validation_loss"} <= seen


def test_first_order_instruments_have_gauges_of_their_own() -> None:
    placed = set().union(*(shown(layout) for layout in (OVERVIEW, *PAGES.values())))
    names = (
        "cabs gsnr early_stopping gradient_alignment conflicting_samples activation_std activation_mean dead_units saturation "
    )
    names += (
        "effective_rank gradient_scale distance grad_norm norm_test inner_product_test orthogonality_test gradient_noise_scale"
    )
    assert set(names.split()) <= placed


def test_pages_without_anything_to_show_are_left_out(tmp_path: Path) -> None:
    assert pages(readings_run(tmp_path / "loss", {"loss": [1.0]})) == {}
    assert list(pages(readings_run(tmp_path / "step", {"loss": [1.0], "step_time": [0.1]}))) == ["more"]
    few = pages(readings_run(tmp_path / "few", {"gsnr": [1.0], "distance": [1.0]}))
    assert [gauge.__name__ for layout in few.values() for gauge in layout.gauges()] == ["distance", "gsnr"]
    assert list(few) == ["more"]
    assert pages(training_run(tmp_path / "none", steps=0)) == {}


def test_a_page_leaves_no_gap_for_what_was_switched_off_and_says_why_for_what_could_not_be(tmp_path: Path) -> None:
    readings = {name: [1.0] for name in ("dead_units", "activation_mean", "activation_std")}
    run = readings_run(tmp_path, readings, not_measured={"saturation": "no sigmoid was called"})
    (layout,) = pages(run).values()
    assert [gauge.__name__ for gauge in layout.gauges()] == ["activation_std", "activation_mean", "dead_units", "saturation"]
    page = Page(layout=layout)
    page.update(run)
    assert any("no sigmoid was called" in text for text in texts(page))
    assert all(ax.get_position().width < 0.4 for ax in page.figure.axes)


def test_more_readings_than_a_page_holds_have_several(tmp_path: Path) -> None:
    run = readings_run(tmp_path, {f"reading_{index:02}": [1.0] for index in range(45)})
    found = pages(run)
    assert list(found) == ["more", "more 2", "more 3"]
    assert [sum(len(gauges) for _, gauges in layout.columns) for layout in found.values()] == [20, 20, 5]


@pytest.mark.parametrize("name", [*PAGES, "more"])
def test_no_words_lie_over_each_other_on_the_other_pages(name: str, tmp_path: Path) -> None:
    everything = ["exploding-gradients", "learning-rate-too-high", "ill-conditioning"]
    page = None
    for case, run in {
        "full": training_run(tmp_path / "full", nan_from=200, alerts=everything),
        "names": training_run(tmp_path / "names", steps=40, model="Long$Name_" * 30, layer_names=["y" * 300, "z" * 300]),
        "one": training_run(tmp_path / "one", steps=1),
    }.items():
        layout = pages(run)[name]
        page = Page("dark", layout) if page is None or name == "more" else page
        page.update(run)
        assert overlaps(page) == [], case


def test_a_page_may_have_no_wide_gauge(tmp_path: Path) -> None:
    run = training_run(tmp_path, steps=9, alerts=["ill-conditioning"])
    page = Page(layout=Layout((("ONLY", tuple(PAGES["gradients"].columns[0][1][:1])),)))
    page.update(run)
    assert len(page.figure.axes) == 1
    assert "1 warning" in texts(page)
    assert "Alerts" not in texts(page)
