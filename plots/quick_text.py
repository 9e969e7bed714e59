"""Quick text: words that were drawn before are copied, not drawn anew. Most of the time of a page of gauges goes into its text.

matplotlib lays out and draws every letter of every text each time, about a tenth of a millisecond a letter. Between two
refreshes only digits change. So a renderer is given a memory of words and single digits, which it puts side by side at whole
pixels.
"""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg

#: A digit, a word, or a space: the pieces that come again.
_PIECE = re.compile(r"\d|[^\d\s]+|\s")
_MOST_PIECES = 4_096
_MOST_LINES = 1_024
_ATTRIBUTE = "_cockpit_lite_text"
#: Pixels around a piece, for letters that reach out of their box.
_ROOM = 4


class _Piece(NamedTuple):
    """A piece of text as it was drawn once.

    Attributes:
        advance: Pixels to where the next piece begins.
        width: Of its box.
        ascent: Of its box above the baseline.
        descent: And below.
        opacity: Of its pixels, first row on top, with some room around its box; None: nothing to be seen.
        below: Rows of these below the baseline.
    """

    advance: float
    width: float
    ascent: float
    descent: float
    opacity: np.ndarray | None
    below: int


class _Line(NamedTuple):
    """A text made of pieces.

    Attributes:
        width: Of its box.
        ascent: Of its box above the baseline.
        descent: And below.
        opacity: As of a piece.
        below: As of a piece.
        images: By colour, first row below, as a renderer wants them.
    """

    width: float
    ascent: float
    descent: float
    opacity: np.ndarray | None
    below: int
    images: dict[tuple[float, ...], np.ndarray]


def remember_text(renderer: RendererAgg) -> None:
    """Let a renderer remember the pieces of text that it draws; once is enough."""
    if not hasattr(renderer, _ATTRIBUTE):
        setattr(renderer, _ATTRIBUTE, _Memory(renderer))


class _Memory:
    """Stands in for two methods of a renderer."""

    def __init__(self, renderer: Any):
        self._renderer = renderer
        self._draw, self._measure = renderer.draw_text, renderer.get_text_width_height_descent
        self._pieces: OrderedDict[tuple[str, int], _Piece] = OrderedDict()
        self._lines: OrderedDict[tuple[str, int], _Line] = OrderedDict()
        renderer.draw_text, renderer.get_text_width_height_descent = self.draw_text, self.get_text_width_height_descent

    def draw_text(
        self, gc: Any, x: float, y: float, s: str, prop: Any, angle: float, ismath: Any = False, mtext: Any = None
    ) -> None:
        """Draw a text from its pieces; formulas and turned text as ever."""
        if ismath or angle:
            self._draw(gc, x, y, s, prop, angle, ismath, mtext)
            return
        line = self._line_of(s, prop)
        if line is not None and line.opacity is not None:
            colour = tuple(gc.get_rgb()[:3])
            image = line.images.get(colour)
            if image is None:
                image = np.empty((*line.opacity.shape, 4), np.uint8)
                image[..., :3] = np.round(255 * np.array(colour))
                image[..., 3] = line.opacity
                image = line.images[colour] = np.ascontiguousarray(image[::-1])  # draw_image begins below
            baseline = round(self._renderer.height - y)
            self._renderer.draw_image(gc, round(x) - _ROOM, baseline - line.below, image)

    def get_text_width_height_descent(self, s: str, prop: Any, ismath: Any) -> tuple[float, float, float]:
        """Measure a text by its pieces."""
        line = None if ismath else self._line_of(s, prop)
        if line is None:
            return self._measure(s, prop, ismath)
        return line.width, line.ascent + line.descent, line.descent

    def _line_of(self, text: str, prop: Any) -> _Line | None:
        key = text, hash(prop)
        known = self._lines.get(key)
        if known is not None:
            self._lines.move_to_end(key)
            return known
        pieces = [self._piece_of(piece, prop, key[1]) for piece in _PIECE.findall(text)]
        if not pieces:
            return None
        line = self._lines[key] = _put_together(pieces)
        if len(self._lines) > _MOST_LINES:
            self._lines.popitem(last=False)
        return line

    def _piece_of(self, text: str, prop: Any, look: int) -> _Piece:
        key = text, look
        known = self._pieces.get(key)
        if known is None:
            known = self._pieces[key] = self._make(text, prop)
            if len(self._pieces) > _MOST_PIECES:
                self._pieces.popitem(last=False)
        else:
            self._pieces.move_to_end(key)
        return known

    def _make(self, text: str, prop: Any) -> _Piece:
        """Draw a piece on a sheet of its own."""
        width, height, descent = self._measure(text, prop, False)
        # A box ends with the ink; between two strokes it is as far as the next piece begins.
        advance = self._measure(f"|{text}|", prop, False)[0] - self._measure("||", prop, False)[0]
        size = int(width) + 2 * _ROOM + 2, int(height) + 2 * _ROOM + 2
        sheet = RendererAgg(*size, self._renderer.dpi)
        gc = sheet.new_gc()
        gc.set_foreground((0.0, 0.0, 0.0), isRGBA=True)
        below = _ROOM + int(np.ceil(descent))
        sheet.draw_text(gc, _ROOM, size[1] - below, text, prop, 0)
        opacity = np.asarray(sheet.buffer_rgba())[..., 3].copy()
        return _Piece(advance, width, height - descent, descent, opacity if opacity.any() else None, below)


def _put_together(pieces: list[_Piece]) -> _Line:
    """Put pieces side by side at whole pixels."""
    advances = [0.0, *itertools.accumulate(piece.advance for piece in pieces)]
    width = advances[-2] + pieces[-1].width
    ascent, descent = max(piece.ascent for piece in pieces), max(piece.descent for piece in pieces)
    seen = [
        (piece.opacity, round(advance), piece.below)
        for piece, advance in zip(pieces, advances, strict=False)
        if piece.opacity is not None
    ]
    if not seen:
        return _Line(width, ascent, descent, None, 0, {})
    below = max(under for _, _, under in seen)
    above = max(len(opacity) - under for opacity, _, under in seen)
    whole = np.zeros((above + below, max(left + opacity.shape[1] for opacity, left, _ in seen)), np.uint8)
    for opacity, left, under in seen:
        top = above - (len(opacity) - under)
        place = whole[top : top + len(opacity), left : left + opacity.shape[1]]
        np.maximum(place, opacity, out=place)
    return _Line(width, ascent, descent, whole, below, {})
