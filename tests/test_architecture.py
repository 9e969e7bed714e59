"""The import directions of the design, held by parsing the sources: whoever breaks one learns it here and not a year later.

    loop -> probes -> Step -> instruments -> readings -> run log -> rules, gauges, report, integrations

What stands right of the run log reads runs: it knows no torch, so a run can be opened on any machine, and nothing it does can
slow down or break a training.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "cockpit_lite"


@dataclass(frozen=True)
class Module:
    """One source file.

    Attributes:
        name: Its import name, as users write it.
        package: Whether it is an ``__init__.py``.
        tree: Its syntax tree.
        imports: Full names of everything it imports, anywhere in the file: ``from a import b`` is ``a.b``.
    """

    name: str
    package: bool
    tree: ast.Module
    imports: frozenset[str] = field(default=frozenset())

    @classmethod
    def parse(cls, name: str, source: str, *, package: bool = False) -> Module:
        tree = ast.parse(source)
        found: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                origin = "." * node.level + (node.module or "")
                found.update(f"{origin}.{alias.name}" for alias in node.names)
        return cls(name, package, tree, frozenset(found))


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the library. The links inside cockpit_lite/ are followed by name, not by the file system."""
    found = []
    for folder, name in ((PROJECT, PROJECT), ("instruments", f"{PROJECT}.instruments"), ("plots", f"{PROJECT}.plots")):
        top = ROOT / folder
        for path in sorted(top.rglob("*.py")):
            parts = path.relative_to(top).with_suffix("").parts
            if folder == PROJECT and parts[0] in ("instruments", "plots"):
                continue  # rglob follows links on some versions of Python and not on others
            package = parts[-1] == "__init__"
            dotted = ".".join((name, *(parts[:-1] if package else parts)))
            found.append(Module.parse(dotted, path.read_text(encoding="utf-8"), package=package))
    return tuple(found)


def within(name: str, parents: tuple[str, ...]) -> bool:
    """Whether ``name`` is one of ``parents`` or inside one; parents are written without the project's name."""
    return any(name == parent or name.startswith(parent + ".") for parent in (f"{PROJECT}.{parent}" for parent in parents))


def is_standard_library(imported: str) -> bool:
    return imported.split(".")[0] in sys.stdlib_module_names


def strangers(module: Module, *, project: tuple[str, ...], others: tuple[str, ...]) -> set[str]:
    """Return the imports of ``module`` that are neither standard library nor allowed."""
    return {
        imported
        for imported in module.imports
        if not is_standard_library(imported) and not within(imported, project) and imported.split(".")[0] not in others
    }


def inside(*parents: str) -> list[Module]:
    found = {parent: [module for module in modules() if within(module.name, (parent,))] for parent in parents}
    missing = [parent for parent, there in found.items() if not there]
    assert not missing, f"no module in {missing}: was it renamed? Then rename it here too."
    return [module for there in found.values() for module in there]


READER = (
    "run",
    "run_log",
    "run_cache",
    "log_mirror",
    "columns",
    "row_layout",
    "row_definition",
    "number_bits",
    "packed_numbers",
    "series",
    "alert",
    "errors",
)
PLUGINS = ("plugins", "isolation")  # other packages' rules and gauges are found by name, and a failing one is said once

# part of the library -> (parts of the library it may import, besides itself; other packages it may import)
DIRECTIONS: dict[tuple[str, ...], tuple[tuple[str, ...], tuple[str, ...]]] = {
    ("errors", "alert", "schedule"): ((), ()),
    ("watchdog",): (("errors", "isolation"), ()),
    ("run_log",): (("errors", "row_layout", "row_definition", "log_mirror"), ()),
    ("row_layout",): (("row_definition", "number_bits"), ()),
    ("row_definition",): (("number_bits", "packed_numbers"), ()),
    ("number_bits",): ((), ("numpy",)),
    ("packed_numbers",): ((), ()),
    ("run",): ((*READER, "report"), ("numpy",)),  # run.report() is a short way to the report
    ("diagnosis",): ((*READER, *PLUGINS, "watchdog"), ("numpy",)),
    ("report",): ((*READER, "diagnosis", "plots"), ("numpy", "matplotlib", "rich", "jinja2", "markupsafe")),
    ("compare",): ((*READER, "diagnosis", "plots", "report"), ("numpy", "matplotlib", "rich", "markupsafe")),
    ("plots",): ((*READER, *PLUGINS), ("numpy", "matplotlib")),
    ("curvature",): (("errors",), ("torch", "backpack")),
    ("instrument",): (("errors", "step", "watchdog"), ("torch",)),
}


@pytest.mark.parametrize("parts", DIRECTIONS, ids="-".join)
def test_imports_point_one_way(parts: tuple[str, ...]) -> None:
    project, others = DIRECTIONS[parts]
    project = parts + project
    wrong = {module.name: found for module in inside(*parts) if (found := strangers(module, project=project, others=others))}
    assert wrong == {}, f"{', '.join(parts)} may import {project + others} and the standard library only"


