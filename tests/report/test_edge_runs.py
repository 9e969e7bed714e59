"""Runs at the edges, gauges drawn: each looks right, or says what is wrong."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cockpit_lite.errors import NotARunError
from cockpit_lite.report import build_report
from cockpit_lite.run import Run
from cockpit_lite.run_log import RunWriter
from tests.report.cases import RULES
from tests.report.test_html import Page

pytestmark = pytest.mark.usefixtures("pictures")


@pytest.fixture
def labels(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Return what the gauges of a run say, by their titles; ``write`` gets the writer of its log."""

    def build(write: Callable[[RunWriter], None], status: str | None = "completed") -> dict[str, str]:
        writer = RunWriter(tmp_path / "run", {"model": "N" * 200, "optimizer": [{"class": "SGD", "lr": 0.1}]})
        write(writer)
        writer.close(**({"status": status} if status else {}))
        html = build_report(Run(writer.folder), RULES).to_html()
        assert "No picture" not in html
        assert len(html) < 3_000_000
        told = [svg["aria-label"] or "" for svg in Page(html).all("svg")]
        return dict(label.partition(": ")[::2] for label in told)

    return build


def test_nan_everywhere_is_said_by_every_gauge(labels):
    names = ("loss", "learning_rate", "grad_norm", "update_ratio", "max_eigenvalue", "hessian_trace", "norm_test", "grad_norm/a")
    said = labels(lambda writer: writer.block(list(range(50)), {name: [math.nan] * 50 for name in names}))
    for title in ("Learning rate", "Gradient norm", "Update ratio", "Largest eigenvalue", "Hessian trace", "Loss"):
        (text,) = [text for name, text in said.items() if name.startswith(title)]
        assert "NaN" in text


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_a_step_or_two_is_drawn(labels, steps):
    said = labels(lambda writer: writer.block(list(range(steps)), {"loss": [2.5] * steps, "grad_norm": [1.0] * steps}))
    assert said["Loss"].startswith("loss 2.5; too few steps")


@pytest.mark.parametrize("layers", [1, 200])
def test_one_layer_and_two_hundred_are_drawn(labels, layers):
    names = [f"encoder.layers.{index}.self_attention.output_projection.parametrizations.weight" for index in range(layers)]

    def write(writer: RunWriter) -> None:
        for step in range(5):
            writer.step(step, {"loss": 1.0, **{f"grad_norm/{name}": 1.0 + index for index, name in enumerate(names)}})

    said = labels(write)
    assert any(name.startswith("Gradient norm") for name in said)


def test_a_million_steps_are_drawn_and_stay_small(labels):
    random = np.random.default_rng(0)

    def write(writer: RunWriter) -> None:
        for start in range(0, 1_000_000, 100_000):  # every tenth step, as a budget would have it
            steps = list(range(start, start + 100_000, 10))
            writer.block(steps, {"loss": random.standard_exponential(len(steps)).tolist()})

    assert labels(write)["Loss"].startswith("loss ")


def test_an_unfinished_run_is_drawn_as_far_as_it_has_come(labels):
    assert labels(lambda writer: writer.block(list(range(30)), {"loss": [1.0] * 30}), status=None)["Loss"].startswith("loss 1")


def test_a_newer_schema_is_named_with_what_to_do(make_run):
    run = make_run(steps=1)
    newer = shutil.copytree(run.folder, run.folder.with_name("newer"))
    info = json.loads((newer / "run.json").read_text(encoding="utf-8"))
    (newer / "run.json").write_text(json.dumps({**info, "schema": 99}), encoding="utf-8")
    with pytest.raises(NotARunError, match=r"schema 99; this version .* Upgrade cockpit-lite"):
        Run(newer)
