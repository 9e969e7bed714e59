"""From ``instruments=`` to a list of instruments: presets, names and instances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cockpit_lite.errors import SetupError, UnknownInstrumentError
from cockpit_lite.instrument import Instrument
from cockpit_lite.instruments import INSTRUMENTS
from cockpit_lite.isolation import warn
from cockpit_lite.plugins import INSTRUMENTS as PLUGINS
from cockpit_lite.plugins import plugins

#: Recorded at every step in any case.
ALWAYS = ("loss", "learning_rate", "step_time")

#: From cheap to complete; each includes the ones before it.
PRESETS = ("light", "standard", "full")


def resolve(instruments: str | Instrument | Iterable[str | Instrument | type[Instrument]]) -> list[Instrument]:
    """Return fresh instances for preset and instrument names, and the given instances themselves.

    Raises:
        UnknownInstrumentError: if a name is neither a preset nor an instrument.
        SetupError: if two different instruments share a name, or an entry is no instrument.
    """
    several = isinstance(instruments, Iterable) and not isinstance(instruments, (str, Instrument))
    entries: list[Any] = list(instruments) if several else [instruments]  # type: ignore[arg-type]
    known = _known()
    chosen: dict[str, Instrument] = {name: known[name]() for name in ALWAYS}
    given: set[str] = set()
    for entry in entries:
        if isinstance(entry, str):
            for name in _names(entry, known):
                if name not in chosen:
                    chosen[name] = known[name]()
            continue
        instance = entry() if isinstance(entry, type) and issubclass(entry, Instrument) else entry
        if not isinstance(instance, Instrument):
            raise SetupError(f"instruments= takes preset names, instrument names and Instrument objects, not {entry!r}.")
        instance.validate()
        if instance.name in given:
            raise SetupError(f"Two instruments are named {instance.name!r}; give one of them another name.")
        given.add(instance.name)
        chosen[instance.name] = instance  # an instance replaces the preset's of the same name
    return list(chosen.values())


def _known() -> dict[str, type[Instrument]]:
    """Return every instrument there is, those of plug-ins included; what comes with cockpit-lite cannot be replaced by them."""
    others: dict[str, type[Instrument]] = {}
    for plugin, instrument in plugins(PLUGINS).items():
        try:
            instrument().validate()
            others[instrument.name] = instrument
        except Exception as error:
            warn(f"The instrument of the plug-in {plugin!r} is left out.", error)
    return {**others, **INSTRUMENTS}


def _names(entry: str, known: Mapping[str, type[Instrument]]) -> list[str]:
    if entry in PRESETS:
        included = PRESETS[: PRESETS.index(entry) + 1]
        return [name for name, instrument in known.items() if instrument.preset in included]
    if entry in known:
        return [entry]
    raise UnknownInstrumentError(
        f"There is no instrument or preset named {entry!r}. "
        f"Presets: {', '.join(PRESETS)}. Instruments: {', '.join(sorted(known))}."
    )
