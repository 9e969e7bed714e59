"""The page docs/benchmarks.md: a section for each benchmark, written by the benchmark itself between two markers.

So every figure stands beside the command that made it, the machine and the date, and running one benchmark again
leaves the other sections as they are.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"

_INTRODUCTION = """# Benchmarks

Every section is written by the command it names, run from the root of a checkout after `pip install -e ".[dev]"`. A figure that
misses its target is written down as missed, with the reason.
"""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark understands."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print-only", action="store_true", help="leave docs/benchmarks.md as it is")
    return parser


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table.

    >>> print(table(["net", "ratio"], [["MLP", 1.01]]))
    | net | ratio |
    |---|---|
    | MLP | 1.01 |
    """
    lines = [header, *rows]
    text = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(header), *text[1:]])


def publish(name: str, title: str, body: str, print_only: bool = False, page: Path = PAGE) -> None:
    """Print a section and write it into the page, in the place of its earlier version or at the end.

    Args:
        name: Of the module in ``benchmarks``.
        title: Heading of the section.
        body: Markdown: what was done, the table, what it says.
        print_only: Do not write.
        page: The file.
    """
    command = " ".join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    today = datetime.datetime.now(datetime.timezone.utc).date()
    section = f"## {title}\n\n`{command}`, {today}. {machine()}\n\n{body.strip()}\n"
    sys.stdout.write(section)
    if print_only:
        return
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = page.read_text(encoding="utf-8") if page.exists() else _INTRODUCTION
    marked = f"{begin}\n{section}{end}"
    written, count = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: marked, text, flags=re.DOTALL)
    page.write_text(written if count else f"{text.rstrip()}\n\n{marked}\n", encoding="utf-8")


def machine() -> str:
    """Return what the figures depend on, in a sentence; no names of hosts, users or folders."""
    threads = torch.get_num_threads()
    return (
        f"{_processor()}, {os.cpu_count()} logical cores, {platform.system()}; Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}, {threads} thread{'' if threads == 1 else 's'}."
    )


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), flags=re.MULTILINE)
    except OSError:  # not Linux
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()
