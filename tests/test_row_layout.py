"""What comes at every step is written once, and every row is read as if it had been written out."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.hostile import _dump, _mutate_json
from cockpit_lite import load_run
from cockpit_lite.columns import Columns
from cockpit_lite.number_bits import bits_of, text_of
from cockpit_lite.row_definition import Definition, define, whole
from cockpit_lite.row_layout import Layouts
from cockpit_lite.run_log import ReadingsReader, RunWriter


def read_back(layouts: Layouts, values: dict[str, Any], how: dict[str, Any], known: dict[int, Any]) -> dict[str, Any]:
    """Write a row, define what it defines, and return what is read."""
    for line in json.loads(json.dumps(layouts.lines(values, how))):
        if "layout" not in line:
            return line
        if "row" in line:
            return whole(line, known[line["layout"]])
        define(line, known)
    raise AssertionError("no row was written")


def test_any_rows_come_back() -> None:
    """Names come and go, kinds and notes change, numbers beside a value appear and are missing again."""
    draw = random.Random(0)
    names = [f"reading_{number}/layer.{number % 7}.weight" for number in range(40)]
    layouts, known = Layouts(), dict[int, Any]()
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
        assert set(found["values"]) == set(values)
        for name, value in values.items():
            assert found["values"][name] == pytest.approx(value, rel=5e-5, abs=how.get(name, {}).get("standard_error", 0.0) / 200)
        assert set(found.get("how", {})) == set(how)
        for name, about in how.items():
            assert {key: value for key, value in found["how"][name].items() if key != "standard_error"} == {
                key: value for key, value in about.items() if key != "standard_error"
            }
            error = about.get("standard_error")
            assert found["how"][name].get("standard_error") == (error if error is None else pytest.approx(error, rel=6e-3))
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


def block(*numbers: int) -> str:
    """Return whole numbers, each followed by how many bits it has, as the text of a row."""
    return text_of("".join(map(bits_of, numbers[::2], numbers[1::2])))


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
        ({"row": [[1.0]]}, {"columns": [{"of": "a", "names": ["b", "c"]}]}),
        ({"row": ["2fAA"]}, {"columns": [{"of": "a", "names": ["b", "c"]}]}),
        ({"row": ["3fP4AAQAAAQEAA"]}, {"columns": [{"of": "a", "names": ["b", "c"]}]}),
        ({"row": [[1.0]]}, {"columns": [{"of": "a", "names": 0}]}),
        ({"row": [[1.0]]}, {"columns": [{"of": "a", "names": 7}]}),
        ({"row": [[1.0]]}, {"columns": [{"of": "a", "names": [3]}]}),
        ({"row": [[1.0]]}, {"columns": [{"of": 3, "names": ["b"]}]}),
        ({"row": [[1.0]]}, {"columns": [{"of": "a", "names": ["b"], "how": 3}]}),
        ({"row": [[1.0]]}, {"columns": [{"of": "a", "names": ["b"], "about": 3}]}),
        ({"row": ["=0"]}, {"columns": ["a"]}),
        ({"row": ["=1", 2.0]}, {"columns": ["a", "b"]}),
        ({"row": ["=x"]}, {"columns": ["a"]}),
        ({"row": ["="]}, {"columns": ["a"]}),
        ({"row": ["="]}, {"columns": ["a"], "fixed": {"1": [1.0]}}),
        ({"row": ["="]}, {"columns": ["a"], "fixed": {"0": 3}}),
        ({"row": ["="]}, {"columns": ["a"], "fixed": {"0": [1.0] * 7}}),
        ({"row": ["="]}, {"columns": ["a"], "fixed": {"0": [[[1.0] * 7]]}}),
        ({"row": ["="]}, {"columns": ["a"], "fixed": [3]}),
        ({"row": []}, {"columns": [], "text": [{"columns": ["a"]}]}),
        ({"row": [3]}, {"columns": [], "text": [{"columns": ["a"]}]}),
        ({"row": [""]}, {"columns": [], "text": [{"columns": ["a"]}]}),
        ({"row": ["\u00e9" * 5]}, {"columns": [], "text": [{"columns": ["a"]}]}),
        ({"row": ["00000000"]}, {"columns": [], "text": [{"columns": ["a"]}]}),  # more than promised
        ({"row": ["~~~~~"]}, {"columns": [], "text": [{"columns": ["a"]}]}),
        ({"row": [block(0b11110, 5, 0, 12)]}, {"columns": [], "text": [{"columns": ["a"]}]}),  # as block 0, which it is
        ({"row": [block(0b11111, 5)]}, {"columns": [], "text": [{"array": "a", "shape": [2]}]}),
        ({"row": [block(0b11111, 5)]}, {"columns": [], "text": [{"columns": ["a"]}]}),
        ({"row": [block(0b10101, 5, 0, 40)]}, {"columns": [], "text": [{"columns": ["a"]}]}),
        ({"row": [block(0, 5, 1, 8, 7, 12)]}, {"columns": [], "text": [{"columns": ["a"]}]}),
        ({"row": [block(0, 5, 1, 8, 0, 12, 9, 16)]}, {"columns": [], "text": [{"columns": ["a/b"]}]}),
        ({"row": [block(0, 5, 0, 8)]}, {"columns": [], "text": [{"array": "a", "shape": [5000]}]}),
        ({"row": [block(0, 5, 0, 8)]}, {"columns": [], "text": [{"array": "a", "shape": [-1]}]}),
        ({"row": [block(0, 5, 0, 8)]}, {"columns": [], "text": [{"array": "a", "shape": []}]}),
        ({"row": [block(0, 5, 0, 8)]}, {"columns": [], "text": [{"array": "a", "value": [1.0] * 7}]}),
        ({"row": [block(0, 5, 0, 8)]}, {"columns": [], "text": [{"array": "a", "value": [[1.0], 2.0]}]}),
        ({"row": [block(0, 5, 0, 8)]}, {"columns": [], "text": [{"array": 3, "shape": [1]}]}),
        ({"row": [block(0, 5, 0, 8)]}, {"columns": [], "text": [{"names": 0}]}),
        ({"row": [block(0, 5, 0, 8)]}, {"columns": [], "text": ["a"]}),
        ({"row": [1.0], "how": [0]}, {"columns": ["a"]}),
        ({"row": [1.0], "how": [[]]}, {"columns": ["a"]}),
        ({"row": [1.0], "values": {"b": "9f"}}, {"columns": ["a"]}),
        ({"row": [1.0], "values": {"b": ["9f", {"kind": "estimated"}]}}, {"columns": ["a"]}),
    ],
)
def test_what_does_not_fit_is_a_bad_line(line: dict[str, Any], layout: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        whole(line, Definition(layout))
    path = tmp_path / "readings.jsonl"
    lines = [{"layout": 1, "columns": [], **layout}, {"step": 0, "layout": 1, **line}, {"step": 1, "values": {"loss": 1.0}}]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    reader = ReadingsReader(path)
    assert list(reader.new_lines())[-1] == {"step": 1, "values": {"loss": 1.0}}
    assert reader.bad_lines == 1


def test_short_arrays_that_stay_the_same_and_how_parts_were_got_are_said_once() -> None:
    layouts = Layouts()
    bins = [[-4, 1, 1], [-8, 3, 1]]
    how = {"histogram": {"kind": "estimated", "note": "of a sample"}, "top": {"residual": 0.5}}
    first = {"loss": 0.5, "histogram": [2.0] * 8, "histogram_bins": bins, "top": [20.125, 19.5, 3.25], "norm/0.bias": 0.1}
    rows = [
        (first, how),
        (
            {**first, "histogram/0.bias": [1.0] * 8, "histogram_bins": [[-4, 1, 2], [-8, 3, 1]]},
            {**how, "histogram/0.bias": {"kind": "estimated"}},
        ),
        ({**first, "histogram/0.bias": [5.0] * 8}, {**how, "histogram/0.bias": {"kind": "conditional"}}),
        (
            {**first, "histogram/0.bias": [5.0] * 9, "histogram/1.bias": [5.0] * 8},
            {**how, "histogram/0.bias": {"kind": "estimated"}, "histogram/1.bias": {"kind": "estimated"}},
        ),
        ({**first, "top": [21.0, 19.5, 3.25]}, how),
    ]
    known: dict[int, Any] = {}
    for values, about in [rows[0], *rows]:  # only what comes again gets a layout
        read = read_back(layouts, values, about, known)
        assert read["values"] == values
        assert read.get("how", {}) == about
    lines = [layouts.lines(*row)[-1] for row in rows]
    assert [list(line.get("values", {})) for line in lines] == [
        [], [], ["histogram/0.bias"], ["histogram/0.bias", "histogram/1.bias"], []
    ]  # fmt: skip
    assert len(lines[0]["row"][-1]) < len(lines[1]["row"][-1]) - 20


def test_words_that_come_and_go_are_said_once() -> None:
    values = {"loss": 0.5, "max_eigenvalue": 3.0, "min_eigenvalue": 0.25, "sharpness": 2.0}
    notes = [{}, {"max_eigenvalue": {"kind": "estimated", "note": "not converged: a lower bound"}}]
    lines, found = written_and_read([(values, notes[step % 2]) for step in range(2 * Layouts.again + 9)])
    assert [read.get("how", {}) for read in found] == [notes[step % 2] for step in range(2 * Layouts.again + 9)]
    words = [line for line in lines if "not converged" in json.dumps(line)]
    assert len(words) == 3 and all("columns" in line for line in words)
    assert {str(line.get("how")) for line in lines[-2:]} == {"None", "[0]"}


def test_words_that_change_all_the_time_are_written_out() -> None:
    values = {"loss": 0.5, "max_eigenvalue": 3.0, "min_eigenvalue": 0.25, "sharpness": 2.0}
    rows = [(values, {"sharpness": {"kind": "estimated", "note": f"{step} products"}}) for step in range(400)]
    lines, found = written_and_read(rows)
    assert [read["how"] for read in found] == [how for _, how in rows]
    assert lines[-1]["how"] == {"sharpness": {"note": "399 products"}}


def test_many_single_numbers_are_one_text_and_each_of_them_may_be_anything() -> None:
    draw = random.Random(0)
    values = {f"reading {number}": draw.uniform(-1, 1) * 10 ** draw.randint(-9, 9) for number in range(90)}
    how = {f"reading {number}": {"kind": "estimated", "standard_error": 0.2578125} for number in range(10)}
    odd = {
        **values,
        "reading 20": math.nan,
        "reading 21": -math.inf,
        "reading 22": "NaN",
        "reading 23": 2**40 + 1,
        "reading 24": 1e-40,
    }
    odd |= {"reading 25": 0.0, "reading 26": 32, "reading 27": [1.5, 2.5], "reading 28": 1e39}
    missing = {name: value for name, value in values.items() if name != "reading 30"}
    lines, found = written_and_read([(values, how), (values, how), (odd, how), (missing, {})])
    assert sum("columns" in line for line in lines) == 1 and "values" not in lines[2]
    assert len(json.dumps(lines[2], separators=(",", ":"))) < 80 + 4.375 * 90 + 2.5 * 10
    assert found[1]["values"] == pytest.approx(values, rel=2**-16)
    assert {name: found[1]["values"][name] for name in values if name not in how} == pytest.approx(
        {name: value for name, value in values.items() if name not in how}, rel=1e-6
    )
    assert found[1]["how"] == how
    read = {name: value for name, value in found[2]["values"].items() if name not in how}
    assert read.keys() == odd.keys() - how.keys()
    for name, value in read.items():
        expected = math.nan if odd[name] == "NaN" else odd[name]
        assert value == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert read["reading 23"] == 2**40 + 1 and read["reading 25"] == 0.0 and read["reading 26"] == 32
    assert found[3]["values"].keys() == missing.keys() and "how" not in found[3]


def test_of_a_number_no_more_is_written_than_its_error_leaves() -> None:
    layouts, known = Layouts(), dict[int, Any]()
    how = {
        "trace": {"standard_error": 4900.0},
        "sharpness": {"residual": 0.0365},
        "gradient_noise_scale": {"standard_error": 1e9},
    }
    values = {"trace": 34313.47, "sharpness": -0.9756463, "gradient_noise_scale": 1.171869, "loss": 0.1234567, "max": 3.25}
    read_back(layouts, values, how, known)
    read = read_back(layouts, values, how, known)
    assert read["values"] == {**values, "trace": 34310.0, "sharpness": -0.9756, "gradient_noise_scale": 1.17}


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


def test_a_short_line_cannot_stand_for_more_numbers_than_memory_holds() -> None:
    names = [f"{number}" for number in range(2000)]
    many = Definition({"columns": [{"of": "a", "names": names}, *[{"of": "b", "names": 0}] * 2000]})
    with pytest.raises(ValueError, match="too many columns"):
        whole({"row": []}, many)
    zeros = f"4096zf{'A' * 683}"
    repeated = Definition({"columns": [f"{number}" for number in range(600)]})
    with pytest.raises(ValueError, match="too many numbers"):
        whole({"row": [zeros, *["=0"] * 599]}, repeated)
    with pytest.raises(ValueError, match="too many numbers"):
        whole({"row": [None] * 600, "values": {f"{number}": zeros for number in range(600)}}, repeated)


def layers(count: int, value: float) -> dict[str, float]:
    """Return a reading of many layers."""
    return {f"grad_norm/{number}.weight": value + number / 7 for number in range(count)}


def written_and_read(rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the lines of rows, and what is read of them."""
    layouts, known = Layouts(), dict[int, Any]()
    lines = [json.loads(json.dumps(line)) for values, how in rows for line in layouts.lines(values, how)]
    found = []
    for line in lines:
        if "layout" in line and "row" not in line:
            define(line, known)
        else:
            found.append(whole(line, known[line["layout"]]) if "layout" in line else line)
    return lines, found


