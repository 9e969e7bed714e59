"""What a report says, before it is drawn anywhere."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cockpit_lite.alert import SEVERITIES, Alert
from cockpit_lite.diagnosis.ranking import rank
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.report.explain import explanation
from cockpit_lite.report.ranks import Ranks, read_ranks
from cockpit_lite.report.story import Phase, phases
from cockpit_lite.report.text import count, format_seconds, format_share, listed
from cockpit_lite.report.values import LastValue, LayerSpan, last_values, layer_spans
from cockpit_lite.run_log import decode, encode, replace_file

if TYPE_CHECKING:
    from rich.console import Console

    from cockpit_lite.run import Run

#: Of ``report.json``; raised when a field changes its meaning or goes.
SCHEMA_VERSION = 1
HTML_FILE = "report.html"
PICTURE_FILE = "cockpit.png"
JSON_FILE = "report.json"

_TEXT_WIDTH = 100

#: Why most checks of a run with few instruments are not made.
NOT_SWITCHED_ON = "its instrument was not switched on"

#: Why a cockpit may leave its block without having seen a step, the likeliest first.
NO_STEP_REASONS = (
    "optimizer.step() was never called inside the with block: does the loop run inside it, and does the loader yield a batch?",
    "another optimizer took the steps: hand the one that trains the model (or a list of all of them) to Cockpit.",
    "the model handed to Cockpit was not the one called: a copy or one of its parts was, or its forward was called directly.",
    "the model was only called without gradients, under torch.no_grad() or torch.inference_mode().",
    "every step was skipped by a gradient scaler, because the gradients were not finite.",
)


@dataclass(frozen=True)
class Check:
    """A check that passed or could not be made.

    Attributes:
        code: Of the rule.
        name: Of the fault that was looked for.
        reason: What is healthy, for a check that passed; otherwise why it was not made.
    """

    code: str
    name: str
    reason: str


@dataclass(frozen=True)
class Cost:
    """What measuring cost.

    Attributes:
        share: Of the training time; None if it is not known.
        measuring_seconds: Time spent measuring, or None.
        training_seconds: Time of the training it is compared with, or None.
        instruments: Seconds by instrument, the dearest first.
        budget: The share that measuring was allowed, or None.
        source: Where the figures come from, or why there are none.
    """

    share: float | None = None
    measuring_seconds: float | None = None
    training_seconds: float | None = None
    instruments: Mapping[str, float] = field(default_factory=dict)
    budget: float | None = None
    source: str = "the log holds no figure for it"

    @property
    def text(self) -> str:
        """The cost in one sentence."""
        if self.share is None:
            return f"What measuring cost is not known: {self.source}."
        share = f"{self.share:,.1f} times" if self.share >= 2 else f"{format_share(self.share)} of"
        text = f"Measuring cost {share} the training time"
        if self.measuring_seconds is None or self.training_seconds is None:
            text += f" ({self.source})."
        else:
            text += f": {format_seconds(self.measuring_seconds)} beside {format_seconds(self.training_seconds)}."
        if self.budget is not None and self.share > 1.1 * self.budget:
            allowed = format_share(self.budget)
            text += f" That is above the budget of {allowed}: the first steps are measured on credit, and paid back later."
        return text


@dataclass(frozen=True)
class Report:
    """The diagnostic report of a run, as it stood when the report was built.

    Attributes:
        run: The run itself.
        findings: The alerts, the first cause first.
        passed: Checks that had what they need and found nothing.
        not_checked: Checks that could not be made, with the reason.
        cost: What measuring cost.
        not_measured: Reading name -> why there is no number for it.
        explanations: Rule code -> the longer explanation of the finding.
        watched: Rule code -> the readings that the rule looks at.
        ranks: What the processes that trained together saw, and in what they differ; None: one process has trained. The findings
            are those of all of them, everything else is of the first.
    """

    run: Run = field(repr=False)
    findings: tuple[Alert, ...]
    passed: tuple[Check, ...]
    not_checked: tuple[Check, ...]
    cost: Cost
    not_measured: Mapping[str, str]
    explanations: Mapping[str, str] = field(repr=False)
    watched: Mapping[str, tuple[str, ...]] = field(repr=False)
    ranks: Ranks | None = field(default=None, repr=False)

    def place(self, alert: Alert) -> str:
        """Return on which ranks a finding was made, ", on rank 3"; empty: on all."""
        where = self.ranks.where(alert) if self.ranks is not None else ""
        return f", {where}" if where else ""

    @property
    def info(self) -> Mapping[str, Any]:
        """What ran: the content of ``run.json``."""
        return self.run.info

    @property
    def steps(self) -> int:
        """How many optimizer steps the run has taken."""
        return _steps(self.run)

    @property
    def status(self) -> str:
        """How the run ended, or "running" if nothing says that it did."""
        return str(self.info.get("status") or "running")

    @property
    def ending(self) -> str:
        """What to know about how the run ended, in a sentence; empty where it ended in order."""
        if self.status == "running":
            return "The log does not say that the run has ended: it is still going on, or it was broken off."
        if self.status == "interrupted":
            return "The run was interrupted from the keyboard."
        exception = self.info.get("exception")
        return f"The training loop ended with an exception: {exception}" if exception else ""

    @property
    def worst(self) -> str | None:
        """The severity of the worst finding, or None."""
        return self.findings[0].severity if self.findings else None

    @property
    def summary(self) -> str:
        """The verdict in one sentence."""
        if not self.steps:
            return "No training step was seen, so nothing could be checked."
        steps = count(self.steps, "step")
        if not self.findings:
            if not self.passed:
                return f"Nothing could be checked in {steps}: no check had the readings that it needs."
            rest = f"; {count(len(self.not_checked), 'check')} could not be made" if self.not_checked else ""
            return f"No fault found in {steps}: {count(len(self.passed), 'check')} passed{rest}."
        counts = [count(sum(alert.severity == severity for alert in self.findings), severity) for severity in SEVERITIES]
        first = self.findings[0]
        where = f" in {first.where[0]}" if first.where else ""
        found = listed([text for text in counts if not text.startswith("0 ")])
        lead = "It is" if len(self.findings) == 1 else "Look first at"
        return f"{found} in {steps}. {lead} {first.name} ({first.code}) at step {first.step}{where}{self.place(first)}."

    @property
    def no_step_reasons(self) -> tuple[str, ...]:
        """Why no step may have been seen; empty if there was one."""
        return () if self.steps else NO_STEP_REASONS

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The story of the run: stretches of steps with one course of the loss."""
        return phases(self.run, self.findings)

    @property
    def last_values(self) -> list[LastValue]:
        """The last value of every reading of the whole run."""
        return last_values(self.run)

    @property
    def layer_spans(self) -> list[LayerSpan]:
        """The range over the layers of every layerwise reading, at its last value."""
        return layer_spans(self.run)

    def __str__(self) -> str:
        """Return what :meth:`print` prints, as plain text."""
        from rich.console import Console

        console = Console(file=io.StringIO(), width=_TEXT_WIDTH)
        self.print(console)
        return console.file.getvalue().rstrip("\n")  # type: ignore[attr-defined]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as strict JSON can hold it; the content of ``report.json``.

        Not finite numbers are the strings "NaN", "Infinity" and "-Infinity", as in the run log.
        """
        return encode(
            {
                "schema": SCHEMA_VERSION,
                "run": self.run.folder.resolve().name,
                "summary": self.summary,
                "worst": self.worst,
                "steps": self.steps,
                "status": self.status,
                "ending": self.ending,
                "findings": [self._finding(alert) for alert in self.findings],
                "phases": [asdict(phase) for phase in self.phases],
                "passed": [asdict(check) for check in self.passed],
                "not_checked": [asdict(check) for check in self.not_checked],
                "not_measured": self.not_measured,
                "cost": asdict(self.cost),
                "last_values": [asdict(row) for row in self.last_values],
                "layers": [asdict(row) for row in self.layer_spans],
                "ranks": None if self.ranks is None else self.ranks.to_dict(),
                "bad_lines": self.run.bad_lines,
                "info": self.info,
            }
        )

    def _finding(self, alert: Alert) -> dict[str, Any]:
        found_by = (self.run.rank,) if self.ranks is None else self.ranks.found_by.get(alert.code, ())
        return {**alert.to_dict(), "ranks": list(found_by), "explanation": self.explanations.get(alert.code, "")}

    def to_json(self) -> str:
        """Return :meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def to_html(self) -> str:
        """Return the report as one HTML page that needs nothing beside it."""
        from cockpit_lite.report.html import render_html  # draws, so it loads matplotlib and jinja2

        return render_html(self)

    def to_markdown(self) -> str:
        """Return the report as Markdown, for a pull request or an issue."""
        from cockpit_lite.report.markdown import render_markdown

        return render_markdown(self)

    def print(self, console: Console | None = None) -> None:
        """Print a summary; plain text where the output is no terminal."""
        from cockpit_lite.report.terminal import print_report

        print_report(self, console)

    def save(self, folder: str | os.PathLike[str] | None = None) -> Path:
        """Write ``report.html``, ``report.json`` and ``cockpit.png`` into ``folder`` (default: that of the run).

        Returns:
            The path of ``report.html``. There is no ``cockpit.png`` of a run without steps, nor where drawing fails.

        Raises:
            OSError: if the folder cannot be written.
        """
        from cockpit_lite.report.gauges import overview_png
        from cockpit_lite.report.html import render_html

        target = Path(folder) if folder is not None else self.run.folder
        target.mkdir(parents=True, exist_ok=True)
        write_atomically(target / JSON_FILE, self.to_json())
        page = render_html(self)
        if self.steps and (picture := overview_png(self.run)):
            write_atomically(target / PICTURE_FILE, picture)
        return write_atomically(target / HTML_FILE, page)


