from __future__ import annotations

import base64
import itertools
import re
from html.parser import HTMLParser

import pytest

from cockpit_lite.plots.page import Page as PlotsPage
from cockpit_lite.report import build_report
from cockpit_lite.run import Run
from cockpit_lite.run_log import RunWriter
from tests.report.cases import RULES, alert, record

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7777 * 7777 }}\x1b[2J\ud800"
VOID = {"meta", "img", "source", "br", "link", "input", "line", "path", "polyline"}


class Page(HTMLParser):
    """The elements of a page, in order, with their attributes; fails on tags that are not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_says_it_all_with_the_verdict_first(make_run):
    run = make_run(
        alerts=(alert(where=("0.weight",), evidence={"loss_before": 2.3}),),
        final={"status": "finished", "cost": {"share": 0.04, "instruments": {"hessian_trace": 0.5}}},
        not_measured={"gradient_noise_scale": "the batch holds one sample"},
    )
    html = build_report(run, RULES).to_html()
    text = " ".join(" ".join(Page(html).text).split())
    in_order = [
        "1 error in 40 steps. It is loss-rises (CL901) at step 12 in 0.weight.",
        "The loss rose from 2.3 to 9.1.",
        "What to do.",
        "loss before 2.3",
        "More about loss-rises",
        "optimizer = SGD(model.parameters(), lr=0.01)",
        "gradient_noise_scale was not measured, because the batch holds one sample",
        "Measuring cost 4 % of the training time",
        "hessian_trace 500 ms",
        "estimated, standard error 0.25",
        "versions.torch 2.15.0",
    ]
    places = [text.find(part) for part in in_order]
    assert -1 not in places, in_order[places.index(-1)]
    assert places == sorted(places)


def test_hostile_names_stay_text(make_run, pictures):
    run = make_run(
        steps=4,
        folder="<script>a",
        layers=(HOSTILE,),
        info={"model": HOSTILE, HOSTILE: HOSTILE},
        not_measured={HOSTILE: HOSTILE},
        alerts=(alert(name=HOSTILE, where=(HOSTILE,), cause=HOSTILE, advice=HOSTILE, evidence={HOSTILE: HOSTILE}),),
        final={"status": HOSTILE, "cost": {"share": 0.1, "instruments": {HOSTILE: 1.0}}},
    )
    report = build_report(run, RULES)
    page = Page(report.to_html())
    assert page.all("script") == []
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "60481729" not in "".join(page.text)
    assert "\x1b" not in report.to_html()
    report.save()  # a lone surrogate can be written


def test_the_page_needs_nothing_beside_it(make_run, pictures):
    html = build_report(make_run(alerts=(alert(),)), RULES).to_html()
    page = Page(html)
    assert not re.search(r"""(?:src|href|srcset)=["'](?!data:|\#)""", html)
    assert not re.search(r"url\(|@import", html)
    assert page.all("script") == []
    assert "default-src 'none'" in page.all("meta")[-1]["content"]
    assert len(html) < 3_000_000


def test_the_page_can_be_read_without_eyes(make_run):
    page = Page(build_report(make_run(alerts=(alert(), alert("CL902", "noise-dominates"))), RULES).to_html())
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert page.all("html")[0]["lang"] == "en"
    assert all(link["href"].removeprefix("#") in identifiers for link in page.all("a"))
    assert all(label in identifiers for _, attributes in page.elements if (label := attributes.get("aria-labelledby")))
    assert all(image["alt"] for image in page.all("img"))
    assert all(picture["aria-label"] for picture in page.all("svg"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))


def test_light_and_dark_have_every_colour_and_enough_contrast(make_run):
    style = re.search(r"<style>(.*?)</style>", build_report(make_run(steps=2), RULES).to_html(), re.DOTALL).group(1)
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in style.split("prefers-color-scheme: dark")[:2])
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for text, ground in [("ink", "page"), ("ink", "soft"), ("quiet", "page"), ("quiet", "card"), ("link", "page")] + [
            (tone, f"{tone}-soft") for tone in ("error", "warning", "note", "clean", "unknown")
        ]:
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("final", [None, {"status": "finished"}])
def test_only_an_unfinished_run_is_called_so(make_run, final):
    html = build_report(make_run(steps=2, final=final), RULES).to_html()
    assert ("The log does not say that the run has ended" in html) == (final is None)


