"""Instruments, rules, gauges and sinks of another package: tests/example_plugin, installed as pip would."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cockpit_lite import Cockpit, CockpitWarning, SetupError, load_run, plots
from cockpit_lite.cli import main
from cockpit_lite.diagnosis import known_rules
from cockpit_lite.plugins import plugins
from cockpit_lite.presets import resolve
from cockpit_lite.sink import resolve_sinks

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read the example's pyproject.toml")
EXAMPLE = Path(__file__).parent / "example_plugin"


def install(site: Path, entry_points: dict[str, dict[str, str]]) -> None:
    """Leave what pip leaves in site-packages."""
    record = site / "example-1.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n" + "\n".join(f"{name} = {place}" for name, place in points.items())
        for group, points in entry_points.items()
    ]
    (record / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path / "site")
    plugins.cache_clear()
    yield tmp_path / "site"
    plugins.cache_clear()
    for name in [name for name in sys.modules if name.startswith("cockpit_gradient_zeros")]:
        del sys.modules[name]


@pytest.fixture
def example(site: Path) -> Path:
    install(site, tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"])
    shutil.copytree(EXAMPLE / "cockpit_gradient_zeros", site / "cockpit_gradient_zeros")
    plugins.cache_clear()
    return site


def train(folder: Path, **settings: object) -> Cockpit:
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Cockpit(model, optimizer, run=folder, budget=None, **settings) as cockpit:  # type: ignore[arg-type]
        for _ in range(4):
            optimizer.zero_grad()
            (0.0 * model(torch.ones(8, 3)).sum()).backward()
            optimizer.step()
    return cockpit


def test_a_package_adds_all_four(example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cockpit = train(tmp_path / "run", instruments="light", sinks=["memory"])
    from cockpit_gradient_zeros.sink import MemorySink  # type: ignore[import-not-found]

    run = load_run(tmp_path / "run")
    assert run.series("gradient_zeros")[1].tolist() == [1.0] * 4
    assert "zero-gradient" in {alert.name for alert in cockpit.alerts}
    assert "zero-gradient" in {alert.name for alert in run.report().findings}
    assert [gauge.__module__ for gauge in plots.pages(run)["more"].gauges() if gauge.__name__ == "gradient_zeros"] == [
        "cockpit_gradient_zeros.gauge"
    ]
    assert MemorySink.steps[2]["gradient_zeros"] == 1.0
    assert {"loss", "step_time", "learning_rate"} <= MemorySink.steps[3].keys()
    assert "zero-gradient" in {alert.name for alert in MemorySink.alerts}
    capsys.readouterr()
    assert main(["explain", "ZG001"]) == 0
    assert "print loss.grad_fn" in capsys.readouterr().out


def test_a_run_outlives_the_package(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "run", instruments="light")
    shutil.rmtree(example)
    plugins.cache_clear()
    report = load_run(tmp_path / "run").report()
    assert "zero-gradient" in {alert.name for alert in report.findings}
    report.save()


@pytest.mark.parametrize(
    ("group", "place", "ask"),
    [
        ("cockpit_lite.instruments", "no_such_module:Thing", lambda: resolve("light")),
        ("cockpit_lite.instruments", "builtins:dict", lambda: resolve("light")),
        ("cockpit_lite.rules", "no_such_module:Thing", known_rules),
        ("cockpit_lite.rules", "builtins:dict", known_rules),
        ("cockpit_lite.rules", "cockpit_lite.diagnosis.loss_and_output:NonFinite", known_rules),  # its code is taken
    ],
)
def test_a_broken_plugin_is_left_out(site: Path, group: str, place: str, ask: object) -> None:
    before = len(ask())  # type: ignore[operator]
    install(site, {group: {"broken": place}})
    plugins.cache_clear()
    with pytest.warns(CockpitWarning, match="plug-in 'broken'.*left out"):
        assert len(ask()) == before  # type: ignore[operator]


def test_a_plugin_does_not_replace_what_is_ours(site: Path) -> None:
    install(site, {"cockpit_lite.instruments": {"loss": "cockpit_lite.instruments.grad_norm:GradientNorm"}})
    plugins.cache_clear()
    assert [type(instrument).__name__ for instrument in resolve("light") if instrument.name == "loss"] == ["Loss"]


def test_sinks_that_do_not_exist_are_named() -> None:
    with pytest.raises(SetupError, match=r"no sink named 'tensorbord'.*tensorboard, trackio, wandb"):
        resolve_sinks("tensorbord")
    with pytest.raises(SetupError, match=r"takes names and Sink objects"):
        resolve_sinks([3])  # type: ignore[list-item]