def test_a_reading_of_many_layers_is_one_block_whose_names_are_written_once() -> None:
    rows: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for step in range(4):
        values = {"loss": 1.0 / 3, **layers(40, 0.01 * step + 1e-3)}
        values |= {name.replace("grad_norm", "ggn_trace"): value for name, value in layers(40, 5.0).items()}
        how = {f"ggn_trace/{n}.weight": {"kind": "gauss-newton", "standard_error": 0.5 + n} for n in range(40)}
        rows.append((values, how))
    lines, found = written_and_read(rows)
    definition, row = lines[1], lines[-1]
    assert definition["columns"] == ["loss"]
    assert [block["of"] for block in definition["text"]] == ["grad_norm", "ggn_trace", "ggn_trace"]
    assert definition["text"][1]["names"] == definition["text"][2]["names"] == 0
    assert definition["text"][1]["how"] == {"kind": "gauss-newton"} and "how" not in definition
    assert len(json.dumps(row, separators=(",", ":"))) < 260  # 121 numbers
    for (values, how), read in zip(rows, found, strict=True):
        assert list(read["values"]) == list(values)
        assert read["values"] == pytest.approx(values, rel=4e-3)
        assert {k: v for k, v in read["values"].items() if "ggn" not in k} == pytest.approx(
            {k: v for k, v in values.items() if "ggn" not in k}, rel=2.5e-4
        )
        for name, about in how.items():
            assert read["how"][name] == {
                "kind": "gauss-newton",
                "standard_error": pytest.approx(about["standard_error"], rel=2**-5),
            }


