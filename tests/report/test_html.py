from __future__ import annotations

import itertools
import re
from html import unescape
from html.parser import HTMLParser

import pytest

from cockpit_lite.plots.style import DARK, LIGHT
from cockpit_lite.report import build_report
from cockpit_lite.report.svg import colour_rules, colours
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
        "hessian_trace 500 ms 100 %",
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
    text = build_report(run, RULES).save().read_text(encoding="utf-8")  # a lone surrogate can be written
    page = Page(text)
    assert page.all("script") == []
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "60481729" not in "".join(page.text)
    assert "\x1b" not in text


def test_the_page_needs_nothing_beside_it(drawn):
    page = Page(drawn)
    assert not re.search(r"""(?:src|href|srcset)=["'](?!data:|\#)""", drawn)
    assert not re.search(r"url\((?!#)|@import", drawn)
    assert page.all("script") == []
    assert "default-src 'none'" in page.all("meta")[-1]["content"]
    assert len(drawn) < 3_000_000


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
    for palette in (light, dark):
        for text, ground in [("ink", "page"), ("ink", "soft"), ("quiet", "page"), ("quiet", "card"), ("link", "page")] + [
            (tone, f"{tone}-soft") for tone in ("error", "warning", "note", "clean", "unknown")
        ]:
            assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)


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


def test_the_gauges_take_the_colours_of_the_page(drawn):
    gauges = re.search(r'<section id="cockpit".*?</section>\n\n', drawn, re.DOTALL).group(0)
    own = {colour for theme in (LIGHT, DARK) for colour in colours(theme).values()}
    plain = re.sub(r'<svg[^>]*class="turned".*?</svg>', "", gauges, flags=re.DOTALL)
    assert "var(--gauge-text)" in plain
    assert [colour for colour in re.findall(r"#[0-9a-f]{6}\b", plain) if colour in own] == []
    used = set(re.findall(r"var\(--(gauge-[\w-]+)\)", gauges))
    light, dark = (set(re.findall(r"--(gauge-[\w-]+):", part)) for part in colour_rules().split("@media"))
    assert used <= light == dark


def test_colours_that_are_one_in_the_light_are_one_in_the_dark():
    light, dark = colours(LIGHT), colours(DARK)
    for one, other in itertools.combinations(light, 2):
        assert light[one] != light[other] or dark[one] == dark[other]


def test_every_gauge_says_in_words_what_it_shows(drawn):
    labels = [svg["aria-label"] for svg in Page(drawn).all("svg")]
    assert any(label.startswith("Loss: loss ") for label in labels)
    assert any(re.search("not measured, because its instrument was not switched on$", label) for label in labels)


def test_no_two_pictures_share_an_identifier(drawn):
    identifiers = re.findall(r' id="([^"]+)"', drawn)
    assert len(identifiers) == len(set(identifiers))
    referred = set(re.findall(r"url\(#([^)]+)\)", drawn)) | set(re.findall(r'xlink:href="#([^"]+)"', drawn))
    assert referred
    assert referred <= set(identifiers)


def test_readings_that_are_not_on_the_cockpit_are_folded_below_it(make_run, pictures):
    run = make_run(layers=("0.weight",))
    writer = RunWriter(run.folder.with_name("more"), run.info)
    for step in range(5):
        values = {
            "loss": 1.0,
            "gsnr": 0.5,
            "early_stopping": -1.0,
            "cabs": 8.0,
            "a_reading_of_mine": 3.0 + step,
            "never_changes": 1.0,
        }
        writer.step(step, values)
    writer.close()
    page = Page(build_report(Run(writer.folder), RULES).to_html())
    assert {"Gradients", "More"} <= set(page.text)
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert any(label.startswith("A reading of mine: 5") for label in labels)
    assert not any("ever changes" in label for label in labels)
    assert "never_changes" in page.text  # in the table


def test_a_picture_that_cannot_be_drawn_costs_the_picture_only(make_run, pictures, monkeypatch):
    def fail(*arguments, **more):
        raise RuntimeError("no <fonts>")

    monkeypatch.setattr("cockpit_lite.plots.panel.Panel.end", fail)
    report = build_report(make_run(), RULES)
    assert not (report.save().parent / "cockpit.png").exists()
    page = Page(report.to_html())
    assert all(attributes.get("class") != "gauges" for attributes in page.all("div"))
    assert "No picture: drawing it failed (RuntimeError: no <fonts>)." in "".join(page.text)


def test_the_overview_lies_beside_the_page(make_run, pictures):
    run = make_run()
    build_report(run, RULES).save()
    assert (run.folder / "cockpit.png").read_bytes().startswith(b"\x89PNG")


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


def test_reasons_that_checks_share_are_said_once(make_run):
    text = " ".join("".join(Page(build_report(make_run(steps=0)).to_html()).text).split())
    assert text.count("no training step was seen") == 1
    assert "CL101 gradients-not-zeroed, CL102" in text


def test_checks_that_nobody_asked_for_are_folded(make_run):
    html = build_report(make_run(not_measured={"norm_test": "why not"}), RULES).to_html()
    (folded,) = re.findall(r"<details>\s*<summary>2 checks that need instruments.*?</details>", html, re.DOTALL)
    assert "noise-dominates" in folded
    assert "too-flat" in folded


def test_words_in_a_picture_are_left_as_they_are(make_run, pictures):
    name = 'id="x" d="1.2345" #1d2430 url(#y)'  # what pictures are made of, as the name of a reading
    run = make_run(steps=0)
    record(run, name, [1.0, 2.0, 3.0])
    html = build_report(run, RULES).to_html()
    shown = [unescape(re.sub("<[^>]*>", "", text)).lower() for text in re.findall("<text.*?</text>", html, re.DOTALL)]
    assert name.lower() in shown
