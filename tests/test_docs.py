"""The pages of the documentation: their code runs, their links lead somewhere, and nothing public is missing."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import cockpit_lite

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(path for path in DOCS.glob("*.md") if path.name not in ("benchmarks.md",))
#: Pages whose blocks are read one after the other; on the others each stands for itself.
STORIES = {"start.md"}
#: Blocks that show the shape of a loop, with names of the reader's.
SHAPES = "for inputs, targets in loader:"


def blocks(page: Path) -> list[str]:
    found = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = [block for block in found if SHAPES not in block]
    return ["\n".join(found)] if page.name in STORIES and found else found


CODE = [pytest.param(block, id=f"{page.stem}-{number}") for page in PAGES for number, block in enumerate(blocks(page))]


def test_there_is_code() -> None:
    assert len(CODE) >= 9


@pytest.mark.parametrize("block", CODE)
def test_the_code_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for extra in ("lightning", "transformers"):
        if f"from {extra}" in block and importlib.util.find_spec(extra) is None:
            pytest.skip(f"needs {extra}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    exec(compile(block, "documentation", "exec"), {"__name__": "documentation"})


def test_everything_public_is_described() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    described = set(re.findall(r"cockpit_lite\.(\w+)", page))
    assert set(cockpit_lite.__all__) - {"__version__"} <= described


@pytest.mark.parametrize("page", [page.name for page in PAGES])
def test_links_lead_somewhere(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith(("http", "codes/", "gauges/")):  # those are written when the documentation is built
            assert (DOCS / target).exists(), target
