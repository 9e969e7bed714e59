"""The live view in a notebook that IPython runs: one output cell, whose picture is replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="no IPython: pip install nbclient ipykernel")
nbclient = pytest.importorskip("nbclient", reason="no IPython: pip install nbclient ipykernel")
pytest.importorskip("ipykernel", reason="no IPython: pip install nbclient ipykernel")

CELL = """
import time, torch
from cockpit_lite import Cockpit
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with Cockpit(model, optimizer, run={folder!r}, live="notebook", instruments="light", on_alert=lambda alert: None):
    until = time.monotonic() + 60
    while time.monotonic() < until and not enough():
        optimizer.zero_grad()
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
        time.sleep(0.02)
"""
# The pictures that were shown, counted where they are drawn.
ENOUGH = """
from IPython.display import DisplayHandle
shown, update = [], DisplayHandle.update
def counted(handle, picture, **options):
    shown.append(picture)
    update(handle, picture, **options)
DisplayHandle.update = counted
enough = lambda: len(shown) >= 2
"""


@pytest.mark.filterwarnings("ignore")  # of the kernel's
def test_one_output_is_updated_while_the_training_runs(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(ENOUGH), nbformat.v4.new_code_cell(CELL.format(folder=str(tmp_path / "run")))]
    notebook = nbformat.v4.new_notebook(cells=cells)
    messages: list[tuple[str, Any]] = []

    class Client(nbclient.NotebookClient):  # type: ignore[name-defined]
        def process_message(self, message: Any, cell: Any, index: int) -> Any:
            if "image/png" in message["content"].get("data", {}):
                messages.append((message["msg_type"], message["content"]["transient"]["display_id"]))
            return super().process_message(message, cell, index)

    Client(notebook, timeout=120, kernel_name="python3").execute()
    assert len(messages) >= 2 and set(messages) == {("update_display_data", messages[0][1])}
    pictures = [output for output in notebook.cells[1].outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1
