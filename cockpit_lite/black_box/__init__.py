"""The black box: the step that went wrong is kept, and can be run again to name the operation that did it.

    cockpit-lite replay RUN --model package.module:make_model

calls the function that makes the model, puts the weights of the kept step into it, and runs the step once more under observation.
"""

from __future__ import annotations

from cockpit_lite.black_box.box import DEFAULT_LIMIT, BlackBox
from cockpit_lite.black_box.kept_step import KeptStep, kept_steps, load_step
from cockpit_lite.black_box.replay import Verdict, replay

__all__ = ["DEFAULT_LIMIT", "BlackBox", "KeptStep", "Verdict", "kept_steps", "load_step", "replay"]
