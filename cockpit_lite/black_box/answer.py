"""What a replay found, for a terminal and as JSON."""

from __future__ import annotations

import dataclasses
import json

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cockpit_lite.black_box.operations import ranges
from cockpit_lite.black_box.replay import Verdict
from cockpit_lite.run_log import encode

_TITLES = {
    "batch": "The batch was bad before anything was computed",
    "weights": "The weights were bad before the step",
    "forward": "The first bad value is made in the forward pass",
    "loss": "The first bad value is made in the loss function",
    "backward": "The first bad value is made in the backward pass",
    "loss backward": "The first bad value is made by the derivative of the loss function",
    "nothing": "No bad value",
}
#: Of long lists so many are printed.
_MOST = 6


def to_json(verdict: Verdict) -> str:
    """Return the verdict as strict JSON: not finite numbers are the texts "NaN", "Infinity" and "-Infinity"."""
    return json.dumps(encode(dataclasses.asdict(verdict)), indent=2, allow_nan=False) + "\n"


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Print the verdict; names go into texts, never into markup."""
    style = "green" if verdict.kind == "nothing" else "bold red"
    title = Text.assemble(
        (_TITLES.get(verdict.kind, verdict.kind), style), f"  step {verdict.step}, kept because {verdict.reason}"
    )
    console.print(title)
    console.print(Padding(Text(verdict.cause), (0, 0, 0, 2)))
    console.print(Padding(Text.assemble(("What to do. ", "bold"), verdict.advice), (0, 0, 1, 2)))
    table = Table.grid(padding=(0, 2))
    for name, text in _rows(verdict):
        table.add_row(Text(name, style="dim"), Text(text))
    console.print(Padding(table, (0, 0, 0, 2)))


def _rows(verdict: Verdict) -> list[tuple[str, str]]:
    then, again = verdict.loss
    loss = "not known" if then is None else f"{then:.6g}"
    if again is not None:
        same = then is not None and (again == then or (again != again and then != then))
        loss += f", and {'the same' if same else f'{again:.6g}'} when run again"
    rows = [
        ("module", verdict.module),
        ("operation", verdict.operation),
        ("line", verdict.source),
        ("gets", ranges(verdict.inputs)),
        ("gives", ranges([verdict.output]) if verdict.output else ""),
        ("first at", str(list(verdict.place)) if verdict.place else ""),
        ("bad before", _listed(verdict.where)),
        ("spreads to", _listed(verdict.spread)),
        ("bad gradients", _listed(verdict.bad_gradients)),
        ("loss", loss),
        *(("note", note) for note in verdict.notes),
    ]
    return [(name, text) for name, text in rows if text]


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_MOST]) + (f" and {len(names) - _MOST} more" if len(names) > _MOST else "")