def test_instruments_import_the_contract_and_never_each_other() -> None:
    project, others = ("instrument", "errors", "norms", "packed", "step", "probes", "curvature"), ("torch", "backpack")
    files = [module for module in inside("instruments") if not module.package]  # the package knows them all: presets
    wrong = {module.name: found for module in files if (found := strangers(module, project=project, others=others))}
    assert wrong == {}


def instrument_classes() -> set[str]:
    """Names of the concrete instruments: the classes defined in instruments/."""
    return {node.name for module in inside("instruments") for node in module.tree.body if isinstance(node, ast.ClassDef)}


def names_used(module: Module) -> set[str]:
    """Every identifier in the code of a module; docstrings and comments are no code."""
    used = {node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)}
    return used | {imported.rpartition(".")[2] for imported in module.imports}


def test_the_core_names_no_concrete_instrument() -> None:
    classes = instrument_classes()
    assert classes
    readers = ("instruments", "plots", "report", "compare", "diagnosis", "integrations", "live", "cli", "demo")
    core = [module for module in modules() if module.name != PROJECT and not within(module.name, readers)]
    assert {"cockpit", "step", "instrument"} <= {module.name.removeprefix(f"{PROJECT}.") for module in core}
    assert {module.name: found for module in core if (found := names_used(module) & classes)} == {}


def test_instruments_are_reached_through_their_package_only() -> None:
    files = tuple(module.name.removeprefix(f"{PROJECT}.") for module in inside("instruments") if not module.package)
    wrong = {
        module.name: found
        for module in modules()
        if not within(module.name, ("instruments",)) and (found := {i for i in module.imports if within(i, files)})
    }
    assert wrong == {}


def test_nothing_imports_integrations() -> None:
    wrong = [
        module.name
        for module in modules()
        if not within(module.name, ("integrations",)) and any(within(imported, ("integrations",)) for imported in module.imports)
    ]
    assert wrong == []


def test_the_library_imports_no_tests_examples_or_benchmarks() -> None:
    outside = {"tests", "examples", "benchmarks", "instruments", "plots"}  # the last two go by cockpit_lite.instruments, .plots
    wrong = {module.name: found for module in modules() if (found := {i.split(".")[0] for i in module.imports} & outside)}
    assert wrong == {}


def test_imports_are_absolute() -> None:
    # A relative import would resolve differently through the links of a checkout.
    wrong = {module.name: found for module in modules() if (found := {i for i in module.imports if i.startswith(".")})}
    assert wrong == {}


def test_opening_a_run_can_execute_nothing() -> None:
    forbidden = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    wrong = {module.name: found for module in modules() if (found := {i.split(".")[0] for i in module.imports} & forbidden)}
    assert wrong == {}
    readers = inside("run", "run_log", "alert", "diagnosis", "report", "compare", "plots")
    assert [module.name for module in readers if calls(module) & {"eval", "exec", "__import__"}] == []


def calls(module: Module) -> set[str]:
    """Names of the plain functions a module calls."""
    return {node.func.id for node in ast.walk(module.tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def test_the_library_does_not_print() -> None:
    # rich's console and the log of the run are how the cockpit speaks.
    assert [module.name for module in modules() if "print" in calls(module)] == []


def test_every_module_says_what_it_is_for() -> None:
    assert [module.name for module in modules() if not (ast.get_docstring(module.tree) or "").strip()] == []


@pytest.mark.parametrize("name", ["run", "run_log", "alert", "schedule", "diagnosis", "report", "compare", "plots", "cli"])
def test_reading_a_run_does_not_import_torch(name: str) -> None:
    code = f"import sys, {PROJECT}.{name}; sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr or f"cockpit_lite.{name} imports torch"


# The checks above are only as good as their eyes: they must see what is wrong.

WRONG = '''
"""A gauge."""
import os, torch.nn
from numpy import array
from cockpit_lite.run import Run
from cockpit_lite.instruments.alpha import Alpha
def draw():
    from ..run import load_run
    print(eval("1"))
'''


def test_imports_are_seen_wherever_they_stand() -> None:
    module = Module.parse(f"{PROJECT}.plots.wrong", WRONG)
    assert strangers(module, project=("plots", *READER), others=("numpy",)) == {
        "torch.nn",
        f"{PROJECT}.instruments.alpha.Alpha",
        "..run.load_run",
    }
    assert calls(module) == {"print", "eval"}
    assert {"Alpha", "load_run", "draw"} & names_used(module) == {"Alpha", "load_run"}


def test_a_part_is_not_mistaken_for_another_of_a_longer_name() -> None:
    assert within("cockpit_lite.run", ("run",)) and within("cockpit_lite.run.Run", ("run",))
    assert not within("cockpit_lite.run_log", ("run",)) and not within("cockpit_lite", ("run",)) and not within("run", ("run",))
