"""Run folders made by somebody who means harm, or by a broken disk: opened, reported, printed.

A real run is changed at random: bytes flipped, cut, doubled and swapped; values of its JSON replaced by what does not belong
there (numbers beyond any float, nesting without end, text where numbers are, markup and terminal escapes in names, paths that
lead out); files replaced by links, pipes, devices and folders. Each folder is opened with bounded memory and time. It must give a
clear error or as much as can be read: no other exception, nothing executed, no file outside the folder changed.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.optim import SGD

from benchmarks.page import arguments, publish, table
from cockpit_lite import Every, load_run
from cockpit_lite.cli import main as command_line
from cockpit_lite.errors import CockpitError
from tests.identity import cockpit

#: Seconds of processor time that opening and reporting one folder may take; megabytes beyond what the process has.
MOST_SECONDS, MOST_MEGABYTES = 20, 1500
#: Seconds on the wall, for what waits and does not work: enough on a machine that is busy with other things.
MOST_WAIT = 10 * MOST_SECONDS
#: One folder in so many is reported with its pictures, which takes longer than everything else.
PICTURES = 200
VICTIM = "do not touch"
MARKUP = "<x-hostile onload=alert(1)>"
ESCAPE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e"
DEEP = "nested fifty thousand times"
FILES = ("run.json", "readings.jsonl", "alerts.jsonl")

Node = tuple[Any, Any]  # a container, and the key or index in it


@dataclass(frozen=True)
class Verdict:
    """What became of one folder: "refused", "read", or what was wrong with how it was taken."""

    kind: str
    seed: int
    change: str
    problem: str = ""


def original(folder: Path) -> Path:
    """Record a real run with every instrument, a fault, and rows with layouts."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    optimizer = SGD(model.parameters(), lr=0.1)
    options: dict[str, Any] = {"instruments": "full", "schedule": Every(2), "budget": None}
    with contextlib.redirect_stderr(io.StringIO()), cockpit(model, optimizer, run=folder, **options) as watching:
        for step in range(10):
            x = torch.randn(8, 5)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
            (loss * (float("inf") if step == 8 else 1.0)).backward()
            optimizer.step()
            watching.log(validation_loss=float(step))
    return folder


# ------------------------------------------------------------------------------------------------------------- what is changed


def _values(draw: random.Random) -> Any:
    """Return something that does not belong there."""
    nested: Any = 1.0
    for _ in range(draw.choice([3, 60])):
        nested = [nested]
    text = draw.choice([MARKUP, ESCAPE, "../../../../etc/passwd", "\ud800", "", "NaN", "-Infinity", "é" * 3, "{{7*7}}", "%s%n"])
    return draw.choice(
        [
            None, True, -1, 0, 2**31, 2**62, 2**63, 2**70, -(2**70), 10**400, 1e308, -1e308, 5e-324, "NaN", "Infinity",
            text, text * 50, "x" * 100_000, [], {}, [[]], [text], {text: text}, {text: {text: [1, text]}}, [1.0, [2.0, [3.0]]],
            list(range(draw.choice([2, 5_000]))), [None] * 9, nested, DEEP, "__import__('os').system('touch owned')",
        ]
    )  # fmt: skip


def _nodes(value: Any) -> Iterator[Node]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _nodes(inner)


def _mutate_json(value: Any, draw: random.Random) -> Any:
    value = copy.deepcopy(value)
    for _ in range(draw.choice([1, 1, 2, 5])):
        nodes = list(_nodes(value))
        if not nodes:
            return _values(draw)
        container, key = draw.choice(nodes)
        action = draw.random()
        if action < 0.6:
            container[key] = _values(draw)
        elif action < 0.75 and isinstance(container, dict):
            new = _values(draw)
            container[new if isinstance(new, str) else str(new)[:50]] = container.pop(key)
        elif action < 0.9:
            del container[key]
        else:
            container[key] = copy.deepcopy(draw.choice(nodes)[0])
    return value


def _dump(value: Any) -> bytes:
    """Return JSON, with nesting that Python's own encoder does not follow."""
    return json.dumps(value).encode().replace(f'"{DEEP}"'.encode(), b"[" * 50_000 + b"]" * 50_000)