def test_what_is_well_known_keeps_more_digits_than_what_is_not() -> None:
    values = {name.replace("grad_norm", "ggn_trace"): value for name, value in layers(20, 1.0).items()}
    for error, digits in ((0.001, 2.5e-4), (0.5, 4e-3)):
        how = {name: {"kind": "gauss-newton", "standard_error": error} for name in values}
        _, found = written_and_read([(values, how)] * 3)
        assert found[-1]["values"] == pytest.approx(values, rel=digits)
        assert (found[-1]["values"] == pytest.approx(values, rel=2.5e-4)) == (error == 0.001)


def test_a_layer_that_is_missing_or_no_number_does_not_hide_the_others() -> None:
    rows = [(layers(30, 1.0), {})] * 3
    rows.append(({name: value for name, value in layers(30, 1.0).items() if "/7." not in name}, {}))
    rows.append(({**layers(30, 1.0), "grad_norm/3.weight": "NaN", "grad_norm/4.weight": "-Infinity"}, {}))  # as encoded
    lines, found = written_and_read(rows)
    assert sum("columns" in line for line in lines) == 1
    for (values, _), read in zip(rows, found, strict=True):
        expected = {name: float(value) for name, value in values.items()}
        assert read["values"] == pytest.approx(expected, rel=2.5e-4, nan_ok=True)
        assert list(read["values"]) == list(values)


