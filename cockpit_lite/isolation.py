"""A failure of ours never reaches the user's training: the failing part is switched off, with one warning."""

from __future__ import annotations

import logging
import warnings

from cockpit_lite.errors import CockpitWarning

logger = logging.getLogger("cockpit_lite")


def warn(message: str, error: BaseException | None = None) -> None:
    """Warn the user without ever raising, also where warnings are turned into errors."""
    if error is not None:
        logger.debug("switched off", exc_info=error)
        message = f"{message} ({type(error).__name__}: {error})"
    try:
        warnings.warn(message, CockpitWarning, stacklevel=3)
    except Warning:  # the user runs with warnings as errors: their training must go on all the same
        logger.warning(message)
