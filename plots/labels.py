"""Labels: short texts drawn without laying out lines, which is most of what matplotlib does for a text at every drawing.

They are what moves on a gauge beside its curves: the verdict, names of limits, codes of alerts. Drawing one takes a fifth of
the time of an annotation; in a vector graphic they are text like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Affine2D, Bbox

from cockpit_lite.plots import style

#: Share of a text that is to the left of its place, and below it.
_ACROSS = {"left": 0.0, "center": 0.5, "right": 1.0}
_UPWARDS = {"bottom": 0.0, "center": 0.5, "top": 1.0}


class Word(NamedTuple):
    """A piece of text with its own look."""

    text: str
    colour: str
    size: float
    weight: str = "normal"


class Label(Artist):
    """What rows and notes share: texts of one axes, each at a place that is found when it is drawn."""

    def __init__(self, ax: Axes):
        super().__init__()
        self._ax = ax
        self.set_zorder(7)

    def places(self, renderer: Any) -> tuple[list[tuple[Text, float, float]], Bbox]:
        """Return each text with where its baseline begins, in pixels from the lower left, and the box around them."""
        raise NotImplementedError

    def draw(self, renderer: Any) -> None:
        if self.get_visible():
            height = renderer.get_canvas_width_height()[1]
            places, box = self.places(renderer)
            self.draw_background(renderer, box)
            for text, x, y in places:
                gc = renderer.new_gc()
                gc.set_foreground(text.get_color())
                renderer.draw_text(gc, x, height - y if renderer.flipy() else y, text.get_text(), text.get_fontproperties(), 0)
                gc.restore()
        self.stale = False

    def draw_background(self, renderer: Any, box: Bbox) -> None:
        """Draw what is behind the texts; nothing unless overridden."""

    def get_window_extent(self, renderer: Any = None) -> Bbox:
        """Return the box around the texts, in pixels."""
        figure: Any = self._ax.figure
        return self.places(renderer or figure._get_renderer())[1]  # as matplotlib's own texts do it: not every canvas has one

    def get_tightbbox(self, renderer: Any = None) -> Bbox:
        """Return the same: nothing is clipped."""
        return self.get_window_extent(renderer)

    def _text(self, word: Word) -> Text:
        look: dict[str, Any] = {"weight": word.weight, "size": word.size, "family": style.font_family()}
        text = Text(text=word.text, color=word.colour, parse_math=False, **look)
        text.set_figure(self._ax.figure)
        return text


class Row(Label):
    """Groups of words in a row at the left or right end above or below an axes.

    Args:
        ax: The axes.
        corner: ``"lower left"`` sits with that corner on the upper left one of the axes; ``"upper ..."`` hangs below.
        words: Groups; there is less space inside a group than between two.
        up: Points above the axes' corner.
    """

    #: Points between two words of a group, and between groups.
    _SPACE, _GAP = 3.5, 10.0

    def __init__(self, ax: Axes, corner: str, words: list[list[Word]], up: float):
        super().__init__(ax)
        self._right, self._top, self._up = corner.endswith("right"), corner.startswith("lower"), up
        self._words = words
        self._texts = [[self._text(word) for word in group] for group in words]

    def get_children(self) -> list[Artist]:
        """Return the texts."""
        return [text for group in self._texts for text in group]

    def change(self, words: list[list[Word]]) -> bool:
        """Write other words of the same looks; return False, changing nothing, if the looks are others."""
        if [[word[1:] for word in group] for group in words] != [[word[1:] for word in group] for group in self._words]:
            return False
        for group, texts in zip(words, self._texts, strict=True):
            for word, text in zip(group, texts, strict=True):
                text.set_text(word.text)
        self._words = words
        return True

    def places(self, renderer: Any) -> tuple[list[tuple[Text, float, float]], Bbox]:
        sizes = [[_size(renderer, text, text.get_text()) for text in group] for group in self._texts]
        # As high as any letter of the largest text, so that no row is higher or lower than that of the gauge beside it.
        letters = [_size(renderer, text, "lp") for group in self._texts for text in group]
        ascent, descent = (max((letter[side] for letter in letters), default=0.0) for side in (1, 2))
        space, gap = renderer.points_to_pixels(self._SPACE), renderer.points_to_pixels(self._GAP)
        box = self._ax.bbox
        y = (box.y1 if self._top else box.y0) + renderer.points_to_pixels(self._up) + (descent if self._top else -ascent)
        found, x = [], 0.0
        for group, group_sizes in zip(self._texts, sizes, strict=True):
            for text, (width, _, _) in zip(group, group_sizes, strict=True):
                found.append((text, x, y))
                x += width + space
            x += gap - space
        width = max(0.0, x - gap)
        start = box.x1 - width if self._right else box.x0
        return [(text, start + x, y) for text, x, y in found], Bbox.from_bounds(start, y - descent, width, ascent + descent)


class Note(Label):
    """A text of one or more lines beside a place.

    Args:
        ax: The axes.
        word: The text.
        at: The place, in what ``transform`` takes.
        transform: From there to pixels.
        offset: Points from the place.
        ha: ``"left"``: the text is to the right of that; ``"center"``, ``"right"``.
        va: ``"bottom"``: it is above; ``"center"``, ``"top"``.
        background: Colour of a patch behind it, or None.
    """

    #: Height of a line, in times the height of its letters.
    _LINE = 1.5
    _PAD = 0.6

    def __init__(
        self,
        ax: Axes,
        word: Word,
        at: tuple[float, float],
        transform: Any,
        offset: tuple[float, float],
        ha: str = "left",
        va: str = "bottom",
        background: str | None = None,
    ):
        super().__init__(ax)
        self._word, self._whole, self._background = word, self._text(word), background
        self.at, self._to_pixels, self._offset = at, transform, offset
        self._across, self._upwards = _ACROSS[ha], _UPWARDS[va]
        self._split()

    def get_children(self) -> list[Artist]:
        """Return the text."""
        return [self._whole]

    @property
    def text(self) -> str:
        """What is written."""
        return self._whole.get_text()

    def change(self, text: str, at: tuple[float, float]) -> None:
        """Write another text, at another place."""
        self._whole.set_text(text)
        self.at = at
        self._split()

    def _split(self) -> None:
        lines = self._whole.get_text().split("\n")
        self._lines = [self._whole] if len(lines) == 1 else [self._text(self._word._replace(text=line)) for line in lines]

    def places(self, renderer: Any) -> tuple[list[tuple[Text, float, float]], Bbox]:
        sizes = [_size(renderer, text, text.get_text()) for text in self._lines]
        # As high as any letter, so that no text is higher or lower than its neighbour.
        _, ascent, descent = _size(renderer, self._whole, "lp")
        line = self._LINE * (ascent + descent)
        height = ascent + descent + (len(sizes) - 1) * line
        width = max(size for size, _, _ in sizes)
        x, y = self._to_pixels.transform(self.at)
        left = x + renderer.points_to_pixels(self._offset[0]) - self._across * width
        bottom = y + renderer.points_to_pixels(self._offset[1]) - self._upwards * height
        found = [
            (text, left + self._across * (width - size), bottom + descent + (len(sizes) - 1 - number) * line)
            for number, (text, (size, _, _)) in enumerate(zip(self._lines, sizes, strict=True))
        ]
        return found, Bbox.from_bounds(left, bottom, width, height)

    def draw_background(self, renderer: Any, box: Bbox) -> None:
        if self._background is not None:
            gc = renderer.new_gc()
            gc.set_alpha(0.85)
            gc.set_linewidth(0)
            box = box.padded(renderer.points_to_pixels(self._PAD))
            shape = Affine2D().scale(box.width, box.height).translate(box.x0, box.y0)
            renderer.draw_path(gc, Path.unit_rectangle(), shape, to_rgb(self._background))
            gc.restore()


class Spot(NamedTuple):
    """A place that a note may have; see :class:`Note` for what the parts mean."""

    at: tuple[float, float]
    transform: Any
    offset: tuple[float, float]
    ha: str
    va: str

    def box(self, word: Word, scale: float) -> Bbox:
        """Return about what a word would cover here, in pixels; ``scale``: pixels a point."""
        # Half the size is what a letter of any of our fonts is wide on average, a tenth more where it is bold.
        width, height = (
            (0.6 if word.weight == "bold" else 0.54) * style.breadth() * word.size * len(word.text) * scale,
            1.25 * word.size * scale,
        )
        x, y = self.transform.transform(self.at)
        left = x + self.offset[0] * scale - _ACROSS[self.ha] * width
        return Bbox.from_bounds(left, y + self.offset[1] * scale - _UPWARDS[self.va] * height, width, height)


def free_spot(word: Word, spots: Sequence[Spot], taken: list[Bbox], scale: float) -> Spot:
    """Return the first place where a word covers nothing that was put before it, else the least bad; what it covers is taken."""
    least = None
    for spot in spots:
        box = spot.box(word, scale)
        covered = sum(map(partial(_shared, box), taken))
        if least is None or covered < least[0]:
            least = covered, spot, box
        if not covered:
            break
    assert least is not None, "a name needs a place"
    taken.append(least[2])
    return least[1]


def _shared(one: Bbox, other: Bbox) -> float:
    """Return the area that two boxes share; plain numbers, as it is asked some hundred times a refresh."""
    (left, bottom), (right, top) = one.min, one.max
    (other_left, other_bottom), (other_right, other_top) = other.min, other.max
    width, height = min(right, other_right) - max(left, other_left), min(top, other_top) - max(bottom, other_bottom)
    return float(width * height) if width > 0 and height > 0 else 0.0


def _size(renderer: Any, text: Text, written: str) -> tuple[float, float, float]:
    """Return width, ascent and descent of what is written in the look of a text."""
    width, height, descent = renderer.get_text_width_height_descent(written, text.get_fontproperties(), False)
    return width, height - descent, descent
