"""Quick text: words that were drawn before are copied, not drawn anew. Most of the time of a page of gauges goes into its text.

matplotlib lays out and draws every letter of every text each time, about a tenth of a millisecond a letter. Between two
refreshes only digits change. So a renderer is given a memory of words and single digits, which it puts side by side at whole
pixels.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg

#: A digit, a word, or a space: the pieces that come again.
_PIECE = re.compile(r"\d|[^\d\s]+|\s")
_MOST_PIECES = 4_096
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
        image: Red, green, blue and opacity, first row on top; None: nothing to be seen.
        left: Of the image, from the piece's beginning.
        bottom: Of the image, from the baseline, upwards.
    """

    advance: float
    width: float
    ascent: float
    descent: float
    image: np.ndarray | None
    left: int
    bottom: int


def remember_text(renderer: RendererAgg) -> None:
    """Let a renderer remember the pieces of text that it draws; once is enough."""
    if not hasattr(renderer, _ATTRIBUTE):
        setattr(renderer, _ATTRIBUTE, _Memory(renderer))


class _Memory:
    """Stands in for two methods of a renderer."""

    def __init__(self, renderer: Any):
        self._renderer = renderer
        self._draw, self._measure = renderer.draw_text, renderer.get_text_width_height_descent
        self._pieces: OrderedDict[Any, _Piece] = OrderedDict()
        renderer.draw_text, renderer.get_text_width_height_descent = self.draw_text, self.get_text_width_height_descent

    def draw_text(
        self, gc: Any, x: float, y: float, s: str, prop: Any, angle: float, ismath: Any = False, mtext: Any = None
    ) -> None:
        """Draw a text from its pieces; formulas and turned text as ever."""
        if ismath or angle:
            self._draw(gc, x, y, s, prop, angle, ismath, mtext)
            return
        baseline = round(self._renderer.height - y)
        for piece in self._pieces_of(s, prop, tuple(gc.get_rgb()[:3])):
            if piece.image is not None:
                self._renderer.draw_image(gc, round(x) + piece.left, baseline + piece.bottom, piece.image)
            x += piece.advance

    def get_text_width_height_descent(self, s: str, prop: Any, ismath: Any) -> tuple[float, float, float]:
        """Measure a text by its pieces."""
        pieces = [] if ismath else self._pieces_of(s, prop, (0.0, 0.0, 0.0))
        if not pieces:
            return self._measure(s, prop, ismath)
        width = sum(piece.advance for piece in pieces[:-1]) + pieces[-1].width
        descent = max(piece.descent for piece in pieces)
        return width, max(piece.ascent for piece in pieces) + descent, descent

    def _pieces_of(self, text: str, prop: Any, colour: tuple[float, ...]) -> list[_Piece]:
        look, found = (hash(prop), colour), []
        for piece in _PIECE.findall(text):
            key = (piece, look)
            known = self._pieces.get(key)
            if known is None:
                known = self._pieces[key] = self._make(piece, prop, colour)
                if len(self._pieces) > _MOST_PIECES:
                    self._pieces.popitem(last=False)
            else:
                self._pieces.move_to_end(key)
            found.append(known)
        return found

    def _make(self, text: str, prop: Any, colour: tuple[float, ...]) -> _Piece:
        """Draw a piece on a sheet of its own."""
        width, height, descent = self._measure(text, prop, False)
        # A box ends with the ink; between two strokes it is as far as the next piece begins.
        advance = self._measure(f"|{text}|", prop, False)[0] - self._measure("||", prop, False)[0]
        size = int(width) + 2 * _ROOM + 2, int(height) + 2 * _ROOM + 2
        sheet = RendererAgg(*size, self._renderer.dpi)
        gc = sheet.new_gc()
        gc.set_foreground((0.0, 0.0, 0.0), isRGBA=True)
        baseline = _ROOM + int(np.ceil(descent))
        sheet.draw_text(gc, _ROOM, size[1] - baseline, text, prop, 0)
        opacity = np.asarray(sheet.buffer_rgba())[..., 3]
        inked = opacity.any()
        image = None
        if inked:
            image = np.empty((*opacity.shape, 4), np.uint8)
            image[..., :3] = np.round(255 * np.array(colour))
            image[..., 3] = opacity
            image = np.ascontiguousarray(image[::-1])  # draw_image begins below
        return _Piece(advance, width, height - descent, descent, image, -_ROOM, -baseline)
