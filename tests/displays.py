"""A virtual display, for tests that look at windows."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def virtual_display(monkeypatch: pytest.MonkeyPatch, *programs: str) -> Iterator[str]:
    """Start a display of its own and have windows open there; skip the test where one of the programs is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    pytest.importorskip("tkinter")
    receive, send = os.pipe()
    process = subprocess.Popen(
        ["Xvfb", "-displayfd", str(send), "-screen", "0", "1440x960x24", "-nolisten", "tcp"],
        pass_fds=[send], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(send)
    with os.fdopen(receive) as answer:
        name = f":{answer.readline().strip()}"
    monkeypatch.setenv("DISPLAY", name)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("MPLBACKEND", "tkagg")
    try:
        yield name
    finally:
        process.terminate()
        process.wait()
