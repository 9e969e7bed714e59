from __future__ import annotations

import io

from rich.console import Console

from cockpit_lite.report import build_report
from cockpit_lite.report.terminal import print_alert, print_explanation
from tests.report.cases import RULES, LossRises, alert


def plain(width: int = 100) -> Console:
    return Console(file=io.StringIO(), width=width)


def test_an_alert_is_one_line_whatever_its_names_hold():
    console = plain(width=40)
    print_alert(alert(where=("[red]block[/red]\n\x1b[2J",), cause="The norm rose [bold] 100 times. " * 5), console)
    output = console.file.getvalue()
    assert output.count("\n") == 1
    assert output.startswith(r"error: CL901 loss-rises at step 12 in [red]block[/red] \x1b[2J: The norm rose [bold] 100 times.")


def test_an_alert_goes_to_standard_error(capsys):
    print_alert(alert())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: CL901 loss-rises at step 12: The loss rose from 2.3 to 9.1.\n"


def test_a_terminal_gets_colour_and_a_file_does_not():
    coloured = Console(file=io.StringIO(), force_terminal=True, color_system="standard", legacy_windows=False)
    print_alert(alert(), coloured)
    assert "\x1b[" in coloured.file.getvalue()
    console = plain()
    print_alert(alert(), console)
    assert "\x1b" not in console.file.getvalue()


def test_the_summary_holds_verdict_cause_advice_and_cost(make_run):
    run = make_run(alerts=(alert(where=("a", "b", "c", "d")), alert("CL902", "noise-dominates", "warning", 20)))
    report = build_report(run, RULES)
    report.save()
    console = plain(width=300)
    report.print(console)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "1 error and 1 warning in 40 steps. Look first at loss-rises (CL901) at step 12 in a."
    assert "error  CL901 loss-rises  step 12 in a, b, c and 1 more" in lines
    assert " What to do: Divide lr by 10." in [line.rstrip() for line in lines]
    assert any("CL903 too-flat: max_eigenvalue was not measured" in line for line in lines)
    assert "What measuring cost is not known: the log holds no figure for it." in lines
    assert lines[-1] == f"Report: {run.folder / 'report.html'}"


def test_the_summary_of_a_clean_run_names_what_passed(make_run):
    console = plain(width=300)
    build_report(make_run(), RULES).print(console)
    assert "Passed 1 check: no loss-rises." in console.file.getvalue()


def test_the_summary_without_a_step_says_why(make_run):
    console = plain(width=300)
    build_report(make_run(steps=0, final=None), RULES).print(console)
    output = console.file.getvalue()
    assert "- another optimizer took the steps" in output
    assert "The log does not say that the run has ended" in output
    assert "Not checked" not in output  # the reason would be the same for all of them


def test_escape_sequences_in_texts_do_not_reach_the_terminal(make_run):
    hostile = "\x1b]0;owned\x07[link=x]"
    run = make_run(
        alerts=(alert(name=hostile, cause=hostile, advice=hostile, where=(hostile,)),), not_measured={"max_eigenvalue": hostile}
    )
    console = plain()
    build_report(run, RULES).print(console)
    assert "\x1b" not in console.file.getvalue()
    assert "\x07" not in console.file.getvalue()
    assert "[link=x]" in console.file.getvalue()


def test_an_explanation_shows_text_code_and_lists():
    console = plain()
    print_explanation(LossRises(), console)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert lines[0] == "CL901 loss-rises  error"
    assert "How to be sure: the same with a tenth of lr falls:" in lines
    assert "    optimizer = SGD(model.parameters(), lr=0.01)" in lines
    assert "- in a game of two players" in lines
    assert lines[-1] == "Looks at: loss, grad_norm."
