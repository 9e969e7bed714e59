"""What is shipped is what is there: a forgotten package, template or dependency is noticed here and not by a user."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it along

ROOT = Path(__file__).resolve().parents[1]
LINKS = ("instruments", "plots")
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def package_folders() -> dict[str, Path]:
    """Return import name -> folder of every package of the library, as the sources lie there."""
    found = {}
    for top, name in ((ROOT / "cockpit_lite", "cockpit_lite"), *((ROOT / link, f"cockpit_lite.{link}") for link in LINKS)):
        for current, folders, files in os.walk(top):  # does not follow links
            folders[:] = [folder for folder in folders if folder != "__pycache__"]
            if "__init__.py" in files:
                found[".".join((name, *Path(current).relative_to(top).parts))] = Path(current)
    return found


def test_every_package_is_shipped() -> None:
    assert sorted(SETTINGS["tool"]["setuptools"]["packages"]) == sorted(package_folders())


def test_every_folder_with_code_is_a_package() -> None:
    folders = set(package_folders().values())
    code = [path for top in ("cockpit_lite", *LINKS) for path in (ROOT / top).rglob("*.py")]
    assert {path.parent.resolve() for path in code} <= {folder.resolve() for folder in folders}


def shipped_data() -> set[Path]:
    """Return the files that the globs of package-data reach."""
    folders = package_folders()
    globs = SETTINGS["tool"]["setuptools"]["package-data"]
    return {path for package, patterns in globs.items() for pattern in patterns for path in folders[package].glob(pattern)}


def test_every_template_and_style_sheet_is_shipped() -> None:
    data = set()
    for top in ("cockpit_lite", *LINKS):
        for current, folders, files in os.walk(ROOT / top):
            folders[:] = [folder for folder in folders if folder != "__pycache__"]
            data |= {Path(current) / file for file in files if not file.endswith((".py", ".pyc"))}
    assert ROOT / "cockpit_lite" / "py.typed" in data
    assert data - shipped_data() == set()


@pytest.mark.parametrize("name", LINKS)
def test_top_level_folders_are_subpackages(name: str) -> None:
    link = ROOT / "cockpit_lite" / name
    assert SETTINGS["tool"]["setuptools"]["package-dir"][f"cockpit_lite.{name}"] == name
    assert link.is_symlink() and Path(os.readlink(link)) == Path("..") / name  # relative: the clone can be anywhere
    module = importlib.import_module(f"cockpit_lite.{name}")
    assert module.__file__ is not None and Path(module.__file__).resolve() == ROOT / name / "__init__.py"


def imported_packages() -> set[str]:
    """Return the top-level names the library imports that are not of the standard library."""
    found = set()
    for folder in package_folders().values():
        for path in folder.glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"cockpit_lite"}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_import_is_a_declared_dependency() -> None:
    project = SETTINGS["project"]
    requirements = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {normalised(re.split(r"[\s\[<>=!~;]", line, maxsplit=1)[0]) for line in requirements}
    # Brought by other distributions than those of their names: not installed here, or not told of before Python 3.11.
    origin = {"mlflow": ["mlflow-skinny"], "sklearn": ["scikit-learn"], **importlib.metadata.packages_distributions()}
    undeclared = {name for name in imported_packages() if declared.isdisjoint(map(normalised, origin.get(name, [name])))}
    assert undeclared == set()
    assert {"torch", "backpack"} <= imported_packages()


def test_the_command_is_installed_and_answers() -> None:
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="cockpit-lite")
    assert command.dist is not None and command.dist.name == "cockpit-lite"
    assert callable(command.load())
    for start in (["-m", "cockpit_lite"], ["-c", f"import {command.module} as m; m.{command.attr}()"]):
        result = subprocess.run([sys.executable, *start, "--help"], capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        for word in ("demo", "watch", "report", "explain", "check"):
            assert word in result.stdout


def test_the_changelog_knows_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{SETTINGS['project']['version']}]" in changelog
    assert importlib.metadata.version("cockpit-lite") == SETTINGS["project"]["version"], "install again: pip install -e ."


def test_continuous_integration_runs_the_readme_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = script.read_text(encoding="utf-8").splitlines()
    assert commands[-2:] == ["make test", "make docs"]
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")
