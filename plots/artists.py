"""Artists: what is drawn on one axes, by key, so that saying it again changes it in place of drawing it anew."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea
from matplotlib.transforms import ScaledTranslation

from cockpit_lite.plots import style

#: Options of a line that may change from one round to the next.
_CHANGING = ("linewidth", "alpha", "marker", "color")


class Word(NamedTuple):
    """A piece of text with its own look."""

    text: str
    colour: str
    size: float
    weight: str = "normal"


class Artists:
    """The artists of one axes. Between :meth:`begin` and :meth:`end` everything that is still wanted is said once."""

    def __init__(self, ax: Axes):
        self.ax = ax
        self._known: dict[Any, tuple[Any, Artist]] = {}
        self._said: set[Any] = set()

    def begin(self) -> None:
        """Start a round."""
        self._said = set()

    def end(self) -> None:
        """Remove what was not said in this round."""
        for key in self._known.keys() - self._said:
            self._known.pop(key)[1].remove()

    def line(self, key: Any, ax: Axes, steps: np.ndarray, values: np.ndarray, options: dict[str, Any]) -> None:
        """Draw a line, or give the one of that key new data."""
        if key in self._known:
            line: Any = self._known[key][1]
            line.set_data(steps, values)
            line.set(**{name: value for name, value in options.items() if name in _CHANGING})
        else:
            (line,) = ax.plot(steps, values, **options)
        self._keep(key, None, line)

    def area(self, key: Any, artist: Artist) -> None:
        """Put an area that was just drawn in the place of the one of that key: areas cannot be given new data."""
        if key in self._known:
            self._known.pop(key)[1].remove()
        self._keep(key, None, artist)

    def image(self, key: Any, image: np.ndarray, extent: tuple[float, float, float, float], zorder: float) -> None:
        """Draw a picture of red, green, blue and opacity in data coordinates, first row on top, or change the one of that key."""
        if key in self._known:
            picture: Any = self._known[key][1]
        else:
            picture = AxesImage(self.ax, interpolation="nearest", origin="upper", zorder=zorder)
            picture.set_clip_path(self.ax.patch)
            self.ax.add_image(picture)
        picture.set_data(image)
        picture.set_extent(extent)
        self._keep(key, None, picture)

    def note(
        self, key: Any, text: str, at: tuple[float, float], transform: Any, offset: tuple[float, float], **options: Any
    ) -> None:
        """Write a short text beside a place; ``offset`` in points, ``backgroundcolor`` for a patch behind it."""
        content = (text, at, offset, tuple(sorted(options.items())))
        if self._unchanged(key, content):
            return
        note = self.ax.annotate(
            text,
            at,
            xycoords=transform,
            xytext=offset,
            textcoords="offset points",
            family=style.font_family(),
            parse_math=False,
            annotation_clip=False,
            zorder=7,
            **options,
        )
        if "backgroundcolor" in options:
            note.set_bbox({"facecolor": options["backgroundcolor"], "edgecolor": "none", "pad": 0.6, "alpha": 0.85})
        self._keep(key, content, note)

    def words(self, key: str, corner: str, words: list[list[Word]], up: float) -> None:
        """Write groups of words in a row at the left or right end above or below the axes.

        Args:
            key: Of the row.
            corner: ``"lower left"`` sits with that corner on the upper left one of the axes; ``"upper ..."`` hangs below.
            words: Groups; there is less space inside a group than between two.
            up: Points above the axes' corner.
        """
        if self._unchanged(key, words):
            return
        groups: list[Artist] = [
            HPacker(children=[_text(word) for word in group], pad=0, sep=3.5, align="baseline") for group in words
        ]
        box = AnchoredOffsetbox(
            corner,
            child=HPacker(children=groups, pad=0, sep=10, align="baseline"),
            frameon=False,
            pad=0,
            borderpad=0,
            bbox_to_anchor=(1.0 if corner.endswith("right") else 0.0, 1.0 if corner.startswith("lower") else 0.0),
            bbox_transform=self.ax.transAxes + ScaledTranslation(0, up / 72, self.ax.figure.dpi_scale_trans),
        )
        self._keep(key, words, self.ax.add_artist(box))

    def _unchanged(self, key: Any, content: Any) -> bool:
        """Return whether the artist of that key already shows ``content``; if not, make room for a new one."""
        if key not in self._known:
            return False
        if self._known[key][0] == content:
            self._said.add(key)
            return True
        self._known.pop(key)[1].remove()
        return False

    def _keep(self, key: Any, content: Any, artist: Artist) -> None:
        self._known[key] = (content, artist)
        self._said.add(key)


def _text(word: Word) -> TextArea:
    look = {"color": word.colour, "weight": word.weight, "size": word.size, "family": style.font_family(), "parse_math": False}
    return TextArea(word.text, textprops=look)
