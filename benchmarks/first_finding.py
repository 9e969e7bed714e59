"""From a fresh machine to the first finding, step by step as somebody does who has just read the README.

A clone of this checkout in an empty folder, an environment made there, the install, and then the README's command for a training
that is broken on purpose: the clock says when its first finding is on the screen, and when the report lies there. Then a script
of the user's own, unchanged, under ``cockpit-lite run``. Wall clock, because that is what a user waits for: downloading is in
the install, and depends on the network and on what pip has in its cache.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.page import PAGE, arguments, publish, table

#: What somebody might have lying about: no line of it knows of the cockpit, and its model ends in a softmax too many.
SCRIPT = """
import torch
from sklearn.datasets import load_digits

torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10), torch.nn.Softmax(dim=1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(5):
    for batch in torch.randperm(len(images)).split(64):
        loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def until(command: Sequence[str | Path], words: str, folder: Path) -> tuple[float, float, str]:
    """Run a command and return the seconds until its output holds ``words``, until it ends, and the line with them.

    Raises:
        RuntimeError: The words never came.
    """
    start = time.monotonic()
    with subprocess.Popen(
        [str(part) for part in command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        seen, line, output = None, "", []
        for text in process.stdout:
            output.append(text)
            if seen is None and words in text:
                seen, line = time.monotonic() - start, text.strip()
        process.wait()
    if seen is None:
        raise RuntimeError(f"{' '.join(map(str, command))} did not say {words!r}:\n{''.join(output)[-2000:]}")
    return seen, time.monotonic() - start, line


def timed(command: Sequence[str | Path], folder: Path) -> float:
    """Run a command and return its seconds.

    Raises:
        RuntimeError: It failed; with what it said.
    """
    start = time.monotonic()
    done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return time.monotonic() - start


def main() -> None:
    """Do what a new user does, and write the section."""
    parser = arguments(__doc__)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "cockpit-lite")
        environment = clone / ".venv" / "bin"
        rows = [
            ("`git clone`", timed(["git", "clone", "--quiet", PAGE.parents[1], clone], Path(folder))),
            ("`python3 -m venv .venv`", timed([sys.executable, "-m", "venv", ".venv"], clone)),
            ('`.venv/bin/pip install -e ".[demo]"`', timed([environment / "pip", "install", "-q", "-e", ".[demo]"], clone)),
        ]
        ready = sum(seconds for _, seconds in rows)
        demo = [environment / "cockpit-lite", "demo", "--broken", "lr-too-high", "--run", "runs/demo"]
        seen, ended, finding = until(demo, "learning-rate-too-high", clone)
        Path(clone, "train.py").write_text(SCRIPT, encoding="utf-8")
        own, own_ended, own_finding = until([environment / "cockpit-lite", "run", "train.py"], "softmax-twice", clone)
        rows += [
            ("`cockpit-lite demo --broken lr-too-high`: until its finding is on the screen", seen),
            ("the same: until report and picture are written", ended),
            ("`cockpit-lite run train.py`, a script of one's own: until its finding is on the screen", own),
            ("the same: until report and picture are written", own_ended),
        ]
    body = f"""{(__doc__ or "").partition(chr(10))[2].strip()}

{table(["step", "seconds"], [[what, f"{seconds:.1f}"] for what, seconds in rows])}

From nothing to the first finding: **{ready + seen:.0f} s**, of which {ready:.0f} s are the environment.

```text
{finding}
{own_finding}
```
"""
    publish("first_finding", "From a fresh machine to the first finding", body, options.print_only)


if __name__ == "__main__":
    main()
