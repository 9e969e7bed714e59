"""Artists: what is drawn on one axes, by key, so that saying it again changes it in place of drawing it anew.

Some of it belongs to the *frame*, with the axes' own ticks and lines: what stays as it is while the run grows. The rest is
*moving* and is painted over the frame at every refresh. (plots/painter.py)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from cockpit_lite.plots.curve import Area, Curve
from cockpit_lite.plots.labels import Note, Row, Word

#: Options of a line that may change from one round to the next.
_CHANGING = ("linewidth", "alpha", "marker", "color")


class Artists:
    """The artists of one axes. Between :meth:`begin` and :meth:`end` everything that is still wanted is said once.

    Attributes:
        frame: Grows with every change of what belongs to the frame.
        moved: Grows with every change of the rest.
    """

    def __init__(self, ax: Axes):
        self.ax = ax
        self.frame = 0
        self.moved = 0
        self._known: dict[Any, tuple[Any, Artist]] = {}
        self._in_frame: set[Any] = set()
        self._said: set[Any] = set()

    @property
    def moving(self) -> list[Artist]:
        """What is painted over the frame, from back to front."""
        moving = [artist for key, (_, artist) in self._known.items() if key not in self._in_frame]
        return sorted(moving, key=lambda artist: artist.get_zorder())

    def begin(self) -> None:
        """Start a round."""
        self._said = set()

    def end(self) -> None:
        """Remove what was not said in this round."""
        for key in self._known.keys() - self._said:
            self._remove(key)

    def line(
        self, key: Any, ax: Axes, steps: np.ndarray, values: np.ndarray, options: dict[str, Any], frame: bool = False
    ) -> None:
        """Draw a line, or give the one of that key new data; ``frame``: whether it belongs to the frame."""
        content = (steps, values, {name: value for name, value in options.items() if name in _CHANGING})
        if self._is_known(key, content):
            return
        if key in self._known:
            known, line = self._known[key]
            line.set_data(steps, values)  # type: ignore[attr-defined]
            if known[2] != content[2]:
                line.set(**content[2])
        else:
            line = ax.add_line(Curve(steps, values, **options))
        self._keep(key, content, line, frame)

    def band(self, key: Any, ax: Axes, steps: np.ndarray, low: np.ndarray, high: np.ndarray, **options: Any) -> None:
        """Shade between two series, except where one of them is NaN."""
        if self._is_known(key, (steps, low, high, options)):
            return
        there = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
        pieces = np.split(there, np.flatnonzero(np.diff(there) > 1) + 1) if len(there) else []
        outlines = [
            np.concatenate([np.column_stack([steps[p], low[p]]), np.column_stack([steps[p], high[p]])[::-1]]) for p in pieces
        ]
        if key in self._known:
            shape: Any = self._known[key][1]
            shape.change(outlines)
        else:
            shape = Area(outlines, **options)
            ax.add_collection(shape, autolim=False)
        self._keep(key, (steps, low, high, options), shape)

    def span(self, key: Any, corner: tuple[float, float], width: float, height: float, transform: Any, **options: Any) -> None:
        """Shade a rectangle, part of the frame; its sides are in what ``transform`` takes."""
        content = (corner, width, height, options)
        if self._is_known(key, content):
            return
        if key in self._known:
            rectangle: Any = self._known[key][1]
            rectangle.set_bounds(*corner, width, height)
            rectangle.set(**options)
        else:
            rectangle = Rectangle(corner, width, height, transform=transform, **options)
            rectangle.set_clip_path(self.ax.patch)
            self.ax.add_artist(rectangle)  # unlike add_patch it leaves the limits alone
        self._keep(key, content, rectangle, frame=True)

    def area(self, key: Any, artist: Artist) -> None:
        """Put an area that was just drawn in the place of the one of that key: not every area can be given new data."""
        if key in self._known:
            self._remove(key)
        self._keep(key, None, artist)

    def image(self, key: Any, image: np.ndarray, extent: tuple[float, float, float, float], zorder: float) -> None:
        """Draw a picture of red, green, blue and opacity in data coordinates, first row on top, or change the one of that key."""
        if self._is_known(key, (image, extent)):
            return
        if key in self._known:
            picture: Any = self._known[key][1]
        else:
            picture = AxesImage(self.ax, interpolation="nearest", origin="upper", zorder=zorder)
            picture.set_clip_path(self.ax.patch)
            self.ax.add_image(picture)
        picture.set_data(image)
        picture.set_extent(extent)
        self._keep(key, (image, extent), picture)

    def note(
        self,
        key: Any,
        text: str,
        at: tuple[float, float],
        transform: Any,
        offset: tuple[float, float],
        *,
        color: str,
        size: float,
        weight: str = "normal",
        **options: Any,
    ) -> None:
        """Write a short text beside a place; see :class:`Note` for the place and the options."""
        word = Word(text, color, size, weight)
        look = (word[1:], offset, options)
        if self._is_known(key, (word.text, at, look)):
            return
        known: Any = self._known.get(key)
        if known is not None and known[0][2] == look:  # only its text or its place is another one
            note = known[1]
            note.change(word.text, at)
        else:
            if known is not None:
                self._remove(key)
            note = self.ax.add_artist(Note(self.ax, word, at, transform, offset, **options))
        self._keep(key, (word.text, at, look), note)

    def words(self, key: str, corner: str, words: list[list[Word]], up: float, frame: bool = False) -> None:
        """Write groups of words in a row at the left or right end above or below the axes.

        Args:
            key: Of the row.
            corner: See :class:`Row`, as the next two.
            words: Groups.
            up: Points above the axes' corner.
            frame: Whether it belongs to the frame.
        """
        if self._is_known(key, words):
            return
        row: Any = self._known[key][1] if key in self._known else None
        if row is None or not row.change(words):
            if row is not None:
                self._remove(key)
            row = self.ax.add_artist(Row(self.ax, corner, words, up))
        self._keep(key, words, row, frame)

    def _is_known(self, key: Any, content: Any) -> bool:
        """Return whether the artist of that key already shows ``content``."""
        if key not in self._known or not _same(self._known[key][0], content):
            return False
        self._said.add(key)
        return True

    def _keep(self, key: Any, content: Any, artist: Artist, frame: bool = False) -> None:
        (self._in_frame.add if frame else self._in_frame.discard)(key)
        self._known[key] = (content, artist)
        self._said.add(key)
        self._changed(key)

    def _remove(self, key: Any) -> None:
        self._changed(key)
        self._known.pop(key)[1].remove()
        self._in_frame.discard(key)

    def _changed(self, key: Any) -> None:
        if key in self._in_frame:
            self.frame += 1
        else:
            self.moved += 1


def _same(one: Any, other: Any) -> bool:
    """Return whether two descriptions are the same, NaN being like NaN."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one is other or (one.shape == other.shape and np.array_equal(one, other, equal_nan=True))
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