def change_json(folder: Path, draw: random.Random) -> None:
    """Replace values in one file, line by line where it has lines."""
    path = folder / draw.choice(FILES)
    if path.name == "run.json":
        path.write_bytes(_dump(_mutate_json(json.loads(path.read_bytes()), draw)))
        return
    lines = path.read_bytes().splitlines()
    for place in draw.sample(range(len(lines)), min(draw.choice([1, 1, 3]), len(lines))):
        lines[place] = _dump(_mutate_json(json.loads(lines[place]), draw))
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def change_bytes(folder: Path, draw: random.Random) -> None:
    """Flip, cut, double, insert."""
    path = folder / draw.choice(FILES)
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 1, 4, 40])):
        at = draw.randrange(len(data) + 1)
        end = min(at + draw.choice([1, 1, 10, 1000]), len(data))
        action = draw.randrange(5)
        if action == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif action == 1:
            del data[at:end]
        elif action == 2:
            data[at:at] = data[at:end]
        elif action == 3:
            data[at:at] = draw.choice(
                [b"\0" * 50, b"\xff\xfe", b"\n", b"\\ud800", b"[" * 3000, b"9" * 5000, b"1e999", b"NaN", b'"']
            )
        else:
            del data[at:]
    path.write_bytes(bytes(data))


def change_lines(folder: Path, draw: random.Random) -> None:
    """Shuffle, repeat, drop and mix the lines of the files."""
    path = folder / draw.choice(FILES[1:])
    lines = path.read_bytes().splitlines(keepends=True)
    other = (folder / draw.choice(FILES)).read_bytes().splitlines(keepends=True)
    action = draw.randrange(4)
    if action == 0:
        draw.shuffle(lines)
    elif action == 1:
        lines = draw.choices(lines, k=2 * len(lines) + 1) if lines else other
    elif action == 2:
        lines = other
    else:
        lines += [b'{"resumed": %d}\n' % draw.choice([0, 3, -5, 2**40]), *draw.choices(other, k=3)]
    path.write_bytes(b"".join(lines))


def change_files(folder: Path, draw: random.Random) -> None:
    """Put links, pipes, devices and folders where files are, or will be written."""
    written = ("report.html", "report.json", "cockpit.png", "report.html.part", "report.json.part", "cockpit.png.part", ".cache")
    path = folder / draw.choice([*FILES, *FILES, *written])
    if path.exists():
        path.unlink()
    victim = folder.parent / "outside" / "victim.txt"
    action = draw.randrange(8)
    if action == 0:
        path.mkdir()
    elif action == 1:
        os.mkfifo(path)
    elif action in (2, 3):
        path.symlink_to(victim if draw.random() < 0.7 else victim.parent)
    elif action == 4:
        path.symlink_to(
            draw.choice(["/dev/zero", "/dev/full", "/dev/random", "/dev/stdin", "/proc/self/environ", "/proc/self/mem"])
        )
    elif action == 5:
        path.symlink_to(path.name)  # itself
    elif action == 6:
        path.symlink_to("/no/such/place")
    else:
        path.write_bytes(draw.choice([b"", b"{" * 10, b'{"schema": 1}', b'{"step": 0, "values": {"loss": ' + b"1" * 2_000_000]))


CHANGES: tuple[tuple[Callable[[Path, random.Random], None], int], ...] = (
    (change_json, 60), (change_bytes, 20), (change_lines, 8), (change_files, 12),
)  # fmt: skip


def make(seed: int, source: Path, place: Path) -> tuple[Path, str]:
    """Make the hostile folder of this number; return it and what was changed."""
    draw = random.Random(seed)
    (place / "outside").mkdir(parents=True)
    (place / "outside" / "victim.txt").write_text(VICTIM, encoding="utf-8")
    folder = place / "run"
    shutil.copytree(source, folder)
    change = draw.choices([function for function, _ in CHANGES], [weight for _, weight in CHANGES])[0]
    change(folder, draw)
    return folder, change.__name__.removeprefix("change_")


# ------------------------------------------------------------------------------------------------------------ how it is taken


def take(folder: Path, pictures: bool) -> tuple[str, str]:
    """Do with a folder what a user does; return "refused" or "read", and what was wrong."""
    try:
        run = load_run(folder)
    except (CockpitError, OSError) as error:
        return "refused", "" if str(error) else "an error without words"
    problems = []
    report = run.report()
    report.to_json()
    text = str(report)
    page = report.to_html() if pictures else ""
    for name in run.names:
        with contextlib.suppress(ValueError):  # arrays of different shapes
            run.series(name)
    run.refresh()
    if "\x1b" in text or "\x9b" in text or "\u202e" in text:
        problems.append("a terminal escape got through")
    if "<x-hostile" in page:
        problems.append("markup got through")
    if pictures:
        with contextlib.suppress(OSError):  # a folder where the report belongs, and the like
            report.save()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            command_line(["check", str(folder)])
        Console(file=io.StringIO()).print(text, markup=False)
    outside = folder.parent / "outside"
    if [path.name for path in outside.iterdir()] != ["victim.txt"] or (outside / "victim.txt").read_text() != VICTIM:
        problems.append("a file outside the folder was written")
    if sorted(path.name for path in folder.parent.iterdir()) != ["outside", "run"] or Path("owned").exists():
        problems.append("something was made outside the folder")
    return "read", "; ".join(problems)