def test_what_a_block_has_no_room_for_is_written_by_its_name() -> None:
    rows = [(layers(30, 1.0), {})] * 3
    rows.append(({**layers(30, 1.0), "grad_norm/3.weight": 1e-42, "grad_norm/4.weight": 1e42}, {}))
    many = layers(5000, 1.0)  # more layers than an array may have numbers
    lines, found = written_and_read(rows)
    assert lines[-1]["values"] == {"grad_norm/3.weight": 1e-42, "grad_norm/4.weight": 1e42}
    assert found[-1]["values"] == pytest.approx(rows[-1][0], rel=2.5e-4)
    lines, found = written_and_read([(many, {})] * 3)
    assert "values" not in lines[-1] and found[-1]["values"] == pytest.approx(many, rel=2.5e-4)


def test_the_same_numbers_under_two_names_are_written_once() -> None:
    """The one that is repeated need not be the first of the row."""
    values = {name.replace("grad", "first"): value for name, value in layers(30, 2.0).items()}
    values |= {**layers(30, 1.0), **{name.replace("grad", "other"): value for name, value in layers(30, 1.0).items()}}
    lines, found = written_and_read([(values, {})] * 3)
    alone, _ = written_and_read([({name: value for name, value in values.items() if "other" not in name}, {})] * 3)
    assert len(lines[-1]["row"][-1]) < len(alone[-1]["row"][-1]) + 6
    assert found[-1]["values"] == pytest.approx(values, rel=2.5e-4)


