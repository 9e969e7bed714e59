"""Episodes: a finding begins, and may end. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass

from cockpit_lite.diagnosis.rule import Rule

#: So many looks in a row that find nothing end an episode: fewer can be luck.
PATIENCE = 10
#: What comes and goes more often than this is not reported anew.
MOST_EPISODES = 3


@dataclass
class _Open:
    """An episode that goes on: where its alert stands, when it was last found, and how often it was not since."""

    place: int
    last: int
    missed: int = 0


class Episodes:
    """Keeps the episodes of a run apart; told of every look of a rule that has raised an alert.

    >>> from cockpit_lite.diagnosis import RULES
    >>> rule, episodes = next(rule for rule in RULES if rule.passes), Episodes()
    >>> episodes.begin(rule, place=0, step=7)
    >>> [episodes.look(rule, found=step < 9, step=step) for step in range(8, 19)][-1]
    (0, 8)
    """

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}
        self._counts: dict[str, int] = {}

    def begin(self, rule: Rule, place: int, step: int) -> None:
        """A rule has raised an alert; ``place`` is where it stands in the list of all."""
        self._counts[rule.code] = self._counts.get(rule.code, 0) + 1
        if rule.passes:
            self._open[rule.code] = _Open(place, step)

    def look(self, rule: Rule, found: bool, step: int) -> tuple[int, int] | None:
        """A rule has looked again. Return the place of its alert and the last step of it if it is over, else None."""
        episode = self._open[rule.code]
        if found:
            episode.last, episode.missed = step, 0
            return None
        episode.missed += 1
        if episode.missed < PATIENCE:
            return None
        del self._open[rule.code]
        return episode.place, episode.last

    def is_open(self, rule: Rule) -> bool:
        """Return whether an episode of the rule goes on that may end."""
        return rule.code in self._open

    def may_begin_again(self, rule: Rule) -> bool:
        """Return whether the rule may raise another alert."""
        return self._counts.get(rule.code, 0) < MOST_EPISODES
