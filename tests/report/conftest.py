"""A run folder as the cockpit writes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cockpit_lite.alert import Alert
from cockpit_lite.report import build_report, gauges, html
from cockpit_lite.run import Run
from cockpit_lite.run_log import RunWriter
from tests.report.cases import FINISHED, RULES, alert


@pytest.fixture
def pictures() -> None:
    """For a test that wants the cockpit picture drawn; the others leave it out, since it takes a second a report."""


@pytest.fixture(autouse=True)
def _leave_pictures_out(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(html, "draw_picture", lambda report: html.Picture(problem="left out by the test"))
        monkeypatch.setattr(gauges, "overview_png", lambda run: b"")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Write a run of ``steps`` steps with ``alerts``; ``final`` goes into run.json at the end, None leaves its end out."""
    return partial(write_run, tmp_path)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run with a finding, gauges included; drawn once a module."""
    return build_report(write_run(tmp_path_factory.mktemp("drawn"), alerts=(alert(),)), RULES).to_html()


def write_run(
    parent: Path,
    steps: int = 40,
    alerts: tuple[Alert, ...] = (),
    final: dict | None = FINISHED,
    folder: str = "a-run",
    layers: tuple[str, ...] = ("0.weight", "0.bias"),
    info: dict | None = None,
    not_measured: dict | None = None,
) -> Run:
    described = {"model": "Net", "optimizer": "SGD", "versions": {"torch": "2.15.0"}, "seed": 0, **(info or {})}
    writer = RunWriter(parent / folder, described)
    for step in range(steps):
        values = {"loss": 2.3 / (step + 1), "grad_norm": 0.5 + 0.01 * step}
        values["hessian_trace"] = math.nan if step == 30 else 3.0 + step
        values |= {f"grad_norm/{layer}": 0.1 * (index + 1) for index, layer in enumerate(layers)}
        writer.step(step, values, {"hessian_trace": {"kind": "estimated", "standard_error": 0.25}})
    if not_measured:
        writer.not_measured(0, not_measured)
    for one in alerts:
        writer.alert(one.to_dict())
    writer.close(**(final or {}))
    return Run(writer.folder)
