"""Curves and areas that are drawn from their points: what matplotlib keeps of theirs between two drawings takes as long again."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.transforms import IdentityTransform


class Curve(Line2D):
    """A line of an axes."""

    def set_data(self, *args: Any) -> None:
        """Give it other points."""
        super().set_data(*args)
        self._points = np.column_stack([np.asarray(column, np.float64) for column in (args if len(args) == 2 else args[0])])

    def draw(self, renderer: Any) -> None:
        """Draw it; dashes and markers as ever."""
        if not self.get_visible():
            return
        if self.get_linestyle() != "-" or self.get_marker() not in ("", "None", None) or self.get_path_effects():
            super().draw(renderer)
            return
        renderer.open_group("line2d", self.get_gid())
        gc = renderer.new_gc()
        self._set_gc_clip(gc)  # type: ignore[attr-defined]
        gc.set_alpha(self.get_alpha())
        gc.set_foreground(self.get_color())
        gc.set_linewidth(self.get_linewidth())
        gc.set_joinstyle(self.get_solid_joinstyle())
        gc.set_capstyle(self.get_solid_capstyle())
        renderer.draw_path(gc, Path(self.get_transform().transform(self._points)), IdentityTransform())
        gc.restore()
        renderer.close_group("line2d")
        self.stale = False


class Area(PolyCollection):
    """The area between two series, of one colour and without an outline.

    Args:
        outlines: Of its pieces.
        options: Those of a PolyCollection; ``facecolor`` and ``alpha`` count.
    """

    def __init__(self, outlines: list[np.ndarray], **options: Any):
        self._outlines = outlines
        super().__init__([], **options)

    def change(self, outlines: list[np.ndarray]) -> None:
        """Give it other outlines."""
        self._outlines = outlines
        self.stale = True

    @property
    def outlines(self) -> list[np.ndarray]:
        """The outlines of its pieces."""
        return self._outlines

    def draw(self, renderer: Any) -> None:
        """Draw it."""
        if not self.get_visible():
            return
        renderer.open_group("area", self.get_gid())
        transform, colour = self.get_transform(), np.asarray(self.get_facecolor())[0]
        gc = renderer.new_gc()
        self._set_gc_clip(gc)  # type: ignore[attr-defined]
        gc.set_alpha(self.get_alpha())
        gc.set_linewidth(0)
        for outline in self._outlines:
            renderer.draw_path(gc, Path(transform.transform(outline)), IdentityTransform(), tuple(colour))
        gc.restore()
        renderer.close_group("area")
        self.stale = False
