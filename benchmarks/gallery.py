"""Pictures of what people look at, for docs/gallery: `python -m benchmarks.gallery`.

Trains two demos, healthy and with too high a learning rate, and photographs their report, comparison, gauges and summaries in a
headless browser, as they are: nothing is retouched. Needs Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI

from cockpit_lite.compare import Comparison, compare_runs
from cockpit_lite.demo import run_demo
from cockpit_lite.plots import OVERVIEW, animate
from cockpit_lite.plots.page import Page
from cockpit_lite.report.model import Report
from cockpit_lite.run import Run, load_run
from tests.browser import Browser, Tab, chromium

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "gallery"

#: File -> what it shows.
CAPTIONS = {
    "report.png": "The report: the verdict first, each finding with its evidence, cause and cure",
    "report-dark.png": "The gauges in the report, in a browser that prefers dark",
    "report-layers.png": "Readings by layer as heat maps, folded in the report",
    "report-narrow.png": "The report on a telephone",
    "report-terminal.png": "The same report in a terminal: `cockpit-lite report RUN`",
    "comparison.png": "`cockpit-lite compare BROKEN HEALTHY`: what went, what differs",
    "comparison-gauges.png": "The readings that both runs have, on one gauge each",
    "comparison-layers.png": "Readings by layer, each run beside the other in the same colours",
    "comparison-terminal.png": "The same comparison in a terminal",
    "cockpit-dark.png": "The cockpit page, as the window shows it, dark",
    "animation.gif": 'The run as it went: `plots.animate(run, "animation.gif")`',
}
_WIDTH, _HEIGHT = 1200, 860
#: Flat colours: 128 of them look the same at a quarter of the size.
_COLOURS = 128


def main() -> None:
    """Take all pictures, or say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broken", metavar="RUN", help="a run to show instead of the broken demo")
    parser.add_argument("--healthy", metavar="RUN", help="a run to show instead of the healthy demo")
    options = parser.parse_args()
    executable = chromium()
    if executable is None:
        sys.exit("The pictures are taken with Chromium or Chrome, and there is none: apt-get install chromium")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, Browser(executable) as browser:
        workshop = Path(temporary)
        broken = log_of(options.broken or run_demo("lr-too-high", workshop / "runs" / "0").folder, workshop / "learning-rate-5")
        healthy = log_of(options.healthy or run_demo(None, workshop / "runs" / "1").folder, workshop / "learning-rate-0.02")
        photograph(browser, broken.report(), compare_runs([broken.folder, healthy.folder]), workshop)
        film(healthy)
    index = [f"### {caption}\n\n![{caption}]({name})\n" for name, caption in CAPTIONS.items()]
    text = "# Gallery\n\nWritten by `python -m benchmarks.gallery`, from the demos.\n\n" + "\n".join(index)
    (FOLDER / "README.md").write_text(text, encoding="utf-8")


def log_of(run: str | Path, folder: Path) -> Run:
    """Return a copy of a run under a name that says what it is, without its report, whose path would be in the picture."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("report.*", "cockpit.png"))
    return load_run(folder)


def photograph(browser: Browser, report: Report, comparison: Comparison, workshop: Path) -> None:
    """Write the pictures of a report and of a comparison."""
    page, other = workshop / "report.html", workshop / "comparison.html"
    page.write_text(report.to_html(), encoding="utf-8")
    comparison.save(other)

    tab = browser.open(page, _WIDTH, _HEIGHT)
    take(tab, "report.png")
    tab.media(prefers_color_scheme="dark")
    scroll_to(tab, "#cockpit")
    take(tab, "report-dark.png")
    tab.media()
    tab.evaluate("document.querySelectorAll('#cockpit details')[1].open = true")
    scroll_to(tab, "#cockpit details:nth-of-type(2)")
    take(tab, "report-layers.png")
    tab = browser.open(page, 390, _HEIGHT)
    take(tab, "report-narrow.png")

    tab = browser.open(other, _WIDTH, _HEIGHT)
    take(tab, "comparison.png")
    scroll_to(tab, "#readings")
    take(tab, "comparison-gauges.png")
    tab.evaluate("document.querySelectorAll('#by-layer ~ details').forEach((one, index) => { one.open = index < 3; })")
    scroll_to(tab, "#by-layer")
    take(tab, "comparison-layers.png")

    for name, show in (("report", report.print), ("comparison", comparison.print)):
        drawn = workshop / f"{name}.svg"
        drawn.write_text(terminal(show, f"cockpit-lite {name}"), encoding="utf-8")
        tab = browser.open(drawn, _WIDTH, _HEIGHT)
        take(tab, f"{name}-terminal.png")

    cockpit = Page("dark", OVERVIEW)
    cockpit.update(report.run)
    shrink(Image.open(io.BytesIO(cockpit.png(85))), "cockpit-dark.png")


def film(run: Run) -> None:
    """Write the animation."""
    animate(run, FOLDER / "animation.gif", frames=16, frames_per_second=6, dpi=50)


def terminal(show: Callable[[Console], None], title: str) -> str:
    """Return what is printed in a terminal of a hundred columns, as SVG."""
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    show(console)
    return console.export_svg(title=title, theme=MONOKAI)


def scroll_to(tab: Tab, selector: str) -> None:
    """Bring the part of the page to the top."""
    tab.evaluate(f"document.querySelector({selector!r}).scrollIntoView()")


def take(tab: Tab, name: str) -> None:
    """Photograph what is seen."""
    with tempfile.TemporaryDirectory() as temporary:
        picture = Path(temporary) / name
        tab.screenshot(picture)
        shrink(Image.open(picture), name)


def shrink(picture: Image.Image, name: str) -> None:
    """Write a picture small."""
    picture.convert("RGB").quantize(_COLOURS, method=Image.Quantize.MEDIANCUT).save(FOLDER / name, optimize=True)


if __name__ == "__main__":
    main()
