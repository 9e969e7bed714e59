from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types

import pytest

from cockpit_lite import cli
from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.report import gauges, html
from cockpit_lite.run_log import RunWriter


class LossRises(Rule):
    """The loss rises instead of falling."""

    code, name, severity = "CL901", "loss-rises", "error"
    needs = ("loss",)
    healthy = "The loss never rose for long."


@pytest.fixture(autouse=True)
def rules(monkeypatch):
    monkeypatch.setattr("cockpit_lite.diagnosis.RULES", (LossRises(),))
    monkeypatch.setattr(html, "draw_picture", lambda report: html.Picture(problem="left out by the test"))
    monkeypatch.setattr(gauges, "overview_png", lambda run: b"")


@pytest.fixture
def make_run(tmp_path):
    def make(*severities: str, steps: int = 3) -> str:
        writer = RunWriter(tmp_path / "run", {"model": "Net", "status": "running"})
        for step in range(steps):
            writer.step(step, {"loss": 1.0})
        for severity in severities:
            writer.alert(Alert("CL901", "loss-rises", severity, 1, cause="It rose.", advice="Lower it.").to_dict())
        writer.close(status="completed", steps=steps)
        return str(tmp_path / "run")

    return make


def python(*arguments: str, **more) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment, **more
    )


@pytest.mark.parametrize(
    ("severities", "fail_on", "code"),
    [
        ([], "note", 0),
        (["note"], "note", 1),
        (["note"], "warning", 0),
        (["note", "warning"], "warning", 1),
        (["warning"], "error", 0),
        (["error"], "note", 1),
        (["error"], "error", 1),
    ],
)
def test_check_fails_from_the_chosen_severity_on(make_run, capsys, severities, fail_on, code):
    assert cli.main(["check", make_run(*severities), "--fail-on", fail_on]) == code
    output = capsys.readouterr().out
    assert ("loss-rises at step 1: It rose." in output) == (code == 1)


def test_check_fails_on_errors_by_default(make_run):
    run = make_run("warning")
    assert cli.main(["check", run]) == 0
    with open(os.path.join(run, "alerts.jsonl"), "a", encoding="utf-8") as file:
        file.write(json.dumps(Alert("CL901", "x", "error", 2, cause="", advice="").to_dict()) + "\n")
    assert cli.main(["check", run]) == 1


def test_check_calls_a_run_without_steps_neither_clean_nor_broken(make_run, capsys):
    assert cli.main(["check", make_run(steps=0)]) == 2
    assert capsys.readouterr().err == "cockpit-lite: No training step was seen, so nothing could be checked.\n"


def test_check_calls_a_run_without_the_readings_it_needs_neither_clean_nor_broken(make_run, capsys, monkeypatch):
    class Blind(LossRises):
        needs = ("never_measured",)

    monkeypatch.setattr("cockpit_lite.diagnosis.RULES", (Blind(),))
    assert cli.main(["check", make_run()]) == 2
    assert "no check had the readings that it needs" in capsys.readouterr().err


def test_check_says_that_lines_were_unreadable(make_run, capsys):
    run = make_run()
    with open(os.path.join(run, "alerts.jsonl"), "a", encoding="utf-8") as file:
        file.write("garbage\n")
    assert cli.main(["check", run]) == 0
    assert "1 line of the log could not be read" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "report"])
