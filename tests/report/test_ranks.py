"""One report of the logs of several ranks: all findings with their ranks, and in what the ranks differ."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from cockpit_lite.alert import Alert
from cockpit_lite.report import build_report
from cockpit_lite.report.ranks import ALL_ALIKE, MOST_RANKS, read_ranks
from cockpit_lite.run import Run, load_run
from cockpit_lite.run_log import RunWriter, alerts_file, readings_file
from tests.report.cases import RULES, alert
from tests.report.test_schema import SCHEMA, faults


def write(
    folder: Path,
    rank: int,
    steps: int = 20,
    loss: float = 1.0,
    norm: float = 2.0,
    step_time: float = 0.010,
    alerts: Sequence[Alert] = (),
    processes: int = 3,
) -> Run:
    """Write the log of one rank, measured at every other step, of which each takes a second by its clock."""
    now = 0.0
    writer = RunWriter(folder, {"model": "Net", "processes": processes}, rank=rank, clock=lambda: now)
    for step in range(steps):
        now = float(step)
        values = {"loss": loss / (1 + step), "step_time": step_time}
        writer.step(step, values if step % 2 else {**values, "grad_norm": norm})
    for one in alerts:
        writer.alert(one.to_dict())
    writer.close(status="completed")
    return load_run(folder)


def test_a_run_of_one_process_has_no_ranks(make_run) -> None:
    report = build_report(make_run(), RULES)
    assert report.ranks is None
    assert report.to_dict()["ranks"] is None
    assert "Ranks" not in report.to_html() + report.to_markdown() + str(report)


def test_findings_of_all_ranks_are_in_one_report_with_their_ranks(tmp_path: Path) -> None:
    everywhere, elsewhere = alert(), alert("CL902", "noise-dominates", "warning", 3, where=("0.weight",))
    write(tmp_path, 0, alerts=[everywhere])
    write(tmp_path, 1, alerts=[elsewhere, everywhere])
    run = write(tmp_path, 2, alerts=[everywhere])
    report = build_report(run, RULES)
    assert [finding.code for finding in report.findings] == ["CL901", "CL902"]
    assert {finding.code: report.place(finding) for finding in report.findings} == {"CL901": "", "CL902": ", on rank 1"}
    assert "CL902" not in [check.code for check in report.passed]
    found = json.loads(report.to_json())
    assert faults(found, SCHEMA) == []
    assert [(finding["code"], finding["ranks"]) for finding in found["findings"]] == [("CL901", [0, 1, 2]), ("CL902", [1])]
    assert [row["findings"] for row in found["ranks"]["rows"]] == [["CL901"], ["CL901", "CL902"], ["CL901"]]
    for shown in (str(report), report.to_markdown(), report.to_html()):
        assert ", on rank 1" in shown
    assert report.ranks is not None
    assert [report.ranks.run_of(finding).rank for finding in report.findings] == [0, 1]  # whose readings are drawn beside it
    assert [one.code for one in load_run(tmp_path).alerts] == ["CL901"]
    assert [one.code for one in load_run(tmp_path, 1).alerts] == ["CL902", "CL901"]
    assert build_report(load_run(tmp_path, 1), RULES).ranks is None


def test_ranks_that_are_alike_say_so(tmp_path: Path) -> None:
    for rank in range(3):
        run = write(tmp_path, rank, step_time=0.010 + 0.0001 * rank)
    ranks = read_ranks(run)
    assert ranks is not None
    assert (ranks.text, ranks.slowest, ranks.trained) == ((), None, 3)
    assert ranks.compared == {"loss": 19, "grad_norm": 18}
    report = build_report(run, RULES)
    for shown in (str(report), report.to_html()):
        assert "3 processes trained together" in shown
        assert ALL_ALIKE in shown


def test_what_differs_is_told_with_its_rank(tmp_path: Path) -> None:
    write(tmp_path, 0, processes=5)
    write(tmp_path, 1, loss=1.5, step_time=0.015)
    run = write(tmp_path, 3, steps=10, norm=math.nan)
    ranks = read_ranks(run)
    assert ranks is not None
    assert ranks.slowest == 1
    assert ranks.compared == {"loss": 9, "grad_norm": 8}
    assert ranks.text == (
        "2 of 5 processes left no log.",
        "The log of rank 3 ends after 10 steps, 10.0 s early.",
        "Rank 1 is the slowest: 15 ms a step, the others 10 ms; who averages gradients with it waits.",
        "At step 9 the loss differs by 33 %: 0.1 on rank 0, 0.15 on rank 1.",
        "At step 8 the gradient norm is not finite on rank 3 only.",
    )
    assert [row.loss for row in ranks.rows] == pytest.approx([0.1, 0.15, 0.1])
    report = build_report(run, RULES)
    assert faults(json.loads(report.to_json()), SCHEMA) == []
    for shown in (" ".join(str(report).split()), report.to_html(), report.to_markdown()):
        assert "Rank 1 is the slowest: 15 ms a step" in shown
        assert "0.15 on rank 1" in shown


def test_ranks_that_nobody_can_read_do_not_stop_a_report(tmp_path: Path) -> None:
    run = write(tmp_path, 0, alerts=[alert()])
    (tmp_path / readings_file(1)).mkdir()
    (tmp_path / readings_file(2)).write_bytes(b"\xff\x00{" * 1000)
    (tmp_path / alerts_file(2)).write_text('{"code": 7}\n[[[[\n{"code": "CL1", "severity": "error"}\n' + "[" * 100_000)
    (tmp_path / readings_file(3)).symlink_to(tmp_path / readings_file(3))
    (tmp_path / readings_file(4)).write_text(
        '{"step": 19, "time": 1e308, "values": {"loss": [1, 2], "grad_norm": "NaN", "step_time": "x"}}\n'
        '{"step": 18, "time": -1, "values": {"loss": 1e999, "step_time": 0}}\n'
    )
    (tmp_path / "readings-rank99999999.jsonl").write_text("{}\n")
    (tmp_path / "readings-rank\u0663x.jsonl").write_text("")
    (tmp_path / alerts_file(4)).mkdir()
    os.mkfifo(tmp_path / readings_file(5))
    report = build_report(run, RULES)
    assert report.ranks is not None
    assert [finding.code for finding in report.findings] == ["CL901"]
    assert faults(json.loads(report.to_json()), SCHEMA) == []
    assert str(report)
    assert report.to_html()
    assert report.to_markdown()


def test_of_very_many_ranks_those_with_findings_are_read(tmp_path: Path) -> None:
    for rank in range(3 * MOST_RANKS):
        run = write(tmp_path, rank, steps=2, alerts=[alert()] if rank == 40 else [])
    report = build_report(run, RULES)
    assert report.ranks is not None
    assert len(report.ranks.rows) == MOST_RANKS
    assert [finding.code for finding in report.findings] == ["CL901"]
    assert report.place(report.findings[0]) == ", on rank 40"
    assert report.ranks.text[0] == f"{MOST_RANKS} of {3 * MOST_RANKS} logs were read, those with findings first."
