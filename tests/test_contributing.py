"""The examples of CONTRIBUTING.md are run, as the files that they say they are: what is taught there is true."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import matplotlib.figure
import pytest

import cockpit_lite.instruments
from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis import RULES
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.instrument import Instrument
from cockpit_lite.run import load_run
from cockpit_lite.run_log import RunWriter

PAGE = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS: list[str] = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
#: path in the first line -> source
FILES = {block.splitlines()[0].removeprefix("# "): block for block in BLOCKS if block.startswith("# ")}


def as_module(monkeypatch: pytest.MonkeyPatch, path: str) -> ModuleType:
    """Run an example as if it lay at ``path``, and let others import it from there."""
    parts = Path(path).with_suffix("").parts
    name = ".".join(parts if parts[0] in ("cockpit_lite", "tests") else ("cockpit_lite", *parts))
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(FILES[path], path, "exec"), vars(module))
    return module


def test_every_example_is_run_here() -> None:
    assert list(FILES) == [
        "instruments/gradient_zeros.py",
        "tests/instruments/test_gradient_zeros.py",
        "cockpit_lite/diagnosis/silence.py",
        "plots/gradient_zeros.py",
    ]
    assert len(BLOCKS) == len(FILES) + 1  # and the import line


def test_the_instrument_and_its_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    as_module(monkeypatch, "instruments/gradient_zeros.py")
    test = as_module(monkeypatch, "tests/instruments/test_gradient_zeros.py")
    test.test_zeros_are_counted_over_all_tensors()
    test.test_rows_that_were_not_looked_up_have_no_gradient(tmp_path)


def test_the_import_line_makes_it_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    as_module(monkeypatch, "instruments/gradient_zeros.py")
    (line,) = set(BLOCKS) - set(FILES.values())
    package = cockpit_lite.instruments
    assert package.__file__ is not None
    source = Path(package.__file__).read_text(encoding="utf-8")
    anchor = "\nfrom cockpit_lite.instruments."
    assert anchor in source
    namespace = {"__name__": package.__name__}
    exec(compile(source.replace(anchor, f"\n{line.strip()}{anchor}", 1), "instruments/__init__.py", "exec"), namespace)
    known = namespace["INSTRUMENTS"]
    assert isinstance(known, dict) and set(known) - set(package.INSTRUMENTS) == {"gradient_zeros"}
    assert issubclass(known["gradient_zeros"], Instrument)
    known["gradient_zeros"]().validate()


def check(rule: Rule, shares: list[float]) -> Alert | None:
    history = History()
    for step, share in enumerate(shares):
        history.add(step, {"gradient_zeros": share})
    return rule.check(history)


def test_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = as_module(monkeypatch, "cockpit_lite/diagnosis/silence.py").ZeroGradient()
    assert rule.code not in {known.code for known in RULES}
    assert check(rule, [0.5, 1.0, 1.0]) is None and check(rule, [1.0, 1.0]) is None
    alert = check(rule, [0.5, 1.0, 1.0, 1.0])
    assert alert is not None and alert.code == "CL999" and alert.step == 3


def test_the_gauge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gauge = as_module(monkeypatch, "plots/gradient_zeros.py").gradient_zeros
    writer = RunWriter(tmp_path / "run", {"model": "Sequential"})
    for step, share in enumerate([0.2, 0.6, 1.0]):
        writer.step(step, {"gradient_zeros": share})
    writer.close()
    ax = matplotlib.figure.Figure().subplots()
    gauge(load_run(tmp_path / "run"), ax)
    assert any(line.get_xdata().tolist() == [0, 1, 2] and line.get_ydata().tolist() == [0.2, 0.6, 1.0] for line in ax.lines)


def test_the_places_it_names_exist() -> None:
    root = Path(__file__).resolve().parents[1]
    places = set(re.findall(r"`((?:cockpit_lite|instruments|plots|tests)/[\w./]*)`", PAGE))
    assert {"instruments/__init__.py", "plots/layout.py", "tests/test_architecture.py"} <= places
    assert [place for place in sorted(places) if not (root / place).exists()] == []
