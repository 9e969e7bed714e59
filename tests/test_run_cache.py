"""The cache beside a long log: it changes how long opening a run takes, and nothing else."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cockpit_lite import load_run, run_cache
from cockpit_lite.columns import Columns
from cockpit_lite.run import Run
from cockpit_lite.run_log import RunWriter


@pytest.fixture(autouse=True)
def every_log_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_cache, "WORTH", 1)


def write_steps(writer: RunWriter, steps: range) -> None:
    for step in steps:
        how = {"trace": {"kind": "estimated", "standard_error": 0.1 * step}} if step % 3 else {"trace": {"kind": "exact"}}
        values = {"loss": math.nan if step == 5 else 1.0 / (1 + step), "trace": float(step), "table": [[step, 1], [2, -step]]}
        if step % 4 == 0:
            values["layers/0.weight"] = -float(step)
        writer.step(step, values, how)
    writer.block([steps.stop, steps.stop + 1], {"loss": [0.5, math.inf]})
    writer.not_measured(steps.stop, {"alpha": "it is not due", "gsnr": f"one sample at {steps.stop}"})
    writer.flush()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    writer = RunWriter(tmp_path / "run", {"model": "Net"})
    write_steps(writer, range(40))
    writer.close()
    for name in ("readings.jsonl", "alerts.jsonl"):
        with open(writer.folder / name, "a", encoding="utf-8") as log:
            log.write('{"step": "x", "values": 3}\nnot JSON\n')
    return writer.folder


def content(run: Run) -> dict[str, Any]:
    """Return all that a run knows, in a form that can be compared."""
    series = {name: tuple(column.tolist() for column in run.series(name)) for name in run.names}
    how = {name: dict(run.how(name)) for name in run.names}
    return json.loads(
        json.dumps([series, how, run.not_measured, run.seconds, run.last_step, run.bad_lines, len(run.alerts)])
    )  # NaN is NaN as text


def as_text(run: Run) -> str:
    return json.dumps(content(run), sort_keys=True)


def uncached(folder: Path) -> str:
    """Return what a run without a cache knows."""
    copy = folder.with_name("uncached")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(run_cache.FOLDER))
    return as_text(load_run(copy))


def log_of(folder: Path) -> Path:
    return folder / "readings.jsonl"


def test_a_cached_run_knows_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = as_text(load_run(folder))
    assert sorted(path.suffix for path in (folder / run_cache.FOLDER).iterdir()) == [".json", ".npy", ".npy"]
    monkeypatch.setattr(Columns, "_add", lambda *_: pytest.fail("a line of the log was read"))
    assert as_text(load_run(folder)) == first


def test_only_what_is_new_is_read_and_cached_again(folder: Path) -> None:
    load_run(folder)
    with open(log_of(folder), "a", encoding="utf-8") as log:
        log.write(
            '{"step": 60, "values": {"loss": 3, "table": [[1, 2], [3, 4]], "new": 1}, "how": {"trace": {"kind": "x"}}}\n{"st'
        )
    run = load_run(folder)
    assert run.series("loss")[1][-1] == 3.0 and run.series("table")[1].shape == (41, 2, 2) and run.last_step == 60
    assert run.how("trace")[60] == {"kind": "x"} and run.how("trace")[1]["standard_error"] == pytest.approx(0.1)
    assert as_text(run) == uncached(folder) == as_text(load_run(folder))
    assert len(list((folder / run_cache.FOLDER).iterdir())) == 3  # the older arrays are gone


def test_a_run_that_is_followed_goes_on_from_the_cache(folder: Path) -> None:
    load_run(folder)
    run = load_run(folder)
    with open(log_of(folder), "a", encoding="utf-8") as log:
        log.write('{"step": 61, "values": {"loss": 4, "trace": 2}}\n{"step": 3, "values": {"loss": 9}}\n')
    assert run.refresh()
    assert as_text(run) == uncached(folder)


def test_a_resumed_run_leaves_out_what_was_cached_too(folder: Path) -> None:
    load_run(folder)
    run = load_run(folder)
    with open(log_of(folder), "a", encoding="utf-8") as log:
        log.write('{"resumed": 10, "time": 1}\n{"step": 10, "values": {"loss": 7}}\n')
    run.refresh()
    assert run.last_step == 10 and run.series("loss")[1][-1] == 7.0 and run.series("table")[0].tolist() == list(range(10))
    assert max(run.how("trace")) == 9
    assert as_text(run) == uncached(folder) == as_text(load_run(folder))


def test_a_log_that_was_edited_is_read_again(folder: Path) -> None:
    load_run(folder)
    log = log_of(folder)
    text = log.read_text(encoding="utf-8")
    log.write_text(text.replace("0.5", "0.7"), encoding="utf-8")
    os.utime(log, ns=(1, 1))
    assert load_run(folder).series("loss")[1][-2] == 0.7
    log.write_text('{"step": 0, "values": {"loss": 1}}\n' + text, encoding="utf-8")  # longer, and another beginning
    assert load_run(folder).series("loss")[0][0] == 0
    assert as_text(load_run(folder)) == uncached(folder)
    log.write_text('{"step": 0, "values": {"loss": 1}}\n', encoding="utf-8")
    assert load_run(folder).names == ["loss"]


def test_deleting_it_loses_nothing(folder: Path) -> None:
    load_run(folder)
    known = as_text(load_run(folder))
    shutil.rmtree(folder / run_cache.FOLDER)
    assert as_text(load_run(folder)) == known


def damages() -> dict[str, Any]:
    def index(change: Any) -> Any:
        def damage(cache: Path) -> None:
            path = cache / "index.json"
            known = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(change(known) or known), encoding="utf-8")

        return damage

    def arrays(kind: str, change: Any) -> Any:
        def damage(cache: Path) -> None:
            (path,) = cache.glob(f"*-{kind}.npy")
            change(path)

        return damage

    return {
        "no JSON": lambda cache: (cache / "index.json").write_text("{"),
        "a list": index(lambda known: [known]),
        "no offset": index(lambda known: known.pop("offset") and None),
        "a text for an offset": index(lambda known: known.update(offset="9")),
        "an offset beyond the log": index(lambda known: known.update(offset=10**9)),
        "another version": index(lambda known: known.update(version=99)),
        "files elsewhere": index(lambda known: known.update(token="../../../../etc/x")),
        "a place beyond the arrays": index(lambda known: known["series"]["loss"].update(steps=[0, 10**6])),
        "a negative place": index(lambda known: known["series"]["loss"].update(values=[-5, 3])),
        "a shape that does not fit": index(lambda known: known["series"]["loss"].update(shape=[3, 3])),
        "columns of different lengths": index(lambda known: known["how"]["trace"].update(which=[0, 1])),
        "no reasons": index(lambda known: known.update(not_measured=None)),
        "a text for seconds": index(lambda known: known.update(seconds="x")),
        "half an array": arrays("values", lambda path: path.write_bytes(path.read_bytes()[:300])),
        "no array": arrays("steps", lambda path: path.unlink()),
        "an array of objects": arrays("steps", lambda path: np.save(path, np.array([{}, 1], object), allow_pickle=True)),
        "an array of texts": arrays("values", lambda path: np.save(path, np.array(["a"]))),
    }


@pytest.mark.parametrize("damage", damages().values(), ids=damages())
def test_a_damaged_cache_is_not_used(damage: Any, folder: Path) -> None:
    known = as_text(load_run(folder))
    damage(folder / run_cache.FOLDER)
    assert as_text(load_run(folder)) == known


def test_where_it_cannot_be_written_the_run_opens_all_the_same(folder: Path, tmp_path: Path) -> None:
    (folder / run_cache.FOLDER).write_text("a file", encoding="utf-8")
    known = as_text(load_run(folder))
    (folder / run_cache.FOLDER).unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / run_cache.FOLDER).symlink_to(elsewhere, target_is_directory=True)
    assert as_text(load_run(folder)) == known
    assert not list(elsewhere.iterdir())


def test_a_full_disk_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", full)
    known = as_text(load_run(folder))
    assert not list((folder / run_cache.FOLDER).iterdir())
    monkeypatch.undo()
    assert as_text(load_run(folder)) == known


def test_readings_that_are_arrays_of_different_shapes_are_not_cached(folder: Path) -> None:
    with open(log_of(folder), "a", encoding="utf-8") as log:
        log.write('{"step": 70, "values": {"table": [1]}}\n')
    assert load_run(folder).last_step == 70
    assert load_run(folder).last_step == 70
    assert not list((folder / run_cache.FOLDER).glob("*"))


def test_a_short_log_has_no_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_cache, "WORTH", 10**6)
    load_run(folder)
    assert not (folder / run_cache.FOLDER).exists()
