"""Sink: where readings and alerts go besides the run folder, such as an experiment tracker.

::

    with Cockpit(model, optimizer, sinks=["tensorboard"]) as cockpit: ...

A sink that fails is switched off with one warning; training goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from cockpit_lite.alert import Alert
from cockpit_lite.errors import SetupError
from cockpit_lite.plugins import SINKS, plugins
from cockpit_lite.watchdog import PATIENCE

#: Sinks that come with cockpit-lite; each imports its tracker when it is opened.
BUILT_IN = {
    "csv": "cockpit_lite.integrations.csv_file:CsvSink",
    "mlflow": "cockpit_lite.integrations.mlflow:MLflowSink",
    "parquet": "cockpit_lite.integrations.parquet:ParquetSink",
    "tensorboard": "cockpit_lite.integrations.tensorboard:TensorBoardSink",
    "trackio": "cockpit_lite.integrations.trackio:TrackioSink",
    "wandb": "cockpit_lite.integrations.wandb:WandbSink",
}


class Sink:
    """What every sink implements; the methods of this class do nothing.

    Args:
        layers: Whether the readings of single layers and parameters are wanted, too. A large net has thousands.

    Attributes:
        patience: Seconds after which a call that has not come back is ended and the sink switched off, as of an Instrument.
    """

    name = "sink"
    patience: float | None = PATIENCE

    def __init__(self, layers: bool = False):
        self.layers = layers

    def open(self, folder: Path, info: Mapping[str, Any]) -> None:
        """The run begins.

        Args:
            folder: The run folder.
            info: What ``run.json`` says of it: model, optimizer, versions, seed.
        """

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Take the readings of a step that are numbers; steps come in order, one may come in parts."""

    def alert(self, alert: Alert) -> None:
        """Take an alert."""

    def close(self) -> None:
        """The run has ended."""

    def take(self, step: int, values: Mapping[str, Any]) -> None:
        """Hand on those of a step's readings that are numbers and wanted."""
        wanted = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and (self.layers or "/" not in name)
        }
        if wanted:
            self.step(step, wanted)


def resolve_sinks(sinks: str | Sink | Iterable[str | Sink]) -> list[Sink]:
    """Return the sinks of these names, and the given ones themselves.

    Raises:
        SetupError: if there is none of that name, or an entry is no sink.
    """
    entries = [sinks] if isinstance(sinks, (str, Sink)) else list(sinks)
    return [_named(entry) if isinstance(entry, str) else _checked(entry) for entry in entries]


def of_file(path: Path) -> Sink:
    """Return the sink that writes this file, by its ending: CSV or Parquet.

    Raises:
        SetupError: if no sink writes such files.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise SetupError(f"{path.name!r} does not end in .csv or .parquet, and nothing else can be written.")
    return _built_in(path.suffix[1:])(path)


def _built_in(name: str) -> Callable[..., Sink]:
    module, attribute = BUILT_IN[name].split(":")
    return getattr(import_module(module), attribute)


def _named(name: str) -> Sink:
    if name in BUILT_IN:
        return _built_in(name)()
    others = plugins(SINKS)
    if name in others:
        return _checked(others[name]())
    raise SetupError(f"There is no sink named {name!r}. There are: {', '.join(sorted({*BUILT_IN, *others}))}.")


def _checked(sink: Any) -> Sink:
    if not isinstance(sink, Sink):
        raise SetupError(f"sinks= takes names and Sink objects, not {sink!r}.")
    return sink