def build_report(run: Run, rules: Iterable[Rule] | None = None) -> Report:
    """Return the report of a run, finished or not.

    Args:
        run: The run.
        rules: What was looked for; default: all the rules there are.
    """
    if rules is None:
        from cockpit_lite.diagnosis import known_rules

        rules = known_rules()
    rules = tuple(rules)
    ranks = read_ranks(run)
    alerts = run.alerts if ranks is None else ranks.alerts
    found = {alert.code for alert in alerts}
    passed: list[Check] = []
    not_checked: list[Check] = []
    measured = {part for name in run.names for part in (name, name.partition("/")[0])}
    for rule in rules:
        if rule.code in found:
            continue
        reason = _why_not_checked(rule, run, measured)
        (not_checked if reason else passed).append(Check(rule.code, rule.name, reason or rule.healthy))
    switched_off = {key for rule in rules for key in (rule.code, rule.name)}
    return Report(
        run=run,
        findings=tuple(rank(alerts, rules)),
        passed=tuple(passed),
        not_checked=tuple(not_checked),
        cost=_cost(run),
        not_measured={name: why for name, why in sorted(run.not_measured.items()) if name not in switched_off},
        explanations={rule.code: explanation(rule) for rule in rules},
        watched={rule.code: tuple(rule.needs) for rule in rules},
        ranks=ranks,
    )


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Write a file beside and move it into place, so that a browser never loads half of it."""
    replace_file(path, content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def _steps(run: Run) -> int:
    # What the user logs has a step too, so where the cockpit has counted, its count holds.
    counted = run.info.get("steps")
    if isinstance(counted, int) and run.info.get("status", "running") != "running":
        return max(counted, 0)
    return 0 if run.last_step is None else run.last_step + 1


def _why_not_checked(rule: Rule, run: Run, measured: set[str]) -> str | None:
    for key in (rule.code, rule.name):
        if key in run.not_measured:  # the rule itself was switched off
            return run.not_measured[key]
    if not _steps(run):
        return "no training step was seen"
    missing = [_missing(need, run) for need in rule.needs if need not in measured]
    return "; ".join(missing) or None


def _missing(need: str, run: Run) -> str:
    reason = run.not_measured.get(need)
    if reason:
        return f"{need} was not measured, because {reason}"
    return f"{need} was not measured: {NOT_SWITCHED_ON}"


def _cost(run: Run) -> Cost:
    if not _steps(run):
        return Cost(source="no step was measured")
    recorded, budget = run.info.get("cost"), _number(run.info.get("budget"))
    if isinstance(recorded, Mapping):
        measuring, training = _number(recorded.get("measuring_seconds")), _number(recorded.get("training_seconds"))
        share = _number(recorded.get("share"))
        if share is None and measuring is not None and training:
            share = measuring / training
        by_instrument = recorded.get("instruments")
        rows = by_instrument.items() if isinstance(by_instrument, Mapping) else ()
        seconds = [(str(name), number) for name, value in rows if (number := _number(value)) is not None]
        if share is not None:
            dearest_first = dict(sorted(seconds, key=lambda row: -row[1]))
            return Cost(share, measuring, training, dearest_first, budget, "written at the end of the run")
    overhead = [row for row in last_values(run) if row.name == "overhead" and math.isfinite(row.value)]
    if not overhead:
        return Cost()
    return Cost(share=overhead[0].value, budget=budget, source=f"the last overhead reading, at step {overhead[0].step}")


def _number(value: Any) -> float | None:
    value = decode(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:  # JSON knows integers that no float can hold
        return None
    return number if math.isfinite(number) else None
