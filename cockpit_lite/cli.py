"""The command line: demo, run, watch, report, compare, replay, explain, check.

Torch, matplotlib and jinja2 are imported by the commands that use them, so that ``check`` and ``explain`` answer at once.
Exit codes: 0 done and clean, 1 findings (``check``), 2 wrong usage or a run that could not be read.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from cockpit_lite.alert import SEVERITIES
from cockpit_lite.errors import CockpitError

if TYPE_CHECKING:
    from rich.console import Console

    from cockpit_lite.diagnosis.rule import Rule

CLEAN, FINDINGS, UNUSABLE = 0, 1, 2
INTERRUPTED, PIPE_CLOSED = 128 + 2, 128 + 13  # as a shell reports SIGINT and SIGPIPE

#: What the demo can break on purpose; the report then names the fault.
BROKEN = ("exploding", "vanishing", "ill-conditioned", "lr-too-high", "lr-too-low")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a name that the terminal's encoding lacks is no reason to stop
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # "cockpit-lite report RUN | head": nobody reads on, and that is all right
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except (CockpitError, OSError) as error:
        return _fail(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cockpit-lite",
        description="Watch a PyTorch training run from the inside, and be told what is wrong and how to mend it.",
    )
    parser.add_argument("--version", action="version", version=f"cockpit-lite {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="train a small net on real images and show its cockpit",
        description="Train a small convolutional net on scikit-learn's digits, show its cockpit and write its report.",
    )
    demo.add_argument("--broken", choices=BROKEN, help="break the training on purpose; the report then names the fault")
    demo.add_argument("--run", metavar="DIR", help="folder for the run (default: a new one under runs/)")
    demo.add_argument("--steps", type=_positive, metavar="N", help="number of optimizer steps")
    demo.add_argument("--live", action="store_true", help="open a window that follows the training")
    demo.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the weights and of the order of the images (default: 0)"
    )
    demo.set_defaults(command=_demo)

    run = commands.add_parser(
        "run",
        help="run a training script as it is, and watch what it trains",
        usage="cockpit-lite run [options] [-m] SCRIPT [its arguments]",
        description="Run a training script, unchanged, as python does, and watch the models that it trains. "
        "The exit code is the script's own.",
    )
    run.add_argument("--run", metavar="DIR", help="folder for the run (default: a new one under runs/)")
    run.add_argument(
        "--instruments",
        metavar="NAMES",
        default="standard",
        help="light, standard, full, or names joined by commas (default: standard)",
    )
    run.add_argument(
        "--budget",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="share of training time that measuring may cost (default: 0.05)",
    )
    run.add_argument("--live", choices=("window", "terminal"), help="watch while it trains")
    run.add_argument(
        "--fail-on", choices=SEVERITIES, help="exit with 1 if the script ended well and has such findings, or graver ones"
    )
    run.add_argument("-m", dest="is_module", action="store_true", help="SCRIPT is the name of a module, as for python -m")
    run.add_argument("script", metavar="SCRIPT", help="the training script")
    run.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="its own arguments")
    run.set_defaults(command=_run)

    watch = commands.add_parser("watch", help="follow a run that is going on, or look at one that has ended")
    watch.add_argument("run", metavar="RUN", help="folder of the run")
    where = watch.add_mutually_exclusive_group()
    where.add_argument("--window", dest="mode", action="store_const", const="window", help="in a window (the default)")
    where.add_argument("--terminal", dest="mode", action="store_const", const="terminal", help="in this terminal")
    where.add_argument(
        "--serve", dest="mode", action="store_const", const="serve", help="in a browser on this machine, or through ssh -L"
    )
    watch.add_argument("--port", type=_port, default=8988, metavar="N", help="for --serve (default: 8988; 0: any that is free)")
    watch.add_argument(
        "--rank", type=_rank, default=0, metavar="N", help="whose readings, where several processes train together (default: 0)"
    )
    watch.add_argument(
        "--pid", type=_positive, metavar="N", help="process that trains; when it has gone, the run is taken to have ended"
    )
    watch.set_defaults(command=_watch, mode="window")

    report = commands.add_parser(
        "report",
        help="write the report of a run anew, also of one that crashed",
        description="Write report.html and report.json into the run's folder and print a summary.",
    )
    report.add_argument("run", metavar="RUN", help="folder of the run")
    form = report.add_mutually_exclusive_group()
    form.add_argument(
        "--format",
        dest="form",
        choices=("html", "json", "markdown", "terminal"),
        help="html: write the files, print the path of the page; else print it and write nothing (markdown: for a pull request)",
    )
    form.add_argument(
        "--html", dest="form", action="store_const", const="html", help="write the files and print the path of the page only"
    )
    form.add_argument("--json", dest="form", action="store_const", const="json", help="print the JSON, write nothing")
    form.add_argument("--terminal", dest="form", action="store_const", const="terminal", help="print the summary, write nothing")
    report.set_defaults(command=_report, form="all")

    replay = commands.add_parser(
        "replay",
        help="run a step that went wrong once more, and name the operation that did it",
        description="Run a kept step again: put its weights into a model that your function makes, feed it the batch, and name "
        "the first module and operation that makes NaN or infinity of finite numbers, forward or backward. Exit with 1 if there "
        "is one. The file of the step executes nothing; the function that you name does.",
    )
    replay.add_argument("run", metavar="RUN", help="folder of the run, or the file of a kept step in its folder black_box")
    replay.add_argument("--model", required=True, metavar="MODULE:FUNCTION", help="makes the model, such as train:make_model")
    replay.add_argument("--loss", metavar="MODULE:FUNCTION", help="the loss, called with the model's output and the targets")
    replay.add_argument("--step", type=int, metavar="N", help="which of the kept steps (default: the first)")
    replay.add_argument("--device", default="cpu", metavar="NAME", help="where to run, such as cuda (default: cpu)")
    replay.add_argument("--json", action="store_true", help="print the answer as JSON")
    replay.set_defaults(command=_replay)

    compare = commands.add_parser(
        "compare",
        help="put runs side by side: shared readings, settings that differ, findings that came or went",
        description="Compare runs with the first: write a page, print a summary. What cannot be read is named and left out.",
    )
    compare.add_argument("runs", metavar="RUN", nargs="+", help="folders of the runs, at least two")
    compare.add_argument("--output", metavar="FILE", default="comparison.html", help="the page (default: comparison.html)")
    view = compare.add_mutually_exclusive_group()
    view.add_argument("--html", dest="form", action="store_const", const="html", help="write the page and print its path only")
    view.add_argument("--json", dest="form", action="store_const", const="json", help="print the JSON, write nothing")
    view.add_argument("--terminal", dest="form", action="store_const", const="terminal", help="print the summary, write nothing")
    compare.set_defaults(command=_compare, form="all")

    export = commands.add_parser(
        "export",
        help="write the readings of a run as a table, or into a tracker",
        description="Tell the readings of a run, also of one that crashed, and its alerts to a file or a tracker.",
    )
    export.add_argument("run", metavar="RUN", help="folder of the run")
    export.add_argument(
        "place", metavar="PLACE", help="a file that ends in .csv or .parquet, or tensorboard, wandb, mlflow, trackio"
    )
    export.add_argument("--rank", type=_rank, default=0, metavar="N", help="whose readings, of several processes (default: 0)")
    export.set_defaults(command=_export)

    explain = commands.add_parser("explain", help="say what a finding means and how to mend it; without a code, list them all")
    explain.add_argument(
        "code", metavar="CODE", nargs="?", help="code or name of a finding, such as CL201 or exploding-gradients"
    )
    explain.set_defaults(command=_explain)

    check = commands.add_parser(
        "check",
        help="for scripts and CI: fail if a run has findings",
        description="Exit with 0 if the run is clean, 1 if it has findings, 2 if it cannot be read or nothing could be checked.",
    )
    check.add_argument("run", metavar="RUN", help="folder of the run")
    check.add_argument("--fail-on", choices=SEVERITIES, default="error", help="the mildest finding that fails (default: error)")
    check.add_argument("--junit", metavar="FILE", help="also write the checks as JUnit XML, which continuous integration shows")
    check.add_argument("--json", action="store_true", help="print the report as JSON in place of the findings")
    check.set_defaults(command=_check)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from cockpit_lite.demo import run_demo

    # The cockpit prints its summary, and where picture and report are, when training ends.
    live = "window" if options.live else None
    run_demo(broken=options.broken, run=options.run, steps=options.steps, live=live, seed=options.seed)
    return CLEAN


def _run(options: argparse.Namespace) -> int:
    from cockpit_lite.run import load_run
    from cockpit_lite.script import Watch, run_script

    watch = Watch(options.run, instruments=options.instruments.split(","), budget=options.budget, live=options.live)
    code = run_script(options.script, options.arguments, watch, is_module=options.is_module)
    if not watch.folders:
        sys.stderr.write("cockpit-lite: no training was seen: no module was called that holds parameters of an optimizer.\n")
    if code == CLEAN and options.fail_on is not None:
        failing = _failing(options.fail_on)
        found = (alert for folder in watch.folders for alert in load_run(folder).alerts)
        return FINDINGS if any(alert.severity in failing for alert in found) else CLEAN
    return code


def _watch(options: argparse.Namespace) -> int:
    from cockpit_lite.live import make_way, watch

    make_way()
    watch(options.run, options.mode, pid=options.pid, rank=options.rank, port=options.port)
    return CLEAN


def _report(options: argparse.Namespace) -> int:
    from cockpit_lite.report import build_report
    from cockpit_lite.run import load_run

    report = build_report(load_run(options.run))
    if options.form in ("json", "markdown"):
        sys.stdout.write(report.to_json() if options.form == "json" else report.to_markdown())
        return CLEAN
    if options.form != "terminal":
        page = report.save()
        if options.form == "html":
            sys.stdout.write(f"{page}\n")
            return CLEAN
    report.print(_console())
    return CLEAN


def _replay(options: argparse.Namespace) -> int:
    from cockpit_lite.black_box import answer, command

    verdict = command.run(options.run, options.model, options.loss, options.step, options.device)
    if options.json:
        sys.stdout.write(answer.to_json(verdict))
    else:
        answer.print_verdict(verdict, _console())
    return CLEAN if verdict.kind == "nothing" else FINDINGS


def _compare(options: argparse.Namespace) -> int:
    from cockpit_lite.compare import compare_runs
    from cockpit_lite.report.text import one_line

    comparison = compare_runs(options.runs)
    for one in comparison.left_out:
        sys.stderr.write(f"cockpit-lite: left out: {one_line(one.reason)}\n")
    if options.form == "json":
        sys.stdout.write(comparison.to_json())
        return CLEAN
    if options.form != "html":
        comparison.print(_console())
    if options.form != "terminal":
        page = comparison.save(options.output)
        sys.stdout.write(f"{page}\n" if options.form == "html" else f"Comparison: {one_line(page)}\n")
    return CLEAN


def _export(options: argparse.Namespace) -> int:
    from cockpit_lite.export import export, sink_for
    from cockpit_lite.run import load_run

    export(load_run(options.run, options.rank), sink_for(options.place))
    return CLEAN


def _explain(options: argparse.Namespace) -> int:
    from rich.table import Table
    from rich.text import Text

    from cockpit_lite.diagnosis import known_rules
    from cockpit_lite.report.terminal import STYLES, print_explanation

    console = _console()
    rules = known_rules()
    if options.code is None:
        table = Table.grid(padding=(0, 2))
        for rule in rules:
            table.add_row(rule.code, Text(rule.severity, style=STYLES[rule.severity]), rule.name)
        console.print(table)
        return CLEAN
    print_explanation(_find_rule(options.code, rules), console)
    return CLEAN


def _find_rule(wanted: str, rules: Sequence[Rule]) -> Rule:
    known = {key.lower(): rule for rule in rules for key in (rule.code, rule.name)}
    try:
        return known[wanted.lower()]
    except KeyError:
        near = difflib.get_close_matches(wanted.lower(), known, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "cockpit-lite explain lists them all."
        raise CockpitError(f"there is no finding {wanted!r}. {hint}") from None


def _check(options: argparse.Namespace) -> int:
    from cockpit_lite.report.model import build_report
    from cockpit_lite.report.terminal import print_alert
    from cockpit_lite.report.text import count, one_line
    from cockpit_lite.run import load_run

    report = build_report(load_run(options.run))
    if report.run.bad_lines:
        sys.stderr.write(f"cockpit-lite: {count(report.run.bad_lines, 'line')} of the log could not be read.\n")
    failing = _failing(options.fail_on)
    console = _console()
    findings = [alert for alert in report.findings if alert.severity in failing]
    if options.junit is not None:
        from cockpit_lite.report.junit import junit

        Path(options.junit).write_text(junit(report, failing), encoding="utf-8")
    if options.json:
        sys.stdout.write(report.to_json())
        return FINDINGS if findings else CLEAN if report.passed or report.findings else UNUSABLE
    for alert in findings:
        print_alert(alert, console)
    if findings:
        return FINDINGS
    if not report.passed and not report.findings:  # "clean" would be a verdict on nothing
        return _fail(report.summary)
    console.print(one_line(f"{report.summary} {report.ending}"), markup=False, highlight=False, soft_wrap=True)
    return CLEAN


def _failing(mildest: str) -> Sequence[str]:
    return SEVERITIES[: SEVERITIES.index(mildest) + 1]


def _console() -> Console:
    from rich.console import Console

    class PipedConsole(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich would exit with 1, which says "findings" here; main() knows what to do

    return PipedConsole()


def _fail(message: str) -> int:
    from cockpit_lite.report.text import one_line

    sys.stderr.write(f"cockpit-lite: {one_line(message)}\n")
    return UNUSABLE


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**16:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535, not {number}")
    return number


def _rank(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {number}")
    return number


def _version() -> str:
    try:
        return version("cockpit-lite")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "(not installed)"
