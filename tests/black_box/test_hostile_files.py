"""A file from somewhere else: it is refused, and nothing in it runs."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from cockpit_lite.black_box import load_step
from cockpit_lite.errors import NotAKeptStepError
from tests.black_box.nets import root
from tests.black_box.test_replay import train


class Payload:
    """Executes a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def genuine(tmp_path: Path) -> Path:
    train(root(), tmp_path / "run")
    return tmp_path / "run" / "black_box" / "step-000000.pt"


def refused(path: Path) -> str:
    with pytest.raises(NotAKeptStepError) as caught:
        load_step(path)
    return str(caught.value)


def test_what_would_execute_is_not(tmp_path: Path, genuine: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "payload.pt"
    contents = torch.load(genuine, weights_only=True)
    torch.save({**contents, "notes": [Payload(mark)]}, path)
    assert "cannot be read" in refused(path)
    path.write_bytes(pickle.dumps(Payload(mark)))
    assert "torch.save has not written it" in refused(path)
    assert not mark.exists()


def test_a_tensor_that_claims_to_be_huge(tmp_path: Path, genuine: Path) -> None:
    contents = torch.load(genuine, weights_only=True)
    huge = torch.zeros(1).expand(10**12)
    torch.save({**contents, "weights": {"first.weight": huge}}, tmp_path / "huge.pt")
    assert "larger than the file" in refused(tmp_path / "huge.pt")


def test_an_archive_that_unpacks_to_more(tmp_path: Path, genuine: Path) -> None:
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(genuine) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
        target.writestr("step-000000/data/99", bytes(10_000_000))
    assert "unpacks to more" in refused(bomb)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "another"},
        {"version": 99},
        {"step": "3"},
        {"weights": {1: torch.zeros(1)}},
        {"weights": {"first.weight": torch.zeros(2).to_sparse()}},
        {"calls": [{"args": []}]},
        {"notes": 3},
        {"buffers": {"x": "text"}},
    ],
)
def test_parts_of_the_wrong_kind(change: dict[str, Any], tmp_path: Path, genuine: Path) -> None:
    path = tmp_path / "changed.pt"
    torch.save({**torch.load(genuine, weights_only=True), **change}, path)
    assert "kept step" in refused(path) or "version" in refused(path)


def test_nested_without_end(tmp_path: Path, genuine: Path) -> None:
    nest: Any = []
    for _ in range(100):
        nest = [nest]
    torch.save({**torch.load(genuine, weights_only=True), "notes": nest}, tmp_path / "nested.pt")
    assert "kept step" in refused(tmp_path / "nested.pt")


def test_torn_and_empty_files(tmp_path: Path, genuine: Path) -> None:
    data = genuine.read_bytes()
    for number, torn in enumerate((b"", data[: len(data) // 2], data[:-10], io.BytesIO(b"PK\x03\x04" + data[10:]).read())):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(torn)
        assert "kept step" in refused(path)
