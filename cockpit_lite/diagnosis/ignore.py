"""Silencing: findings that the user does not want to hear of, everywhere or in some modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.errors import SetupError


class Ignored:
    """What ``ignore=[...]`` asks for.

    Args:
        entries: A code or name, ``"CL305"`` or ``"dead-units"``, for a finding that is never wanted; with ``@`` and a pattern,
            ``"CL305@encoder.*"``, for one that is not wanted of modules and parameters whose names match.
        rules: All there are.

    Raises:
        SetupError: if an entry names no rule.
    """

    def __init__(self, entries: Iterable[str], rules: Sequence[Rule]):
        if isinstance(entries, str):
            raise SetupError(f"ignore= takes a list of codes, such as [{entries!r}], not a string.")
        known = {key: rule.code for rule in rules for key in (rule.code, rule.name)}
        self.codes: set[str] = set()
        self._patterns: dict[str, list[str]] = {}
        for entry in entries:
            key, at, pattern = str(entry).partition("@")
            if key not in known:
                raise SetupError(f"ignore= names {key!r}, which is no finding. Known are: {', '.join(known)}.")
            if at:
                self._patterns.setdefault(known[key], []).append(pattern)
            else:
                self.codes.add(known[key])

    def wanted(self, alert: Alert) -> Alert | None:
        """Return the alert without the places that are ignored, or None if nothing is left of it.

        >>> from cockpit_lite.diagnosis import RULES
        >>> alert = Alert("CL305", "dead-units", "warning", 3, "Dead.", "Mend.", where=("encoder.relu", "head.relu"))
        >>> Ignored(["dead-units@encoder.*"], RULES).wanted(alert).where
        ('head.relu',)
        >>> Ignored(["CL305@*.relu"], RULES).wanted(alert) is None
        True
        """
        if alert.code in self.codes:
            return None
        patterns = self._patterns.get(alert.code, ())
        if not patterns or not alert.where:
            return alert
        where = tuple(name for name in alert.where if not any(fnmatchcase(name, pattern) for pattern in patterns))
        return dataclasses.replace(alert, where=where) if where else None
