"""What comes at every step is written once, and every row is read as if it had been written out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from cockpit_lite import load_run
from cockpit_lite.row_layout import Layouts, whole
from cockpit_lite.run_log import ReadingsReader, RunWriter


def read_back(layouts: Layouts, values: dict[str, Any], how: dict[str, Any], known: dict[int, Any]) -> dict[str, Any]:
    """Write a row, define what it defines, and return what is read."""
    for line in json.loads(json.dumps(layouts.lines(values, how))):
        if "columns" in line:
            known[line["layout"]] = line
        elif "layout" in line:
            return whole(line, known[line["layout"]])
        else:
            return line
    raise AssertionError("no row was written")


def test_any_rows_come_back() -> None:
    """Names come and go, kinds and notes change, numbers beside a value appear and are missing again."""
    draw = random.Random(0)
    names = [f"reading_{number}/layer.{number % 7}.weight" for number in range(40)]
    layouts, known = Layouts(), {}
    for step in range(600):
        if step % 97 == 0:  # another regime: other instruments are due
            often = set(draw.sample(names, draw.randint(2, 40)))
        chosen = [name for name in names if draw.random() < (0.97 if name in often else 0.02)] or names[:1]
        values = {name: draw.random() for name in chosen}
        how: dict[str, Any] = {}
        for name in chosen:
            if int(name.split("_")[1].split("/")[0]) % 3 == 0:
                about = {"kind": "estimated", "standard_error": draw.random(), "note": f"{draw.randint(1, 2)} products"}
                how[name] = {key: value for key, value in about.items() if draw.random() < 0.9} or {"kind": "estimated"}
        found = read_back(layouts, values, how, known)
        assert found["values"] == values
        assert found.get("how", {}) == how
    assert len(known) < 40


def test_names_that_never_come_again_are_written_out() -> None:
    layouts = Layouts()
    written = [layouts.lines({f"loss of the task {step}": 1.0, f"error of the task {step}": 2.0}, {}) for step in range(100)]
    assert all(list(line) == ["values"] for (line,) in written)


def test_there_are_not_too_many_layouts() -> None:
    layouts = Layouts()
    written = [
        layouts.lines({f"loss of the task {step // 2}": 1.0, f"error of the task {step // 2}": 2.0}, {})
        for step in range(6 * Layouts.most)
    ]
    assert sum(len(lines) == 2 for lines in written) == Layouts.most
    assert "layout" not in written[-1][0]


@pytest.mark.parametrize(
    ("line", "layout"),
    [
        ({"row": [1.0]}, {"columns": ["a", "b"]}),
        ({"row": 3}, {"columns": ["a"]}),
        ({"row": [1.0]}, {"columns": [3]}),
        ({"row": [1.0]}, {"columns": [["a", "b", "c"]]}),
        ({"row": [1.0]}, {"columns": [["a", None]]}),
        ({"row": [1.0]}, {"columns": ["a"], "how": 3}),
        ({"row": [1.0], "how": {"a": 3}}, {"columns": ["a"]}),
        ({"row": [1.0]}, {}),
        ({}, {"columns": ["a"]}),
    ],
)
def test_what_does_not_fit_is_a_bad_line(line: dict[str, Any], layout: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        whole(line, layout)
    path = tmp_path / "readings.jsonl"
    lines = [{"layout": 1, "columns": [], **layout}, {"step": 0, "layout": 1, **line}, {"step": 1, "values": {"loss": 1.0}}]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    reader = ReadingsReader(path)
    assert list(reader.new_lines())[-1] == {"step": 1, "values": {"loss": 1.0}}
    assert reader.bad_lines == 1


def test_a_row_without_its_layout_is_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "readings.jsonl"
    path.write_text('{"step": 0, "layout": 7, "row": [1]}\n{"step": 1, "layout": {}, "row": [1]}\n', encoding="utf-8")
    reader = ReadingsReader(path)
    assert list(reader.new_lines()) == [] and reader.bad_lines == 2


def test_who_begins_in_the_middle_of_the_log_finds_the_layout(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", {})
    for step in range(4):
        writer.step(step, {"loss": 0.5 * step, "grad_norm": 1.0, "update_size": 2.0})
    writer.close()
    path = tmp_path / "run" / "readings.jsonl"
    reader = ReadingsReader(path)
    reader._offset = sum(map(len, path.read_bytes().splitlines(keepends=True)[:3]))
    assert [line["values"]["loss"] for line in reader.new_lines()] == [1.0, 1.5]


def test_a_damaged_definition_does_not_spoil_the_rest_of_a_run(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", {})
    for step in range(3 * Layouts.again):
        writer.step(step, {"loss": float(step), "grad_norm": 1.0, "update_size": 2.0})
    writer.close()
    path = tmp_path / "run" / "readings.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"columns"', b'"col\xffumns"', 1))
    run = load_run(tmp_path / "run")
    assert run.series("loss")[0].tolist() == [0, *range(Layouts.again + 1, 3 * Layouts.again)]
    assert run.bad_lines == Layouts.again + 1


def test_a_row_costs_its_numbers(tmp_path: Path) -> None:
    values = {f"reading/{index}.weight": random.Random(index).random() for index in range(100)}
    writer = RunWriter(tmp_path / "run", {})
    for step in range(10):
        writer.step(step, values, {name: {"kind": "estimated", "standard_error": 0.25} for name in values})
    writer.close()
    rows = (tmp_path / "run" / "readings.jsonl").read_bytes().splitlines()[2:]
    assert len(rows) == 9 and all(len(row) < 100 * len("0.1234567,0.25,") + 60 for row in rows)
