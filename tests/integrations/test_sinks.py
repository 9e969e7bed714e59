"""Sinks: what arrives in each tracker is what the run log holds."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from cockpit_lite import Alert, CockpitWarning, Sink, load_run
from cockpit_lite.cli import main
from cockpit_lite.export import export, sink_for
from tests.integrations.training import train

#: The log writes fewer digits where less is known, three at least; a sink is told all of them.
LOGGED = 6e-3


class Memory(Sink):
    name = "memory"

    def __init__(self, layers: bool = False):
        super().__init__(layers)
        self.values: dict[tuple[int, str], float] = {}
        self.alerts: list[Alert] = []
        self.events: list[str] = []

    def open(self, folder: Path, info: Any) -> None:
        self.events.append(f"open {info['model']['class']}")

    def step(self, step: int, values: Any) -> None:
        self.values.update({(step, name): value for name, value in values.items()})

    def alert(self, alert: Alert) -> None:
        self.alerts.append(alert)

    def close(self) -> None:
        self.events.append("close")


def numbers(folder: Path, layers: bool) -> dict[tuple[int, str], float]:
    run = load_run(folder)
    found = {}
    for name in run.names:
        if layers or "/" not in name:
            steps, values = run.series(name)
            if values.dtype.kind == "f" and values.ndim == 1:
                found.update({(int(step), name): float(value) for step, value in zip(steps, values, strict=True)})
    return found


@pytest.mark.parametrize("layers", [False, True])
def test_a_sink_gets_what_the_log_gets(layers: bool, tmp_path: Path) -> None:
    sink = Memory(layers)
    cockpit = train(tmp_path / "run", sinks=sink)
    assert sink.values == pytest.approx(numbers(tmp_path / "run", layers), rel=LOGGED, nan_ok=True)
    assert sink.alerts == cockpit.alerts
    assert any(alert.name == "softmax-twice" for alert in sink.alerts)
    assert sink.events == ["open Sequential", "close"]


@pytest.mark.parametrize("method", ["open", "step", "alert", "close"])
def test_a_sink_that_fails_is_switched_off(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise ConnectionError("no tracker there")

    broken, sound = Memory(), Memory()
    monkeypatch.setattr(broken, method, fail)
    with pytest.warns(CockpitWarning, match="The sink 'memory' failed and was switched off.*no tracker there") as warned:
        train(tmp_path / "run", sinks=[broken, sound])
    assert len([warning for warning in warned if issubclass(warning.category, CockpitWarning)]) == 1
    assert sound.values == pytest.approx(numbers(tmp_path / "run", False), rel=LOGGED, nan_ok=True)
    assert load_run(tmp_path / "run").info["status"] == "completed"


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "cockpit_lite.integrations.wandb", raising=False)
    with pytest.warns(CockpitWarning, match=r"wandb is not installed: pip install 'cockpit-lite\[wandb\]'"):
        train(tmp_path / "run", sinks="wandb")


def test_csv(tmp_path: Path) -> None:
    cockpit = train(tmp_path / "run", sinks="csv")
    with (tmp_path / "run" / "readings.csv").open(newline="") as file:
        rows = {(int(row["step"]), row["name"]): float(row["value"]) for row in csv.DictReader(file)}
    assert rows == pytest.approx(numbers(tmp_path / "run", True), rel=LOGGED, nan_ok=True)
    with (tmp_path / "run" / "alerts.csv").open(newline="") as file:
        assert [row["code"] for row in csv.DictReader(file)] == [alert.code for alert in cockpit.alerts]


def test_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs cockpit-lite[parquet]")
    import json

    from pyarrow import parquet

    cockpit = train(tmp_path / "run", sinks="parquet")
    export(load_run(tmp_path / "run"), sink_for(str(tmp_path / "again.parquet")))
    for file in (tmp_path / "run" / "readings.parquet", tmp_path / "again.parquet"):
        table = parquet.read_table(file)
        rows = {(row["step"], row["name"]): row["value"] for row in table.to_pylist()}
        assert rows == pytest.approx(numbers(tmp_path / "run", True), rel=LOGGED, nan_ok=True)
        metadata = parquet.read_metadata(file).metadata
        assert [alert["code"] for alert in json.loads(metadata[b"cockpit_lite.alerts"])] == [a.code for a in cockpit.alerts]
        assert json.loads(metadata[b"cockpit_lite.run"])["model"]["class"] == "Sequential"


def test_a_run_is_exported_as_it_was_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cockpit = train(tmp_path / "run", sinks="csv")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out.csv")]) == 0
    for told, again in (("readings.csv", "out.csv"), ("alerts.csv", "out.alerts.csv")):
        lines = [sorted((folder / name).read_text().splitlines()) for folder, name in ((cockpit.folder, told), (tmp_path, again))]
        assert len(lines[0]) == len(lines[1]) > 1
    sink = Memory(layers=True)
    export(load_run(tmp_path / "run"), sink)
    assert sink.values == pytest.approx(numbers(tmp_path / "run", True), rel=LOGGED, nan_ok=True)
    assert sink.alerts == cockpit.alerts
    assert sink.events == ["open Sequential", "close"]
    for place in ("out.xlsx", "nobody"):
        assert main(["export", str(tmp_path / "run"), place]) == 2
        assert repr(place) in capsys.readouterr().err


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs cockpit-lite[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cockpit = train(tmp_path / "run", sinks="tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    expected = numbers(tmp_path / "run", False)
    found = {
        (event.step, tag.removeprefix("cockpit/")): event.value
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    }
    assert found == pytest.approx(expected, rel=LOGGED, nan_ok=True)
    told = "".join(event.tensor_proto.string_val[0].decode() for event in events.Tensors("cockpit/alerts/text_summary"))
    assert all(alert.code in told for alert in cockpit.alerts)


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="needs cockpit-lite[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logged: list[dict[str, Any]] = []
    alerts: list[str] = []
    with wandb.init(project="test", dir=str(tmp_path)) as run:
        log, alert = run.log, run.alert
        monkeypatch.setattr(run, "log", lambda data, **settings: (logged.append(dict(data)), log(data, **settings)))
        monkeypatch.setattr(run, "alert", lambda title, **settings: (alerts.append(title), alert(title=title, **settings)))
        cockpit = train(tmp_path / "run", sinks="wandb")
        assert wandb.run is run  # it was there before us, and stays
        run.log({"mine": 1.0})
        summary = dict(run.summary)
    found = {
        (line["cockpit/step"], name.removeprefix("cockpit/")): value
        for line in logged
        for name, value in line.items()
        if name.startswith("cockpit/") and name != "cockpit/step"
    }
    assert found == pytest.approx(numbers(tmp_path / "run", False), rel=LOGGED, nan_ok=True)
    assert alerts == [f"{alert.code} {alert.name}" for alert in cockpit.alerts]
    assert summary["cockpit/loss"] == pytest.approx(load_run(tmp_path / "run").series("loss")[1][-1])


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="needs cockpit-lite[mlflow]")
    mlflow.set_tracking_uri((tmp_path / "mlflow").as_uri())
    with mlflow.start_run() as active:
        cockpit = train(tmp_path / "run", sinks="mlflow")
        assert mlflow.active_run().info.run_id == active.info.run_id
    client = mlflow.MlflowClient()
    expected = numbers(tmp_path / "run", False)
    names = {name for _, name in expected}
    found = {
        (metric.step, name): metric.value
        for name in names
        for metric in client.get_metric_history(active.info.run_id, f"cockpit/{name}")
    }
    assert found == pytest.approx(expected, rel=LOGGED, nan_ok=True)
    tags = client.get_run(active.info.run_id).data.tags
    assert {f"cockpit.alert.{alert.code}" for alert in cockpit.alerts} <= tags.keys()


def test_mlflow_begins_a_run_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="needs cockpit-lite[mlflow]")
    mlflow.set_tracking_uri((tmp_path / "mlflow").as_uri())
    train(tmp_path / "run", sinks="mlflow")
    assert mlflow.active_run() is None
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FINISHED"
    assert "cockpit/loss" in run.data.metrics


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="needs cockpit-lite[trackio]")
    from trackio.run import Run

    logged: list[tuple[dict[str, Any], int]] = []
    alerts: list[str] = []
    log, alert = Run.log, Run.alert
    monkeypatch.setattr(
        Run, "log", lambda self, values, step=None: (logged.append((dict(values), step)), log(self, values, step))
    )
    monkeypatch.setattr(Run, "alert", lambda self, title, **rest: (alerts.append(title), alert(self, title, **rest)))
    cockpit = train(tmp_path / "run", sinks="trackio")
    found = {(step, name.removeprefix("cockpit/")): value for values, step in logged for name, value in values.items()}
    assert found == pytest.approx(numbers(tmp_path / "run", False), rel=LOGGED, nan_ok=True)
    assert alerts == [f"{alert.code} {alert.name}" for alert in cockpit.alerts]
    assert trackio.context_vars.current_run.get() is None