def judge(seed: int, source: Path, place: Path, pictures: int = 0) -> Verdict:
    """Make and take one folder, with an alarm.

    Args:
        seed: Number of the folder.
        source: The run that is changed.
        place: A new folder to work in.
        pictures: One in so many is drawn, and one in an eighth of so many of those whose files are changed; 0: none.
    """
    folder, change = make(seed, source, place)
    drawn = bool(pictures) and (seed % pictures == 0 or (change == "files" and seed % max(pictures // 8, 1) == 0))

    def too_long(number: int, _: Any) -> None:
        limit = MOST_SECONDS if number == signal.SIGPROF else MOST_WAIT
        raise TimeoutError(f"longer than {limit} s")

    alarms = ((signal.SIGPROF, signal.ITIMER_PROF, MOST_SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, MOST_WAIT))
    before = {number: signal.signal(number, too_long) for number, _, _ in alarms}
    for _, timer, limit in alarms:
        signal.setitimer(timer, limit, 1.0)  # again and again: the first may come where an exception is lost, in a destructor
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kind, problem = take(folder, drawn)
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind, problem = "failed", f"{type(error).__name__}: {str(error)[:100]} ({Path(last.filename).name}, {last.name})"
    finally:
        for number, timer, _ in alarms:
            signal.setitimer(timer, 0.0)
            signal.signal(number, before[number])
        shutil.rmtree(place, ignore_errors=True)
    return Verdict(kind, seed, change, problem)


def _worker(seeds: range, source: Path, place: Path, pictures: int, results: Any) -> None:
    import resource

    resident = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = resident + MOST_MEGABYTES * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.set_num_threads(1)
    os.chdir(place)
    for seed in seeds:
        results.put(judge(seed, source, place / str(seed), pictures))


def main() -> None:
    """Judge many and write the section."""
    parser = arguments(__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="how many folders (default 10,000)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    options = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("Pipes, devices and limits of memory are those of Linux.")
    started = time.monotonic()
    verdicts: list[Verdict] = []
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        source = original(Path(folder, "original"))
        place = Path(folder, "place")
        place.mkdir()
        next_seed, end = options.first, options.first + options.inputs
        while next_seed < end:  # a worker that dies, for memory say, counts against the folder it was at
            results = context.SimpleQueue()
            worker = context.Process(target=_worker, args=(range(next_seed, end), source, place, PICTURES, results))
            worker.start()
            while worker.is_alive() or not results.empty():
                if results.empty():
                    time.sleep(0.01)
                    continue
                verdicts.append(results.get())
                if verdicts[-1].problem:
                    sys.stderr.write(f"{verdicts[-1]}\n")
                next_seed = verdicts[-1].seed + 1
            worker.join()
            if next_seed < end:
                verdicts.append(Verdict("failed", next_seed, "", f"the process ended with {worker.exitcode}"))
                next_seed += 1
    counts = collections.Counter((verdict.change, verdict.kind) for verdict in verdicts)
    bad = [verdict for verdict in verdicts if verdict.problem or verdict.kind == "failed"]
    changes = sorted({verdict.change for verdict in verdicts})
    rows = [[change, *(counts[change, kind] for kind in ("read", "refused", "failed"))] for change in changes]
    reasons = collections.Counter(verdict.problem for verdict in bad)
    examples = {verdict.problem: verdict.seed for verdict in reversed(bad)}
    said = "\n".join(f"- {count} times, first number {examples[reason]}: {reason}" for reason, count in reasons.most_common(20))
    body = f"""
Real runs, changed: values of their JSON, bytes, lines, files. Opened, reported and printed in a process with {MOST_MEGABYTES} MB
and {MOST_SECONDS} s for each; every {PICTURES}th with page and pictures. Allowed is an error that says what is wrong, or what can
be read.

{table(["changed", "read, in part or whole", "refused with a reason", "anything else"], rows)}

Hung, escaped, executed, or failed otherwise: **{len(bad)}** of {len(verdicts):,} (target: 0 of 10,000):
{"met" if not bad and len(verdicts) >= 10_000 else "**missed**"}. {time.monotonic() - started:.0f} s in all.
{said}
"""
    publish("hostile", "Hostile run folders", body, options.print_only)


if __name__ == "__main__":
    main()
