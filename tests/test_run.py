"""Reading runs: growing, torn, out of order, foreign and long ones."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cockpit_lite import NotARunError, load_run
from cockpit_lite.run_log import RunWriter


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    made = RunWriter(tmp_path / "run", {"model": "Net"})
    yield made
    made.abandon()


def run_of(folder: Path, *lines: Any) -> Path:
    """Write a run whose log holds these lines: text as it is, anything else as JSON."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"schema": 1}', encoding="utf-8")
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "readings.jsonl").write_text("".join(line + "\n" for line in text), encoding="utf-8")
    return folder


def test_series_names_and_layers(writer: RunWriter) -> None:
    writer.block([0, 1], {"loss": [2.0, 1.5]})
    writer.step(
        2,
        {"loss": 1.0, "grad_norm/b.weight": 1.0, "grad_norm/a": 2.0},
        {"loss": {"kind": "estimated", "standard_error": math.inf}},
    )
    writer.step(3, {"histogram": [[1, 2], [3, 4]]})
    writer.step(4, {"histogram": [[5, 6], [7, math.nan]]})
    writer.close()
    run = load_run(writer.folder)
    assert run.names == ["grad_norm/a", "grad_norm/b.weight", "histogram", "loss"]
    assert run.layers("grad_norm") == ["b.weight", "a"]  # in network order
    steps, values = run.series("loss")
    assert (steps.dtype, values.dtype) == (np.int64, np.float64)
    assert steps.tolist() == [0, 1, 2] and values.tolist() == [2.0, 1.5, 1.0]
    assert run.how("loss") == {2: {"kind": "estimated", "standard_error": math.inf}}
    assert run.how("grad_norm/a") == {}
    assert run.series("histogram")[1].shape == (2, 2, 2)
    assert run.last_step == 4


def test_a_reading_that_is_missing_says_why(writer: RunWriter) -> None:
    writer.not_measured(0, {"norm_test": "the batch holds one sample", "cabs": "no loss"})
    writer.not_measured(3, {"cabs": ""})
    writer.close()
    run = load_run(writer.folder)
    assert run.not_measured == {"norm_test": "the batch holds one sample"}
    with pytest.raises(KeyError, match="not measured, because the batch holds one sample"):
        run.series("norm_test")
    with pytest.raises(KeyError, match="no reading 'cabs'"):
        run.series("cabs")


def test_a_growing_run(writer: RunWriter) -> None:
    run = load_run(writer.folder)
    assert run.last_step is None and run.names == [] and not run.refresh()
    earlier: list[tuple[np.ndarray, list[float]]] = []
    for step in range(40):
        writer.step(step, {"loss": float(step)})
        writer.flush()
        assert run.refresh() and not run.refresh()
        steps, values = run.series("loss")
        assert steps.tolist() == list(range(step + 1)) and run.last_step == step
        earlier.append((values, values.tolist()))
    assert all(array.tolist() == then for array, then in earlier)  # arrays handed out are not changed later
    writer.alert(
        {"code": "CL1", "name": "x", "severity": "note", "step": 3, "cause": "c", "advice": "a", "evidence": {"v": math.nan}}
    )
    assert run.refresh()
    assert math.isnan(run.alerts[0].evidence["v"])
    writer.close(status="completed")
    assert run.refresh() and run.info["status"] == "completed"