def test_histograms_are_short_and_tables_exact() -> None:
    """A table of samples holds their places in the batch, which rounding would make those of others."""
    counts = [0.0] * 20 + [72.0, 316.0, 16092.0, 520027.0, 366.0] + [0.0] * 34
    table = [[4001.0 + row, 2.5, 6.25] for row in range(8)]
    values = {"grad_hist_1d": counts, "hardest_by_loss": table, "percentiles": [0.0, 0.5, 0.25], "norm/0.weight": 1.0}
    how = {name: {"kind": "estimated"} for name in ("grad_hist_1d", "hardest_by_loss")}
    part = {**how, "grad_hist_1d/0.weight": {"kind": "estimated"}}
    lines, found = written_and_read([(values, how), (values, how), ({**values, "grad_hist_1d/0.weight": counts}, part)])
    assert found[-1]["values"]["hardest_by_loss"] == table
    assert found[-1]["values"]["percentiles"] == [0.0, 0.5, 0.25]
    assert found[-1]["values"]["grad_hist_1d/0.weight"] == pytest.approx(counts, rel=2**-5)
    assert found[-1]["values"]["grad_hist_1d"] == pytest.approx(counts, rel=2**-5)
    assert len(json.dumps(lines[-1], separators=(",", ":"))) < 220


def test_a_reading_out_of_turn_says_how_it_was_got() -> None:
    values = {"loss": 1.0, "grad_norm": 2.0, "update_size": 3.0, **layers(20, 1.0)}
    beside = {**values, "grad_hist_1d/0.weight": [float(n) for n in range(59)], "seldom": 4.0}
    how = {"grad_hist_1d/0.weight": {"kind": "conditional", "note": "sampled"}, "seldom": {"standard_error": 0.5}}
    lines, found = written_and_read([(values, {}), (values, {}), (beside, how)])
    assert "columns" not in lines[-1] and "how" not in lines[-1]
    assert found[-1]["how"] == how
    assert found[-1]["values"]["seldom"] == 4.0
    assert found[-1]["values"]["grad_hist_1d/0.weight"] == pytest.approx(beside["grad_hist_1d/0.weight"], rel=2**-5)


