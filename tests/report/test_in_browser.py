"""The report and the comparison in a real browser: no complaints, keyboard, dark mode, narrow screens, print, screen reader."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cockpit_lite.compare import compare_runs
from cockpit_lite.report import build_report
from cockpit_lite.run import Run
from cockpit_lite.run_log import RunWriter
from tests.browser import Browser, Tab, chromium
from tests.report.cases import RULES, alert

EXECUTABLE = chromium()
pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="needs Chromium or Chrome: apt-get install chromium")

LONG = "encoder.layers.11." + "attention_output_projection_" * 12 + "weight"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert EXECUTABLE is not None
    with Browser(EXECUTABLE) as browser:
        yield browser


def write(folder: Path, steps: int = 20, **more: object) -> Run:
    writer = RunWriter(folder, {"model": "Net", "optimizer": [{"class": "SGD", "lr": 0.1, **more}], "seed": 0, LONG: LONG})
    for step in range(steps):
        how = {"hessian_trace": {"kind": "estimated", "standard_error": 0.25}}
        layers = {f"gsnr/{name}": 0.1 * step for name in ("0.weight", "0.bias", LONG)}
        values = {"loss": 2.0 / (step + 1), "grad_norm": math.nan if step == 9 else 1.0 + step, "hessian_trace": 3.0, LONG: 1.0}
        writer.step(step, values | layers | {"gsnr": 0.1, "early_stopping": -1.0, "cabs": float(step)}, how)
    writer.not_measured(0, {"norm_test": LONG})
    if not more:
        writer.alert(alert(where=(LONG, "0.weight"), cause=f"It rose in {LONG}.").to_dict())
    writer.close(status="completed", cost={"share": 0.1, "instruments": {LONG: 1.0}})
    return Run(folder)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    report, comparison = folder / "report.html", folder / "comparison.html"
    report.write_text(build_report(write(folder / ("a" * 120)), RULES).to_html(), encoding="utf-8")
    write(folder / "before")
    write(folder / "after", nesterov=True)
    compare_runs([folder / "before", folder / "after"]).save(comparison)
    return {"report": report, "comparison": comparison}


@pytest.fixture(params=["report", "comparison"])
def tab(request: pytest.FixtureRequest, browser: Browser, pages: dict[str, Path]) -> Tab:
    return browser.open(pages[request.param])


@pytest.fixture
def report(browser: Browser, pages: dict[str, Path]) -> Tab:
    return browser.open(pages["report"])


FOCUSED = "document.activeElement.tagName + ' ' + document.activeElement.textContent.trim().replace(/\\s+/g, ' ')"


def test_the_browser_has_nothing_to_complain_about(tab):
    assert tab.evaluate("document.querySelectorAll('svg').length") > 1
    assert tab.complaints == []


def test_the_keyboard_reaches_everything_in_order(tab):
    tab.press("Tab")
    assert tab.evaluate(FOCUSED) == "A Skip to the verdict"
    left, top = tab.evaluate("(box => [box.left, box.top])(document.activeElement.getBoundingClientRect())")
    assert left >= 0
    assert top >= 0
    tab.press("Enter")
    assert tab.evaluate("location.hash") == "#verdict"
    links = tab.evaluate("document.querySelectorAll('nav a').length")
    reached = []
    for _ in range(links + 1):
        tab.press("Tab")
        reached.append(tab.evaluate(FOCUSED))
    assert [text.partition(" ")[0] for text in reached] == ["A"] * links + ["SUMMARY"]
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("key", ["Enter", " "])
def test_what_is_folded_unfolds_and_folds_with_a_key(tab, key):
    tab.evaluate("document.querySelector('summary').focus()")
    hidden = "document.querySelector('details').getBoundingClientRect().height"
    folded = tab.evaluate(hidden)
    tab.press(key)
    assert tab.evaluate("document.querySelector('details').open") is True
    assert tab.evaluate(hidden) > folded + 20
    tab.press(key)
    assert tab.evaluate("document.querySelector('details').open") is False


def brightness(colour: str) -> float:
    red, green, blue = (int(part) for part in re.findall(r"\d+", colour)[:3])
    return (0.299 * red + 0.587 * green + 0.114 * blue) / 255


def test_dark_is_dark_all_over_and_light_is_light(tab):
    grounds = "[document.body, document.querySelector('.gauges figure'), document.querySelector('.verdict')]"
    words = "[document.body, document.querySelector('.gauges svg:not(.turned) text')]"
    shown = f"[{grounds}.map(e => getComputedStyle(e).backgroundColor), {words}.map(e => getComputedStyle(e).fill)]"
    text = "getComputedStyle(document.body).color"
    tab.media(prefers_color_scheme="light")
    assert all(brightness(colour) > 0.85 for colour in tab.evaluate(shown)[0])
    assert brightness(tab.evaluate(text)) < 0.3
    light = tab.evaluate(shown)[1][1]
    tab.media(prefers_color_scheme="dark")
    assert all(brightness(colour) < 0.25 for colour in tab.evaluate(shown)[0])
    assert brightness(tab.evaluate(text)) > 0.8
    assert brightness(tab.evaluate(shown)[1][1]) > brightness(light)


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_nothing_is_wider_than_the_screen(tab, width):
    tab.resize(width)
    tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_a_screen_reader_is_told_of_parts_headings_and_pictures(tab):
    told = tab.accessible()
    roles = [role for role, _ in told]
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert roles.count(landmark) == 1
    pictures = [name for role, name in told if role in ("img", "image")]
    assert len(pictures) > 1
    assert all(pictures)
    assert all(name for role, name in told if role in ("heading", "link", "region"))
    assert [name for role, name in told if role == "StaticText" and name == "10 × median"] == []  # pictures by their names only


def test_on_paper_everything_is_unfolded_and_light(report):
    report.media("print", prefers_color_scheme="light")
    folded = "[...document.querySelectorAll('details > :not(summary)')].filter(e => !e.getBoundingClientRect().height).length"
    assert report.evaluate("document.querySelectorAll('details').length") > 1
    assert report.evaluate(folded) == 0
    assert report.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    paper = report.pdf()
    assert paper.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 40
