from __future__ import annotations

import json
import math

import pytest

from cockpit_lite.report import build_report
from cockpit_lite.report.model import NO_STEP_REASONS
from tests.report.cases import RULES, alert, record


def test_passed_not_checked_and_found_share_the_rules_between_them(make_run):
    run = make_run(alerts=(alert(),), not_measured={"gradient_noise_scale": "the batch holds one sample"})
    report = build_report(run, RULES)
    assert [finding.code for finding in report.findings] == ["CL901"]
    assert report.passed == ()
    assert {check.code: check.reason for check in report.not_checked} == {
        "CL902": "gradient_noise_scale was not measured, because the batch holds one sample",
        "CL903": "max_eigenvalue was not measured: its instrument was not switched on",
    }


def test_a_rule_without_findings_passes_with_what_is_healthy(make_run):
    report = build_report(make_run(), RULES)
    assert [(check.code, check.name, check.reason) for check in report.passed] == [
        ("CL901", "loss-rises", "The loss never rose for long.")
    ]
    assert report.summary == "No fault found in 40 steps: 1 check passed; 2 checks could not be made."


def test_layerwise_readings_satisfy_a_need(make_run):
    class Layers(type(RULES[0])):
        needs = ("grad_norm",)

    run = make_run()
    del run._columns.series["grad_norm"]
    assert build_report(run, [Layers()]).passed


def test_a_rule_that_was_switched_off_has_not_passed(make_run):
    report = build_report(make_run(not_measured={"CL901": "the rule failed with a KeyError"}), RULES)
    assert {check.code: check.reason for check in report.not_checked}["CL901"] == "the rule failed with a KeyError"
    assert "CL901" not in report.not_measured


def test_the_first_cause_comes_first(make_run):
    alerts = (
        alert("CL1", severity="note", step=0),
        alert("CL2", severity="warning", step=3),
        alert("CL3", step=20),
        alert("CL4", step=5, confidence=0.5),
        alert("CL5", step=5, confidence=0.9),
    )
    report = build_report(make_run(alerts=alerts), RULES)
    assert [finding.code for finding in report.findings] == ["CL5", "CL4", "CL3", "CL2", "CL1"]
    assert report.summary == "3 errors, 1 warning and 1 note in 40 steps. Look first at loss-rises (CL5) at step 5."


def test_one_finding_is_named_with_its_place(make_run):
    report = build_report(make_run(alerts=(alert(where=("2.weight", "0.weight")),)), RULES)
    assert report.summary == "1 error in 40 steps. It is loss-rises (CL901) at step 12 in 2.weight."


def test_a_run_without_a_step_says_why_that_may_be(make_run):
    report = build_report(make_run(steps=0), RULES)
    assert report.summary == "No training step was seen, so nothing could be checked."
    assert report.no_step_reasons == NO_STEP_REASONS
    assert report.passed == ()
    assert {check.reason for check in report.not_checked} == {"no training step was seen"}


def test_what_the_user_logs_is_no_step(make_run):
    report = build_report(make_run(steps=1, final={"status": "finished", "steps": 0}), RULES)
    assert report.steps == 0
    assert report.passed == ()


def test_nothing_checked_is_not_called_clean(make_run):
    assert build_report(make_run(), RULES[1:]).summary.startswith("Nothing could be checked in 40 steps")


@pytest.mark.parametrize(
    ("recorded", "text"),
    [
        (
            {"measuring_seconds": 0.8, "training_seconds": 20.0, "share": 0.04, "instruments": {"a": 0.1, "b": 0.7}},
            "Measuring cost 4 % of the training time: 800 ms beside 20.0 s.",
        ),
        ({"measuring_seconds": 1.0, "training_seconds": 10.0}, "Measuring cost 10 % of the training time: 1.0 s beside 10.0 s."),
        ({"share": 0.04, "instruments": [1]}, "Measuring cost 4 % of the training time (written at the end of the run)."),
        (
            {"measuring_seconds": 3.0, "training_seconds": 0.46, "share": 6.48},
            "Measuring cost 6.5 times the training time: 3.0 s beside 460 ms.",
        ),
        ({"share": "NaN", "instruments": {"a": "x"}}, "What measuring cost is not known: the log holds no figure for it."),
        ({"share": True, "measuring_seconds": 10**400}, "What measuring cost is not known: the log holds no figure for it."),
        ("nonsense", "What measuring cost is not known: the log holds no figure for it."),
    ],
)
def test_the_cost_is_what_the_run_wrote_or_not_known(make_run, recorded, text):
    assert build_report(make_run(steps=2, final={"status": "finished", "cost": recorded}), RULES).cost.text == text