def test_the_cockpit_is_shown_light_and_dark(make_run, pictures):
    page = Page(build_report(make_run(), RULES).to_html())
    (image,), (source,) = page.all("img"), page.all("source")
    assert source["media"] == "screen and (prefers-color-scheme: dark)"
    light, dark = (base64.b64decode(uri.removeprefix("data:image/png;base64,")) for uri in (image["src"], source["srcset"]))
    assert light.startswith(b"\x89PNG")
    assert dark.startswith(b"\x89PNG")
    assert light != dark


def test_readings_that_are_not_on_the_cockpit_are_folded_below_it(make_run, pictures):
    run = make_run(layers=("0.weight",))
    writer = RunWriter(run.folder.with_name("more"), run.info)
    for step in range(5):
        writer.step(step, {"loss": 1.0, "gsnr": 0.5, "early_stopping": -1.0, "cabs": 8.0, "a_reading_of_mine": 3.0})
    writer.close()
    page = Page(build_report(Run(writer.folder), RULES).to_html())
    cockpit, *folded = page.all("img")
    assert len(folded) == 2
    assert {"Gradients", "More"} <= set(page.text)
    assert all(base64.b64decode(image["src"].partition(",")[2]).startswith(b"\x89PNG") for image in folded)
    assert all(image["alt"] and image["src"] != cockpit["src"] for image in folded)


def test_a_picture_that_cannot_be_drawn_costs_the_picture_only(make_run, pictures, monkeypatch):
    def fail(*arguments, **more):
        raise RuntimeError("no <fonts>")

    monkeypatch.setattr("cockpit_lite.plots.page.Page.update", fail)
    page = Page(build_report(make_run(), RULES).to_html())
    assert page.all("img") == []
    assert "No picture: drawing it failed (RuntimeError: no <fonts>)." in "".join(page.text)


def test_the_picture_is_drawn_once_for_the_page_and_beside_it(make_run, pictures, monkeypatch):
    drawn = []
    real = PlotsPage.png
    monkeypatch.setattr(PlotsPage, "png", lambda self, dpi: drawn.append(real(self, dpi)) or drawn[-1])
    run = make_run()
    path = build_report(run, RULES).save()
    assert len(drawn) == 2
    assert (run.folder / "cockpit.png").read_bytes() == drawn[0]
    assert base64.b64encode(drawn[0]).decode() in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("info", "ending"),
    [
        ({"status": "failed", "exception": "ValueError: <b>"}, "The training loop ended with an exception: ValueError: <b>"),
        ({"status": "interrupted"}, "The run was interrupted from the keyboard."),
    ],
)
def test_the_page_says_how_the_run_ended(make_run, info, ending):
    assert ending in "".join(Page(build_report(make_run(steps=2, final=info), RULES).to_html()).text)


def test_the_settings_of_optimizers_and_model_are_listed(make_run):
    info = {"model": {"class": "Net", "parameters": 12}, "optimizer": [{"class": "Adam", "lr": 0.001, "betas": [0.9, 0.999]}]}
    text = " ".join(" ".join(Page(build_report(make_run(steps=2, info=info), RULES).to_html()).text).split())
    assert "Net Adam 2 steps" in text
    for row in ("model.parameters 12", "optimizer[0].lr 0.001", "optimizer[0].betas 0.9, 0.999"):
        assert row in text


def test_a_run_without_a_step_lists_why(make_run):
    text = "".join(Page(build_report(make_run(steps=0), RULES).to_html()).text)
    assert "optimizer.step() was never called inside the with block" in text


def test_two_hundred_layers_and_ten_thousand_steps_stay_small(make_run):
    run = make_run(
        steps=2, layers=tuple(f"blocks.{index}.attention.projection.weight" for index in range(200)), alerts=(alert(),)
    )
    record(run, "loss", [1.0 + index % 7 for index in range(10_000)])
    assert len(build_report(run, RULES).to_html()) < 3_000_000
