"""Animation: the cockpit page, or another layout of gauges, as it grew while the run went on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib.animation import AbstractMovieWriter, FFMpegWriter, PillowWriter

from cockpit_lite.errors import CockpitError
from cockpit_lite.plots.layout import OVERVIEW, Layout
from cockpit_lite.plots.moment import Moment
from cockpit_lite.plots.page import Page
from cockpit_lite.run import Run

#: Written by pillow, which comes with matplotlib; everything else needs ffmpeg.
_PICTURES = (".gif", ".webp", ".apng", ".png")
#: Seconds that the last frame is held for, so that it can be read.
_HOLD = 1.0


def animate(
    run: Run,
    path: str | os.PathLike[str],
    *,
    layout: Layout = OVERVIEW,
    theme: str = "light",
    frames: int = 60,
    frames_per_second: float = 12.0,
    dpi: int = 70,
) -> Path:
    """Write an animation of a run: a GIF, WebP or animated PNG, or with ffmpeg installed an MP4 or WebM.

    A frame of the whole page takes about a third of a second.

    Args:
        run: The run, as far as it has come.
        path: Of the file; its ending says which kind.
        layout: Which gauges.
        theme: ``"light"`` or ``"dark"``.
        frames: How many moments are shown, evenly spread over the steps.
        frames_per_second: How many of them in a second; the last one stays for a second.
        dpi: Dots per inch; the page is 14.4 inches wide.

    Raises:
        CockpitError: if the run has no steps, or ffmpeg is needed and missing.
    """
    path = Path(path)
    if run.last_step is None:
        raise CockpitError(f"{run.folder} has no step to animate.")
    writer = _writer(path, frames_per_second)
    page, moment = Page(theme, layout), Moment(run)
    steps = np.unique(np.linspace(0, run.last_step, max(frames, 1)).round().astype(int))
    with writer.saving(page.figure, str(path), dpi):
        for step in steps:
            moment.move_to(int(step))
            page.update(moment)
            writer.grab_frame(facecolor=page.figure.get_facecolor())
        page.update(run)  # as it ended
        for _ in range(max(1, round(_HOLD * frames_per_second))):
            writer.grab_frame(facecolor=page.figure.get_facecolor())
    return path


def _writer(path: Path, frames_per_second: float) -> AbstractMovieWriter:
    if path.suffix.lower() in _PICTURES:
        return PillowWriter(fps=frames_per_second)  # type: ignore[arg-type]
    if not FFMpegWriter.isAvailable():
        raise CockpitError(
            f"{path.suffix or 'a film'} needs ffmpeg, which is not installed; one of {', '.join(_PICTURES)} does not."
        )
    return FFMpegWriter(fps=frames_per_second)  # type: ignore[arg-type]