@pytest.mark.parametrize(("budget", "said"), [(0.05, True), (0.2, False), (None, False), ("x", False)])
def test_a_budget_that_was_not_kept_is_said(make_run, budget, said):
    run = make_run(steps=2, info={"budget": budget}, final={"cost": {"share": 0.1}})
    assert ("above the budget of 5 %" in build_report(run, RULES).cost.text) == said


def test_a_run_without_a_step_has_no_cost(make_run):
    run = make_run(steps=0, final={"cost": {"share": 0.0, "measuring_seconds": 0.0, "training_seconds": 0.0}})
    assert build_report(run, RULES).cost.text == "What measuring cost is not known: no step was measured."


def test_a_report_as_text_is_its_summary(make_run):
    text = str(build_report(make_run(alerts=(alert(),)), RULES))
    assert text.splitlines()[0] == "1 error in 40 steps. It is loss-rises (CL901) at step 12."
    assert "What to do: Divide lr by 10." in text


def test_the_dearest_instrument_comes_first(make_run):
    cost = {"share": 0.1, "instruments": {"cheap": 0.1, "dear": 0.7}}
    report = build_report(make_run(steps=2, final={"cost": cost}), RULES)
    assert list(report.cost.instruments) == ["dear", "cheap"]


def test_an_unfinished_run_takes_the_cost_from_its_last_overhead(make_run):
    run = make_run(final=None)
    record(run, "overhead", [0.5, 0.02], steps=[3, 9])
    report = build_report(run, RULES)
    assert report.status == "running"
    assert report.cost.text == "Measuring cost 2 % of the training time (the last overhead reading, at step 9)."


def test_json_is_strict_versioned_and_complete(make_run):
    run = make_run(steps=31, alerts=(alert(evidence={"loss": math.nan, "limit": 3.0}),), info={"odd": math.inf})
    content = build_report(run, RULES).to_json()
    report = json.loads(content, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))
    assert report["schema"] == 1
    assert report["run"] == "a-run"
    assert report["worst"] == "error"
    assert report["findings"][0]["evidence"] == {"loss": "NaN", "limit": 3.0}
    assert report["findings"][0]["explanation"].startswith("The loss rises")
    assert {row["name"]: row["value"] for row in report["last_values"]}["hessian_trace"] == "NaN"
    assert [check["code"] for check in report["not_checked"]] == ["CL902", "CL903"]
    assert {"passed", "not_measured", "cost", "info", "bad_lines", "status", "steps", "summary", "layers"} <= report.keys()


def test_save_writes_both_files_and_leaves_nothing_half_written(make_run, tmp_path):
    run = make_run(steps=3)
    report = build_report(run, RULES)
    assert report.save() == run.folder / "report.html"
    (run.folder / "report.html").write_text("old", encoding="utf-8")
    report.save()
    assert (run.folder / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert not list(run.folder.glob("*.part"))
    report.save(tmp_path / "elsewhere")
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["report.html", "report.json"]


def test_torn_and_foreign_lines_are_counted_not_fatal(make_run):
    run = make_run(alerts=(alert(),))
    with open(run.folder / "alerts.jsonl", "a", encoding="utf-8") as file:
        file.write('{"code": 1}\n[]\n{"code": "CL9')
    run.refresh()
    report = build_report(run, RULES)
    assert [finding.code for finding in report.findings] == ["CL901"]
    assert report.to_dict()["bad_lines"] == 2


def test_numbers_that_no_float_holds_are_left_out(make_run):
    run = make_run()
    with open(run.folder / "readings.jsonl", "a", encoding="utf-8") as file:
        file.write(f'{{"step": 40, "values": {{"loss": {10**400}}}}}\n{{"step": {10**30}, "values": {{"loss": 1.0}}}}\n')
    run.refresh()
    report = build_report(run, RULES)
    assert report.to_dict()["bad_lines"] == 2
    assert report.steps == 40


@pytest.mark.parametrize("value", [None, True, -1, 10**400, "NaN", "<b>\ud800", [], [[1], {"a": 2}], {}, {"": {"x": None}}])
@pytest.mark.parametrize("key", ["model", "optimizer", "status", "steps", "cost", "budget", "exception", "versions"])
def test_any_content_of_run_json_ends_in_a_report(make_run, key, value):
    run = make_run(steps=2)
    content = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    (run.folder / "run.json").write_text(json.dumps({**content, key: value}), encoding="utf-8")
    run.refresh()
    report = build_report(run, RULES)
    assert json.loads(report.to_json())["summary"] == report.summary
    assert str(report)
    report.save()