def test_what_is_no_run_ends_in_one_line_and_2(tmp_path, capsys, command):
    assert cli.main([command, str(tmp_path / "no\nrun")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cockpit-lite: ")
    assert error.count("\n") == 1
    (tmp_path / "run.json").write_text('{"schema": 99}', encoding="utf-8")
    assert cli.main([command, str(tmp_path)]) == 2
    assert "Upgrade cockpit-lite" in capsys.readouterr().err


def test_report_writes_the_files_and_prints_the_summary(make_run, capsys):
    run = make_run("error")
    assert cli.main(["report", run]) == 0
    assert os.path.isfile(os.path.join(run, "report.html"))
    assert os.path.isfile(os.path.join(run, "report.json"))
    output = capsys.readouterr().out
    assert output.startswith("1 error in 3 steps. It is loss-rises (CL901) at step 1.")
    assert "report.html" in output


def test_report_html_prints_the_path_alone(make_run, capsys):
    run = make_run()
    assert cli.main(["report", run, "--html"]) == 0
    assert capsys.readouterr().out == os.path.join(run, "report.html") + "\n"


def test_report_is_printed_as_markdown(make_run, capsys):
    run = make_run("error")
    assert cli.main(["report", run, "--format", "markdown"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("## Training report: run\n")
    assert "### 🔴 loss-rises (error, `CL901`)" in output
    assert not os.path.exists(os.path.join(run, "report.html"))


@pytest.mark.parametrize("form", ["--json", "--terminal", "--format=json"])
def test_report_can_be_shown_without_writing(make_run, capsys, form):
    run = make_run("error")
    before = sorted(os.listdir(run))
    assert cli.main(["report", run, form]) == 0
    assert sorted(os.listdir(run)) == before
    output = capsys.readouterr().out
    assert (json.loads(output)["summary"] if "json" in form else output).startswith("1 error in 3 steps.")


def test_report_of_a_folder_that_cannot_be_written_is_one_line(make_run, capsys):
    run = make_run()
    os.mkdir(os.path.join(run, "report.json.part"))
    assert cli.main(["report", run]) == 2
    assert re.fullmatch(r"cockpit-lite: .*report\.json\.part.*\n", capsys.readouterr().err)


def test_explain_lists_and_explains(capsys):
    assert cli.main(["explain"]) == 0
    assert capsys.readouterr().out.split() == ["CL901", "error", "loss-rises"]
    for wanted in ("CL901", "cl901", "Loss-Rises"):
        assert cli.main(["explain", wanted]) == 0
        assert "The loss rises instead of falling." in capsys.readouterr().out


def test_explain_suggests_what_may_have_been_meant(capsys):
    assert cli.main(["explain", "loss-rise"]) == 2
    assert capsys.readouterr().err == "cockpit-lite: there is no finding 'loss-rise'. Did you mean loss-rises?\n"
    assert cli.main(["explain", "zzz"]) == 2
    assert "lists them all" in capsys.readouterr().err


def test_demo_hands_its_options_on(monkeypatch):
    calls = []
    demo = types.ModuleType("cockpit_lite.demo")
    demo.run_demo = lambda *, broken, run, steps, live, seed: calls.append((broken, run, steps, live, seed))
    monkeypatch.setitem(sys.modules, "cockpit_lite.demo", demo)
    assert cli.main(["demo"]) == 0
    assert cli.main(["demo", "--broken", "lr-too-high", "--run", "there", "--steps", "7", "--live", "--seed", "3"]) == 0
    assert calls == [(None, None, None, None, 0), ("lr-too-high", "there", 7, "window", 3)]


def test_watch_hands_its_options_on(monkeypatch):
    calls = []
    live = types.ModuleType("cockpit_lite.live")
    live.make_way = lambda: None
    live.watch = lambda folder, mode, pid, rank, port: calls.append((folder, mode, pid, rank, port))
    monkeypatch.setitem(sys.modules, "cockpit_lite.live", live)
    assert cli.main(["watch", "there"]) == 0
    assert cli.main(["watch", "there", "--terminal", "--pid", "12"]) == 0
    assert cli.main(["watch", "there", "--serve", "--port", "0", "--rank", "3"]) == 0
    assert calls == [("there", "window", None, 0, 8988), ("there", "terminal", 12, 0, 8988), ("there", "serve", None, 3, 0)]


def test_an_interrupt_is_no_traceback(monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_explain", interrupted)
    assert cli.main(["explain"]) == 130


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["demo", "--steps", "0"],
        ["demo", "--broken", "leg"],
        ["watch", "x", "--window", "--terminal"],
        ["watch", "x", "--port", "70000"],
    ],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: cockpit-lite" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_module_and_command_are_the_same(arguments):
    result = python("-m", "cockpit_lite", *arguments)
    assert result.returncode == 0
    assert "cockpit-lite" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("command", ["check", "explain", "report --terminal", "report --json"])
def test_reading_commands_load_neither_torch_nor_matplotlib(make_run, command):
    name, *options = command.split()
    arguments = [name, *options, *([make_run("error")] if name != "explain" else [])]
    code = (
        "import sys; from cockpit_lite.cli import main; code = main(sys.argv[1:]);"
        "loaded = {'torch', 'matplotlib', 'jinja2'} & set(sys.modules); sys.exit(f'loaded {loaded}' if loaded else code)"
    )
    result = python("-c", code, *arguments)
    assert (result.returncode, result.stderr) == (1 if name == "check" else 0, "")


@pytest.mark.parametrize("command", ["check", "report --json", "report --terminal"])
def test_a_closed_pipe_is_quiet_and_no_verdict(make_run, command):
    name, *options = command.split()
    process = subprocess.Popen(
        [sys.executable, "-m", "cockpit_lite", name, make_run("error"), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141
    assert error == b""


def test_a_terminal_that_knows_ascii_only_gets_a_report(make_run):
    run = make_run("error")
    with open(os.path.join(run, "alerts.jsonl"), "a", encoding="utf-8") as file:
        file.write(
            json.dumps(Alert("CL902", "x", "error", 2, where=("b\u00fcro",), cause="\u2016g\u2016", advice="").to_dict()) + "\n"
        )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "cockpit_lite", "report", run, "--terminal"]
    result = subprocess.run(command, capture_output=True, timeout=60, check=False, env=environment)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"?g?" in result.stdout


def test_compare_writes_a_page_and_says_what_was_left_out(make_run, tmp_path, capsys, monkeypatch):
    first = make_run("error")
    (tmp_path / "run").rename(tmp_path / "first")
    second, page = make_run(), tmp_path / "pages.html"
    first = str(tmp_path / "first")
    assert cli.main(["compare", first, second, str(tmp_path / "nothing"), "--output", str(page)]) == 0
    output, errors = capsys.readouterr()
    assert "Went away: loss-rises." in output
    assert output.endswith(f"Comparison: {page}\n")
    assert errors.startswith("cockpit-lite: left out: ") and "nothing is not a folder" in errors
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    page.unlink()
    assert cli.main(["compare", first, second, "--json", "--output", str(page)]) == 0
    assert json.loads(capsys.readouterr().out)["findings"][0]["change"] == "went"
    assert not page.exists()
    assert cli.main(["compare", first, str(tmp_path / "nothing")]) == 2
    assert "There are not two runs to compare." in capsys.readouterr().err