def test_whatever_a_packed_log_says_it_is_read_or_counted(tmp_path: Path) -> None:
    values = {"loss": 1.0, **layers(20, 1.0), "grad_hist_1d": [float(n % 7) for n in range(59)]}
    values |= {name.replace("grad_norm", "ggn_trace"): value for name, value in layers(20, 5.0).items()}
    how = {f"ggn_trace/{n}.weight": {"kind": "gauss-newton", "standard_error": 0.5} for n in range(20)}
    lines, _ = written_and_read([(values, how)] * 3)
    path, draw, bad = tmp_path / "readings.jsonl", random.Random(0), 0
    for _ in range(400):
        changed = [{"step": step, **line} if "columns" not in line else line for step, line in enumerate(lines)]
        place = draw.randrange(len(changed))
        changed[place] = _mutate_json(changed[place], draw)
        path.write_bytes(b"".join(_dump(line) + b"\n" for line in changed))
        reader, columns = ReadingsReader(path), Columns()
        for line in reader.new_lines():
            columns.add(line)
        bad += reader.bad_lines + columns.unread > 0
    assert 40 < bad < 390  # some are refused, and not all


def test_rows_of_the_second_schema_are_read_as_ever() -> None:
    layers = [{"of": "gsnr", "names": ["a", "b", "c", "d"], "how": {"kind": "conditional"}}, {"of": "norm", "names": 1}]
    layout = Definition({"columns": ["loss", *layers, "bins"], "fixed": {"3": [1, 2]}, "how": {"h": {"kind": "estimated"}}})
    line = {"step": 8, "layout": 2, "row": [0.5, "4fP4AAQAAAQEAAQIAA", "=1", "="]}
    line["values"] = {"h": "44zhAAAPAAAD+AQABAgEEAA", "h/a": [3.0, "/"], "other": [2.0, {"residual": 0.1}]}
    read = whole(line, layout)
    assert read["values"] == {
        "loss": 0.5,
        **{f"gsnr/{name}": value for name, value in zip("abcd", (1.0, 2.0, 3.0, 4.0), strict=True)},
        **{f"norm/{name}": value for name, value in zip("abcd", (1.0, 2.0, 3.0, 4.0), strict=True)},
        "bins": [1, 2],
        "h": [0.0] * 20 + [1.0, 2.0, 4.0, 8.0] + [0.0] * 20,
        "h/a": 3.0,
        "other": 2.0,
    }
    conditional = {f"gsnr/{name}": {"kind": "conditional"} for name in "abcd"}
    estimated = {"h": {"kind": "estimated"}, "h/a": {"kind": "estimated"}}
    assert read["how"] == {**conditional, **estimated, "other": {"residual": 0.1}}


def test_rows_of_the_first_schema_are_read_as_ever() -> None:
    layout = Definition({"columns": ["loss", "trace", ["trace", "standard_error"]], "how": {"trace": {"kind": "estimated"}}})
    line = {"step": 8, "time": 1.4, "layout": 2, "row": ["NaN", [1.0, 2.0], 0.2], "values": {"pair": [1.0, 2.0]}}
    assert whole(line, layout) == {
        "step": 8,
        "time": 1.4,
        "values": {"loss": "NaN", "trace": [1.0, 2.0], "pair": [1.0, 2.0]},
        "how": {"trace": {"kind": "estimated", "standard_error": 0.2}},
    }


def test_a_row_costs_its_numbers(tmp_path: Path) -> None:
    values = {f"reading/{index}.weight": random.Random(index).random() for index in range(100)}
    writer = RunWriter(tmp_path / "run", {})
    for step in range(10):
        writer.step(step, values, {name: {"kind": "estimated", "standard_error": 0.2578125} for name in values})
    writer.close()
    rows = (tmp_path / "run" / "readings.jsonl").read_bytes().splitlines()[2:]
    assert len(rows) == 9 and all(len(row) < 100 * len("0.1234567,0.25,") + 60 for row in rows)
