"""Which settings of several runs differ."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cockpit_lite.report.settings import flat_settings
from cockpit_lite.report.text import format_value, listed

#: Entries of run.json that say how the run went, not how it was set up; or the format of the file.
_NO_SETTINGS = ("schema", "created", "ended", "status", "exception", "pid", "steps", "cost", "host", "resumed")
#: Where functions live in memory is different every time.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
#: From so many differing entries of one group on, such as the shapes of the parameters, one row tells of all of them.
_MOST_OF_A_GROUP = 6
NOT_SET = "not set"


@dataclass(frozen=True)
class Setting:
    """A setting that differs between runs, with its value in each, in words."""

    name: str
    values: tuple[str, ...]


def differing_settings(infos: Sequence[Mapping[str, Any]]) -> tuple[list[Setting], int]:
    """Return the settings that are not the same in all runs, and the number of those that are."""
    tables = [_table(info) for info in infos]
    names = list(dict.fromkeys(name for table in tables for name in table))
    values = {name: [_plain(table.get(name, _Missing)) for table in tables] for name in names}
    different = {name: row for name, row in values.items() if any(value != row[0] for value in row)}
    groups: dict[str, list[str]] = {}
    for name in different:
        groups.setdefault(re.split(r"[.\[]", name)[0], []).append(name)
    rows = []
    for group, members in groups.items():
        if len(members) > _MOST_OF_A_GROUP and group != "optimizer":
            rows.append(_summary(group, members, different))
        else:
            rows += [Setting(name, _in_words(different[name])) for name in members]
    return rows, len(names) - len(different)


def _table(info: Mapping[str, Any]) -> dict[str, Any]:
    # Nearly every run has one optimizer: then its settings need no number.
    info = {key: value[0] if isinstance(value, list) and len(value) == 1 else value for key, value in info.items()}
    return {name: value for name, value in flat_settings(info) if re.split(r"[.\[]", name)[0] not in _NO_SETTINGS}


class _Missing:
    """Stands for a setting that a run does not have."""


def _plain(value: Any) -> Any:
    if value is _Missing:
        return value
    if isinstance(value, str):
        return _ADDRESS.sub("", value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return sorted(_ADDRESS.sub("", item) for item in value)
    return json.loads(json.dumps(value))


def _in_words(row: list[Any]) -> tuple[str, ...]:
    """Return one text a run; of long lists only what is not in all of them."""
    lists = [value for value in row if isinstance(value, list) and all(isinstance(item, str) for item in value)]
    if len(lists) == len(row):
        shared = set(lists[0]).intersection(*lists[1:])
        if shared:
            own = [[item for item in value if item not in shared] for value in lists]
            return tuple(f"{len(shared)} shared" + (f", and {listed(items)}" if items else "") for items in own)
    return tuple(NOT_SET if value is _Missing else format_value(value) for value in row)


def _summary(group: str, members: list[str], different: dict[str, list[Any]]) -> Setting:
    texts = []
    for run in range(len(different[members[0]])):
        there = [(name, different[name][run]) for name in members if different[name][run] is not _Missing]
        texts.append(f"{len(there)}, such as {there[0][0]}: {format_value(there[0][1])}" if there else NOT_SET)
    return Setting(f"{group} ({len(members)} entries)", tuple(texts))