def test_the_arrays_are_the_runs_own_and_cannot_be_written(writer: RunWriter) -> None:
    writer.step(0, {"loss": 1.0, "histogram": [1.0, 2.0]})
    writer.close()
    run = load_run(writer.folder)
    for array in (*run.series("loss"), *run.series("histogram")):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 12), st.floats(width=32)), min_size=1, max_size=6),
        max_size=8,
    )
)
def test_any_order_of_steps_is_read_as_a_dictionary_would(blocks: list[list[tuple[int, float]]]) -> None:
    """Sorted by step, and of a step that was written twice what was written last; whenever one looks in between."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        writer = RunWriter(Path(folder) / "run", {})
        run = load_run(writer.folder)
        expected: dict[int, float] = {}
        for block in blocks:
            if len(block) == 1:
                writer.step(block[0][0], {"x": block[0][1]})
            else:
                writer.block([step for step, _ in block], {"x": [value for _, value in block]})
            expected.update(block)
            writer.flush()
            run.refresh()
            steps, values = run.series("x")
            assert steps.tolist() == sorted(expected)
            np.testing.assert_allclose(values, [expected[step] for step in sorted(expected)], rtol=5.1e-7)
            assert run.last_step == max(expected)
        writer.close()
        assert run.bad_lines == 0


def test_arrays_out_of_order(tmp_path: Path) -> None:
    lines = [{"step": step, "values": {"h": [step, 10 * step]}} for step in (3, 1, 3, 2)]
    steps, values = load_run(run_of(tmp_path / "run", *lines)).series("h")
    assert steps.tolist() == [1, 2, 3] and values.tolist() == [[1, 10], [2, 20], [3, 30]]


def test_numbers_and_arrays_under_one_name(tmp_path: Path) -> None:
    run = load_run(run_of(tmp_path / "run", {"step": 0, "values": {"x": 1}}, {"step": 1, "values": {"x": [1, 2]}}))
    with pytest.raises(ValueError, match=r"inhomogeneous|sequence"):
        run.series("x")
    assert run.last_step == 1


BAD = [
    "not JSON",
    {"step": 5},  # nothing in it, but nothing wrong either
    {"step": "five", "values": {"loss": 1.0}},
    {"step": None, "values": {"loss": 1.0}},
    {"step": 2**63, "values": {"loss": 1.0}},
    {"step": 5, "values": {"loss": "high"}},
    {"step": 5, "values": {"loss": None}},
    {"step": 5, "values": {"loss": {"a": 1}}},
    {"step": 5, "values": {"loss": 10**400}},
    {"step": 5, "values": {"loss": [10**400]}},
    {"step": 5, "values": 3},
    {"step": 5, "values": {"fine": 1.0, "loss": "high"}},
    {"step": 5, "values": {"loss": 1.0}, "how": 3},
    {"step": 5, "values": {"loss": 1.0}, "how": {"loss": "estimated"}},
    {"step": 5, "values": {"loss": 1.0}, "time": "late"},
    {"step": 5, "values": {"loss": 1.0}, "not_measured": ["x"]},
    {"steps": [5, 6], "values": {"loss": [1.0]}},
    {"steps": [5, 6], "values": {"loss": 1.0}},
    {"steps": [5, 6], "values": {"loss": "NaN"}},
    {"steps": 5, "values": {"loss": [1.0]}},
    {"steps": [[5]], "values": {"loss": [1.0]}},
    {"steps": [math.nan], "values": {"loss": [1.0]}},
    {"steps": [5], "values": {"loss": [1.0]}, "how": {"loss": {}}},
    {"steps": [5]},
    {"values": {"loss": 1.0}},
    '{"step": 5, "values": {"loss": ' + "[" * 900 + "]" * 900 + "}}",
]


@pytest.mark.parametrize("line", BAD, ids=lambda line: str(line)[:60])
def test_nothing_of_a_bad_line_is_taken(line: Any, tmp_path: Path) -> None:
    good = {"step": 0, "time": 1.0, "values": {"loss": 2.0}}, {"step": 9, "time": 2.0, "values": {"loss": 1.0}}
    run = load_run(run_of(tmp_path / "run", good[0], line, good[1]))
    if str(line) != "{'step': 5}" and "[[[" not in str(line):
        assert run.bad_lines == 1
        assert run.series("loss")[0].tolist() == [0, 9]
        assert run.names == ["loss"] and not run.how("loss") and not run.not_measured
    assert run.last_step == 9 and run.seconds == 2.0
    run.report().to_json()  # whoever reads it later is not surprised either


@pytest.mark.parametrize("seconds", ["Infinity", "NaN", "-Infinity", math.inf])
def test_a_time_that_is_none_is_left_out(seconds: Any, tmp_path: Path) -> None:
    run = load_run(run_of(tmp_path / "run", {"step": 0, "time": 3.0, "values": {}}, {"step": 1, "time": seconds, "values": {}}))
    assert run.seconds == 3.0


def test_names_with_lone_surrogates_can_be_printed_and_drawn(tmp_path: Path) -> None:
    lines = r'{"step": 0, "values": {"loss": 1.0, "a/\ud800": 1.0}}', r'{"step": 1, "not_measured": {"\udfff": "\ud800"}}'
    run = load_run(run_of(tmp_path / "run", *lines))
    assert "".join([*run.names, *run.not_measured, *run.not_measured.values()]).encode()
    run.report().to_html()


def test_bad_alerts_are_counted(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run")
    bad = [
        "{}",
        '{"code": 1, "evidence": 3}',
        '{"code": "a", "name": "b", "severity": "odd", "step": 1, "cause": "", "advice": ""}',
    ]
    (folder / "alerts.jsonl").write_text("".join(line + "\n" for line in bad), encoding="utf-8")
    run = load_run(folder)
    assert run.alerts == [] and run.bad_lines == 3


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(NotARunError, match="holds no run"):
        load_run(tmp_path)
    with pytest.raises(NotARunError, match="is not a folder"):
        load_run(tmp_path / "nowhere")


def test_a_million_steps_are_read_in_seconds_and_looked_at_for_nothing(tmp_path: Path) -> None:
    """Generous limits, so that a busy machine passes; each is far below what a step in Python per value would take."""
    writer = RunWriter(tmp_path / "run", {})
    losses = np.random.default_rng(0).random(256).tolist()
    for start in range(0, 1_000_000, 256):
        writer.block(list(range(start, start + 256)), {"loss": losses, "learning_rate": [0.1] * 256, "step_time": losses})
    writer.close()
    assert (writer.folder / "readings.jsonl").stat().st_size < 50_000_000
    start = time.process_time()
    run = load_run(writer.folder)
    assert time.process_time() - start < 6.0
    start = time.process_time()
    for _ in range(1000):
        run.series("loss")
        assert run.last_step is not None and run.last_step >= 999_999
    assert time.process_time() - start < 0.5
