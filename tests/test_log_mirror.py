"""The mirror of a long log: it changes how long opening a run takes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cockpit_lite import load_run, log_mirror, run_cache
from cockpit_lite.columns import Columns
from cockpit_lite.run_log import RunWriter
from tests.test_run_cache import as_text, log_of, uncached, write_steps


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_mirror, "BEGINNING", 600)
    monkeypatch.setattr(log_mirror, "PIECE", 500)


def train(folder: Path, resumed: int | None = None) -> None:
    writer = RunWriter(folder, {"model": "Net"}, resumed=resumed)
    for first in range(resumed or 0, 40, 5):
        write_steps(writer, range(first, first + 5))
    writer.not_measured(40, {"alpha": ""})
    writer.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train(tmp_path / "run")
    return tmp_path / "run"


def mirrors(folder: Path) -> list[Path]:
    return sorted((folder / run_cache.FOLDER).glob("*.mirror"))


def test_it_says_what_the_lines_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = uncached(folder)
    monkeypatch.setattr(Columns, "_add", lambda *_: pytest.fail("a line of the log was read"))
    assert as_text(load_run(folder)) == known


def test_what_was_appended_behind_it_is_read(folder: Path) -> None:
    with open(log_of(folder), "a", encoding="utf-8") as log:
        log.write('{"step": 60, "values": {"loss": 3, "new": 1}}\n{"torn')
    run = load_run(folder)
    assert run.last_step == 60 and run.series("new")[1].tolist() == [1.0]
    assert as_text(run) == uncached(folder)


@pytest.mark.parametrize("values", ["[1]", "[[1, 2], [3]]", "5"])
def test_readings_that_are_arrays_of_different_shapes_are_read(values: str, folder: Path) -> None:
    text = log_of(folder).read_text(encoding="utf-8")
    log_of(folder).write_text(f'{{"step": 90, "values": {{"table": {values}}}}}\n' + text, encoding="utf-8")
    with open(log_of(folder), "a", encoding="utf-8") as log:
        log.write('{"step": 91, "values": {"loss": 2}}\n')
    (mirror,) = mirrors(folder)
    moved = len(log_of(folder).read_bytes()) - len(text.encode()) - len('{"step": 91, "values": {"loss": 2}}\n')
    shift(mirror, moved)
    run = load_run(folder)
    assert run.last_step == 91 and "table" in run.names
    with pytest.raises(ValueError):
        run.series("table")


def shift(mirror: Path, distance: int) -> None:
    """Let the mirror stand for lines that are further on in the log."""
    content, place, found = mirror.read_bytes(), 0, b""
    while place < len(content):
        magic, start, end, *rest = log_mirror._HEAD.unpack_from(content, place)
        body = place + log_mirror._HEAD.size
        found += log_mirror._HEAD.pack(magic, start + distance, end + distance, *rest) + content[body : body + sum(rest[1:4])]
        place = body + sum(rest[1:4])
    mirror.write_bytes(found)


def test_a_resumed_run_has_two(folder: Path) -> None:
    train(folder, resumed=20)
    assert len(mirrors(folder)) == 2
    assert as_text(load_run(folder)) == uncached(folder)
    assert load_run(folder).series("loss")[0].tolist() == list(range(42))


def edited(folder: Path) -> None:
    text = log_of(folder).read_text(encoding="utf-8")
    middle = text.rindex("0.5")
    log_of(folder).write_text(text[:middle] + "0.7" + text[middle + 3 :], encoding="utf-8")


def shorter(folder: Path) -> None:
    lines = log_of(folder).read_text(encoding="utf-8").splitlines(keepends=True)
    log_of(folder).write_text("".join(lines[:-3]), encoding="utf-8")


def longer(folder: Path) -> None:
    text = log_of(folder).read_text(encoding="utf-8")
    log_of(folder).write_text('{"step": 90, "values": {"loss": 1}}\n' + text, encoding="utf-8")


def torn(folder: Path) -> None:
    (mirror,) = mirrors(folder)
    mirror.write_bytes(mirror.read_bytes()[:-20])


def zeroed(folder: Path) -> None:
    (mirror,) = mirrors(folder)
    content = mirror.read_bytes()
    mirror.write_bytes(content[:800] + bytes(100) + content[900:])


def no_mirror(folder: Path) -> None:
    (mirror,) = mirrors(folder)
    mirror.write_bytes(b"something else" * 30)


def another_place(folder: Path) -> None:
    (mirror,) = mirrors(folder)
    mirror.rename(mirror.with_name("readings-7.mirror"))


DAMAGES = (edited, shorter, longer, torn, zeroed, no_mirror, another_place)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_log_is_the_truth(damage: Callable[[Path], None], folder: Path) -> None:
    before = as_text(load_run(folder))
    damage(folder)
    assert as_text(load_run(folder)) == uncached(folder)
    assert (as_text(load_run(folder)) != before) == (damage in (edited, shorter, longer))


def test_it_goes_when_the_cache_of_a_run_that_has_ended_knows_as_much(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_cache, "WORTH", 1)
    known = uncached(folder)
    load_run(folder)
    assert len(mirrors(folder)) == 1  # it says that it is running
    info = folder / "run.json"
    info.write_text(info.read_text(encoding="utf-8").replace('"model"', '"status": "completed", "model"'), encoding="utf-8")
    (folder / run_cache.FOLDER / "index.json").unlink()
    load_run(folder)
    assert not mirrors(folder)
    assert as_text(load_run(folder)) == known


def test_where_it_cannot_be_written_training_goes_on(tmp_path: Path) -> None:
    for name in ("file", "link"):
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "file" / run_cache.FOLDER).write_text("a file", encoding="utf-8")
    (tmp_path / "link" / run_cache.FOLDER).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    for name in ("file", "link"):
        train(tmp_path / name)
        assert load_run(tmp_path / name).last_step == 41
    assert not list((tmp_path / "elsewhere").iterdir())
