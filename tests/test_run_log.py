"""The run folder: what is written can be read again, whatever it is, and nothing is ever overwritten."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cockpit_lite import NotARunError, RunExistsError
from cockpit_lite.run_log import LineReader, RunWriter, decode, encode, read_info, wait_for_ranks


class Clock:
    """Seconds that pass when the test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def writer(tmp_path: Path, clock: Clock) -> Iterator[RunWriter]:
    made = RunWriter(tmp_path / "run", {"model": "Net"}, clock)
    yield made
    made.abandon()


def lines(folder: Path, name: str = "readings.jsonl") -> list[dict[str, Any]]:
    """Return the lines as strict JSON: NaN and the like written as numbers fail here."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


# -------------------------------------------------------------------------------------------------------------- writing


def test_a_folder_as_documented(writer: RunWriter, clock: Clock) -> None:
    clock.now += 1.25
    writer.step(7, {"loss": 0.3, "grad_norm/0.weight": 0.1}, {"hessian_trace": {"kind": "estimated", "standard_error": 0.2}})
    writer.block([8, 9], {"loss": [0.3, 0.2]})
    writer.not_measured(9, {"norm_test": "the batch holds one sample"})
    writer.alert({"code": "CL101", "evidence": {"loss": math.inf}})
    writer.close(status="completed")
    assert lines(writer.folder) == [
        {
            "step": 7,
            "time": 1.25,
            "values": {"loss": 0.3, "grad_norm/0.weight": 0.1},
            "how": {"hessian_trace": {"kind": "estimated", "standard_error": 0.2}},
        },
        {"steps": [8, 9], "time": 1.25, "values": {"loss": [0.3, 0.2]}},
        {"step": 9, "not_measured": {"norm_test": "the batch holds one sample"}},
    ]
    assert lines(writer.folder, "alerts.jsonl") == [{"code": "CL101", "evidence": {"loss": "Infinity"}}]
    assert read_info(writer.folder) == {"schema": 3, "model": "Net", "status": "completed"}
    assert sorted(path.name for path in writer.folder.iterdir()) == ["alerts.jsonl", "readings.jsonl", "run.json"]


@pytest.mark.parametrize(
    "value",
    [
        0.0,
        -1.5,
        1e-300,
        1.7976931e308,
        5e-324,
        32,
        10**12,
        True,
        math.nan,
        math.inf,
        -math.inf,
        [1.0, math.nan],
        [[1, 2.5], [math.inf, 0]],
        [],
    ],
)
def test_values_come_back(value: Any, writer: RunWriter) -> None:
    writer.step(0, {"x": value})
    writer.close()
    found = decode(lines(writer.folder)[0]["values"]["x"])
    np.testing.assert_allclose(np.array(found, dtype=float), np.array(value, dtype=float), rtol=5.1e-7)


def test_floats_have_seven_digits_which_is_what_float32_knows(writer: RunWriter) -> None:
    numbers = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 10 ** torch.linspace(-30, 30, 1000)
    writer.block(list(range(1000)), {"x": numbers.tolist()})
    writer.close()
    found = lines(writer.folder)[0]["values"]["x"]
    assert torch.allclose(torch.tensor(found, dtype=torch.float64), numbers.double(), rtol=5.1e-7, atol=0)
    assert (writer.folder / "readings.jsonl").stat().st_size < 1000 * len("1000,-1.234567e-30,")


def test_what_json_does_not_know_is_written_as_text(writer: RunWriter) -> None:
    writer.step(0, {"x": object})
    writer.step(1, {"tuple": (1.0, math.nan)})
    writer.close()
    assert lines(writer.folder)[0]["values"]["x"] == "<class 'object'>"
    assert lines(writer.folder)[1]["values"]["tuple"] == [1.0, "NaN"]


def test_encode_and_decode_are_inverse() -> None:
    value = [1.0, [math.inf, -math.inf], 3]
    assert encode(value) == [1.0, ["Infinity", "-Infinity"], 3]
    assert decode(encode(value)) == value
    assert math.isnan(decode(encode(math.nan)))
    assert encode({1: {2.0}}) == {"1": [2.0]}


@pytest.mark.parametrize("name", ["layer\nname", 'quo"te', "back\\slash", "schön", "\ud800", "日本", "\x1b[2J", ""])
def test_names_cannot_break_a_line(name: str, writer: RunWriter) -> None:
    writer.step(0, {name: 1.0}, {name: {"kind": "estimated"}})
    writer.close()
    (line,) = lines(writer.folder)
    assert list(line["values"]) == list(line["how"]) == [name]


def test_lines_reach_the_disk_about_once_a_second(writer: RunWriter, clock: Clock) -> None:
    writer.step(0, {"loss": 1.0})
    clock.now += 0.9
    writer.step(1, {"loss": 1.0})
    assert lines(writer.folder) == []
    clock.now += 0.2
    writer.step(2, {"loss": 1.0})
    assert len(lines(writer.folder)) == 3
    clock.now += 0.5
    writer.block([3, 4], {"loss": [1.0, 1.0]})
    assert len(lines(writer.folder)) == 3


def test_an_alert_takes_everything_with_it(writer: RunWriter) -> None:
    writer.step(0, {"loss": 1.0})
    writer.alert({"code": "CL101"})
    assert len(lines(writer.folder)) == len(lines(writer.folder, "alerts.jsonl")) == 1


def test_a_tracked_step_is_small_on_disk(writer: RunWriter) -> None:
    values = {
        f"grad_norm/{index}.weight": value for index, value in enumerate(torch.rand(100, generator=torch.Generator()).tolist())
    }
    writer.step(0, values)
    writer.close()
    names = sum(len(name) for name in values)
    assert (writer.folder / "readings.jsonl").stat().st_size < names + 100 * len('"":0.123456789,') + 100


# ------------------------------------------------------------------------------------------------------ never overwritten


@pytest.mark.parametrize("name", ["run.json", "readings.jsonl", "alerts.jsonl"])
def test_a_folder_that_holds_any_part_of_a_run_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(RunExistsError, match="already holds a run, and a run is never overwritten"):
        RunWriter(tmp_path, {})
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_of_two_that_begin_at_once_one_gets_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunWriter(tmp_path, {"owner": "first"}).close()
    monkeypatch.setattr(Path, "exists", lambda self: False)  # both have looked before either has begun
    with pytest.raises(RunExistsError):
        RunWriter(tmp_path, {"owner": "second"})
    monkeypatch.undo()
    assert read_info(tmp_path)["owner"] == "first"


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    RunWriter(tmp_path, {}).close()
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "run"):
        with pytest.raises(OSError, match=r"cannot be written .*Choose another with run=") as caught:
            RunWriter(folder, {})
        assert not isinstance(caught.value, RunExistsError)
        assert str(folder) in str(caught.value)


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match=r"The run folder .*run cannot be written \(Permission denied\)"):
        RunWriter(tmp_path / "run", {})


def test_a_run_that_cannot_begin_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left on device"):
        RunWriter(tmp_path / "run", {})
    monkeypatch.undo()
    assert list((tmp_path / "run").iterdir()) == []
    RunWriter(tmp_path / "run", {}).close()  # it is free for the next


def test_run_json_is_never_seen_half_written(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.replace
    seen = []

    def replace(self: Path, target: Path) -> Path:
        seen.append(read_info(writer.folder))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    writer.close(status="completed")
    assert seen == [{"schema": 3, "model": "Net"}]
    assert read_info(writer.folder)["status"] == "completed"


def test_abandoning_never_raises(writer: RunWriter) -> None:
    writer.step(0, {"loss": 1.0})
    writer.abandon()
    writer.abandon()
    with pytest.raises(ValueError, match="closed file"):
        writer.flush()


# -------------------------------------------------------------------------------------------------------------- reading


def test_a_torn_last_line_is_left_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b"')
    reader = LineReader(path)
    assert list(reader.new_lines()) == [{"a": 1}]
    assert list(reader.new_lines()) == []
    with open(path, "ab") as file:
        file.write(b": 2}\n")
    assert list(reader.new_lines()) == [{"b": 2}]
    assert reader.bad_lines == 0


@pytest.mark.parametrize(
    "bad",
    [
        b"no JSON",
        b"[1, 2]",
        b"3",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b"\0" * 40,
        b"",
        b"[" * 100_000,
        b'{"step": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_bad_line_is_counted_and_skipped(bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n' + bad + b'\n{"b": 2}\n')
    reader = LineReader(path)
    assert list(reader.new_lines()) == [{"a": 1}, {"b": 2}]
    assert reader.bad_lines == 1


@pytest.mark.parametrize(
    "raw", [b'{"a\\ud800": ["\\uDFFF"]}\n', b'{"a\xed\xa0\x80": ["\xed\xbf\xbf"]}\n'], ids=["escaped", "raw"]
)
def test_lone_surrogates_are_spelled_out(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(raw + b'{"\\ud83d\\ude00": "\xf0\x9f\x98\x80"}\n')
    assert list(LineReader(path).new_lines()) == [{r"a\ud800": [r"\udfff"]}, {"😀": "😀"}]


def test_a_missing_log_has_no_lines(tmp_path: Path) -> None:
    assert list(LineReader(tmp_path / "nothing.jsonl").new_lines()) == []


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(NotARunError, match="is not a folder"):
        read_info(tmp_path / "nowhere")
    with pytest.raises(NotARunError, match=r"holds no run: it has no run\.json"):
        read_info(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"model": "Net"}', "[" * 100_000, "9" * 5000])
def test_an_unreadable_description_is_no_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(NotARunError, match=r"run\.json cannot be read"):
        read_info(tmp_path)


@pytest.mark.parametrize("schema", ["4", '"1"', "null", "1.0"])
def test_a_newer_or_odd_schema_is_refused(schema: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(f'{{"schema": {schema}}}', encoding="utf-8")
    with pytest.raises(NotARunError, match="Upgrade cockpit-lite"):
        read_info(tmp_path)


def test_a_description_with_lone_surrogates_can_be_printed(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(r'{"schema": 1, "model": "\ud800"}', encoding="utf-8")
    assert read_info(tmp_path)["model"].encode() == rb"\ud800"


def test_the_logs_of_other_ranks_are_waited_for_until_they_are_closed(tmp_path):
    RunWriter(tmp_path, {}).close()
    other = RunWriter(tmp_path, {}, rank=1)
    start = time.monotonic()
    wait_for_ranks(tmp_path, patience=0.2)
    assert time.monotonic() - start >= 0.2
    closing = threading.Timer(0.1, other.close)
    closing.start()
    start = time.monotonic()
    wait_for_ranks(tmp_path, patience=20.0)
    assert 0.05 < time.monotonic() - start < 10
    closing.join()
    start = time.monotonic()
    wait_for_ranks(tmp_path, patience=20.0)
    assert time.monotonic() - start < 10
