"""Gauges as pictures: each looks as it did when somebody last looked at it.

The pictures in ``baseline`` are compared block by block and not pixel by pixel, so that another version of matplotlib or of its
font renderer, which shades the edges of lines and letters differently, makes no difference; a curve, a label or a colour that is
another one does. After a change that is meant to be seen::

    UPDATE_PICTURES=1 python -m pytest tests/plots/test_pictures.py

writes them anew. Look at them before they are committed.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave

from cockpit_lite import plots
from cockpit_lite.plots import style
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run
from tests.plots.synthetic import training_run
from tests.plots.test_gauges import GAUGES

BASELINE = Path(__file__).parent / "baseline"
UPDATE = "UPDATE_PICTURES" in os.environ
#: Pixels along a block's sides, and by how much its mean colour may be off, of 1.
BLOCK, TOLERANCE = 6, 0.08
#: Share of blocks that may be off by more.
MOST = 0.005


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of everything that ends badly."""
    return training_run(tmp_path_factory.mktemp("pictures") / "run", nan_from=170, alerts=["ill-conditioning"], status="failed")


@pytest.fixture(autouse=True)
def own_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Write with the font that comes with matplotlib, whatever else is installed."""
    monkeypatch.setattr(style, "_FAMILIES", ("DejaVu Sans",))
    style.font_family.cache_clear()
    yield
    style.font_family.cache_clear()


def blank(theme: style.Theme) -> tuple[FigureCanvasAgg, Axes]:
    figure = Figure(figsize=(4.6, 2.3), dpi=60, facecolor=theme.card)
    return FigureCanvasAgg(figure), figure.add_axes((0.13, 0.2, 0.82, 0.65))


def pixels(canvas: FigureCanvasAgg) -> np.ndarray:
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def off(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of blocks whose colours differ."""
    height, width = (size // BLOCK * BLOCK for size in one.shape[:2])

    def means(picture: np.ndarray) -> np.ndarray:
        blocks = picture[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK, 3)
        return np.asarray(blocks.mean(axis=(1, 3)) / 255)

    # Letters may be a pixel further on.
    shifted = (np.roll(other, shift, (0, 1)) for shift in itertools.product((-1, 0, 1), repeat=2))
    return float((np.min([np.abs(means(one) - means(two)).max(axis=2) for two in shifted], axis=0) > TOLERANCE).mean())


def known(name: str) -> np.ndarray:
    return np.round(255 * imread(BASELINE / f"{name}.png")[..., :3])


@pytest.mark.parametrize("name", GAUGES if UPDATE else sorted(path.stem for path in BASELINE.glob("*.png")))
def test_a_gauge_looks_as_it_did(name: str, run: Run, tmp_path: Path) -> None:
    theme = style.LIGHT if sum(map(ord, name)) % 2 else style.DARK  # half of them each
    canvas, ax = blank(theme)
    getattr(plots, name)(run, ax)
    found = pixels(canvas)
    target = (BASELINE if UPDATE else tmp_path) / f"{name}.png"
    buffer = io.BytesIO()
    imsave(buffer, found, format="png", pil_kwargs={"optimize": True})
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(buffer.getvalue())
    assert off(found, known(name)) <= MOST, f"it looks otherwise now: {target}"


@pytest.mark.parametrize("change", ["curve", "limit", "colour", "verdict", "title"])
def test_what_a_person_would_see_is_seen(change: str, tmp_path: Path) -> None:
    trained = training_run(tmp_path, steps=30)

    def drawn(change: str | None) -> np.ndarray:
        canvas, ax = blank(style.LIGHT)
        with panel(trained, ax, "Loss" if change != "title" else "A quite different title", needs="loss") as p:
            if change != "curve":
                p.line("loss", colour=0 if change != "colour" else 1)
            if change != "limit":
                p.level("limit", 2.0, "limit")
            p.read(Verdict("falls" if change != "verdict" else "rises, and has done so for thirty steps", "healthy"))
        return pixels(canvas)

    assert off(drawn(None), drawn(None)) == 0.0
    assert off(drawn(None), drawn(change)) > MOST
    shaded = np.clip(drawn(None).astype(int) + np.random.default_rng(0).integers(-25, 26, drawn(None).shape), 0, 255)
    assert off(drawn(None), shaded) == 0.0  # edges that are shaded otherwise are not
