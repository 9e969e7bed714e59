"""Pages that are written from the sources, so that they are true: one a finding, one a gauge, each gauge healthy and sick.

The pictures are those of real runs: the demo, healthy and broken on purpose, is trained when the documentation is built for the
first time, and again when the demo has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import io
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cockpit_lite import demo, plots
from cockpit_lite.diagnosis import RULES
from cockpit_lite.instruments import INSTRUMENTS
from cockpit_lite.report.explain import explanation
from cockpit_lite.run import Run, load_run

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).parent
RUNS = DOCS / "_build" / "runs"
STEPS = 60

#: Gauges whose fault another demo shows better than a learning rate that is too high.
SICK = {
    "activation_mean": "exploding",
    "activation_std": "exploding",
    "condition": "ill-conditioned",
    "curvature_along_gradient": "ill-conditioned",
    "distance": "lr-too-low",
    "grad_norm": "vanishing",
    "gradient_scale": "vanishing",
    "max_eigenvalue": "ill-conditioned",
    "saturation": "vanishing",
    "sharpness_limit": "ill-conditioned",
    "update_ratio": "lr-too-low",
    "update_size": "lr-too-low",
}

GROUPS = {
    "1": "Wiring",
    "2": "Loss and output",
    "3": "Signal and units",
    "4": "Step size and curvature",
    "5": "Data and noise",
    "6": "Precision and parallelism",
}


def setup(app: Sphinx) -> dict[str, Any]:
    """Let Sphinx write the pages before it reads any."""
    app.connect("builder-inited", lambda app: write())
    return {"parallel_read_safe": True}


def write() -> None:
    """Write all of them."""
    write_findings(_fresh(DOCS / "codes"))
    write_gauges(_fresh(DOCS / "gauges"))


def write_findings(folder: Path) -> None:
    """Write a page for every finding and the table of all."""
    lines = ["# Findings", "", "What `cockpit-lite explain CODE` says, for every code.", ""]
    group = ""
    for rule in RULES:
        if rule.code[2] != group:
            group = rule.code[2]
            lines += ["", f"## {GROUPS[group]}", "", "| code | name | severity |", "|---|---|---|"]
        lines.append(f"| [{rule.code}]({rule.code}.md) | `{rule.name}` | {rule.severity} |")
        needs = ", ".join(f"`{need}`" for need in rule.needs)
        page = [f"# {rule.code} {rule.name}", "", f"Severity: **{rule.severity}**. Needs: {needs}.", "", "```{eval-rst}"]
        page += [explanation(rule), "```", "", f"When it is silent: {rule.healthy}", ""]
        page += ["To silence it:", "", "```python", f'Cockpit(model, optimizer, ignore=["{rule.code}"])', "```", ""]
        (folder / f"{rule.code}.md").write_text("\n".join(page), encoding="utf-8")
    lines += ["", "```{toctree}", ":hidden:", ":glob:", "", "CL*", "```", ""]
    (folder / "index.md").write_text("\n".join(lines), encoding="utf-8")


def write_gauges(folder: Path) -> None:
    """Write a page for every gauge, with a picture of a healthy and of a sick run, and the page of all."""
    healthy = run_of(None)
    lines = [
        "# Gauges",
        "",
        "Each with a healthy and a sick run of the demo, trained on scikit-learn's digits.",
        "",
    ]
    for name in gauges():
        module = importlib.import_module(f"cockpit_lite.plots.{name}")
        title = (inspect.getdoc(module) or name).split("\n")[0].rstrip(".")
        sick = SICK.get(name, "lr-too-high")
        draw(name, healthy, folder / f"{name}-healthy.png")
        draw(name, run_of(sick), folder / f"{name}-sick.png")
        lines += [f"- [{name}]({name}.md): {title.partition(': ')[2] or title}."]
        page = [f"# {name}", "", f"{title}.", "", "Healthy:", "", f"![{name} of a healthy run]({name}-healthy.png)", ""]
        page += [f"Sick (`cockpit-lite demo --broken {sick}`):", "", f"![{name} of the run {sick}]({name}-sick.png)", ""]
        if name in INSTRUMENTS:
            instrument = importlib.import_module(INSTRUMENTS[name].__module__)
            text = inspect.getdoc(instrument) or ""
            page += ["## What it measures", "", "```{eval-rst}", _as_rst(text), "```", ""]
            page += [f"In the preset `{INSTRUMENTS[name].preset}`.", ""]
        (folder / f"{name}.md").write_text("\n".join(page), encoding="utf-8")
    lines += ["", "```{toctree}", ":hidden:", ":glob:", "", "*", "```", ""]
    (folder / "index.md").write_text("\n".join(lines), encoding="utf-8")


def _as_rst(text: str) -> str:
    """Return a module's docstring with its formulas, which are indented, as literal blocks."""
    lines: list[str] = []
    for line in text.splitlines():
        indented = line.startswith("    ")
        if indented and lines and lines[-1] == "" and not (len(lines) > 1 and lines[-2].startswith(("    ", "::"))):
            lines += ["::", ""]
        lines.append(line)
    return "\n".join(lines)


def gauges() -> list[str]:
    """Return the names of all gauges that show a reading."""
    functions = {name for name in plots.__all__ if inspect.isfunction(getattr(plots, name))}
    return sorted(functions - {"pages", "reading", "save_page", "animate"})


@cache
def run_of(broken: str | None) -> Run:
    """Return a run of the demo, trained once and kept until the demo changes."""
    source = Path(inspect.getsourcefile(demo) or "").read_bytes()
    folder = RUNS / f"{broken or 'healthy'}-{hashlib.sha256(source).hexdigest()[:12]}"
    if not (folder / "report.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.redirect_stdout(io.StringIO()):
            demo.run_demo(broken, folder, steps=STEPS, progress=False)
    return load_run(folder)


def draw(name: str, run: Run, path: Path) -> None:
    """Draw a gauge by itself."""
    figure = Figure(figsize=(6, 2.8))
    figure.subplots_adjust(left=0.11, right=0.96, top=0.84, bottom=0.22)
    FigureCanvasAgg(figure)
    getattr(plots, name)(run, figure.add_subplot())
    figure.savefig(path, dpi=110)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
