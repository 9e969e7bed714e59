"""Scripts that know nothing of the cockpit: what they train is found, watched, and bit for bit what it would have been."""

from __future__ import annotations

import random
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cockpit_lite import Cockpit, CockpitWarning, SetupError, load_run
from cockpit_lite.attach import find_models
from cockpit_lite.cli import main
from cockpit_lite.script import Watch, run_script

SCRIPTS = Path(__file__).parent / "scripts"
#: What each script trains: the classes of its models and how many steps each is trained for.
TRAINED = {
    "classifier": [("Net", 32)],
    "language_model": [("GPT", 25)],
    "vae": [("VAE", 30)],
    "gan": [("Sequential", 20), ("Sequential", 20)],
    "reinforce": [("Policy", 6)],
    "time_series": [("Forecast", 15)],
    "image_translation": [("UNet", 18), ("PatchDiscriminator", 18)],
    "sequence_to_sequence": [("ModuleDict", 20)],
    "siamese": [("Sequential", 15)],
    "cross_validation": [("Sequential", 10)] * 3,
    "polynomial": [("Sequential", 8)],
    "fine_tuning": [("Classifier", 10), ("Classifier", 10)],
    "mixed_precision": [("Sequential", 12)],
}


#: The script whose reports are written: they take longer than the training.
REPORTED = "polynomial"


@pytest.fixture(autouse=True)
def _few_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if f"[{REPORTED}]" not in request.node.name:
        monkeypatch.setattr(Cockpit, "_write_results", lambda self: None)


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    yield
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])


def arguments(name: str, weights: Path) -> list[str]:
    return ["--save", str(weights)] if name in ("classifier", "language_model") else [str(weights)]


def saved(weights: Path) -> list[torch.Tensor]:
    def tensors(value: object) -> Iterator[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list)):
            for part in value.values() if isinstance(value, dict) else value:
                yield from tensors(part)

    return list(tensors(torch.load(weights, weights_only=True)))


def test_every_script_is_tried() -> None:
    assert {path.stem for path in SCRIPTS.glob("*.py")} == set(TRAINED)


@pytest.mark.filterwarnings("ignore::cockpit_lite.CockpitWarning")
@pytest.mark.parametrize("name", TRAINED)
def test_a_script_trains_the_same_watched_or_not(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = str(SCRIPTS / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [script, *arguments(name, tmp_path / "plain.pt")])
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    state_after = torch.get_rng_state()

    watch = Watch(tmp_path / "run", budget=None)
    assert run_script(script, arguments(name, tmp_path / "watched.pt"), watch) == 0

    assert torch.equal(torch.get_rng_state(), state_after)
    plain, watched = saved(tmp_path / "plain.pt"), saved(tmp_path / "watched.pt")
    assert len(plain) == len(watched)
    assert all(torch.equal(before, after) for before, after in zip(plain, watched, strict=True))
    told = iter(capsys.readouterr().out.splitlines())
    assert all(line in told for line in printed)  # in their order, our own lines between them
    runs = [load_run(folder) for folder in watch.folders]
    assert [(run.info["model"]["class"], len(run.series("loss")[0])) for run in runs] == TRAINED[name]
    assert all(run.info["status"] == "completed" for run in runs)
    assert all((run.folder / "report.html").is_file() == (name == REPORTED) for run in runs)


def test_nothing_stays_behind(tmp_path: Path) -> None:
    before = nn.Module.__call__, torch.optim.Optimizer.__init__, torch.autograd.backward, list(sys.path), list(sys.argv)
    run_script(str(SCRIPTS / "siamese.py"), arguments("siamese", tmp_path / "weights.pt"), Watch(tmp_path / "run"))
    after = nn.Module.__call__, torch.optim.Optimizer.__init__, torch.autograd.backward, list(sys.path), list(sys.argv)
    assert after == before


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "train.py"
    path.write_text(text)
    return str(path)


TRAINING = """
import sys, torch
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(4):
    optimizer.zero_grad()
    model(torch.ones(8, 3)).square().mean().backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("ending", "code", "status"),
    [
        ("", 0, "completed"),
        ("sys.exit()", 0, "completed"),
        ("sys.exit(3)", 3, "failed"),
        ("raise ValueError(1)", 1, "failed"),
    ],
)
def test_the_exit_code_is_the_scripts_own(
    ending: str, code: int, status: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script(tmp_path, TRAINING + ending)
    assert main(["run", "--run", str(tmp_path / "run"), path]) == code
    assert load_run(tmp_path / "run").info["status"] == status
    trace = capsys.readouterr().err
    if "raise" in ending:
        assert "ValueError: 1" in trace
        assert trace.count("File ") == 1  # as without us: no frame of ours, none of runpy


def test_its_arguments_are_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script(tmp_path, "import sys\nprint(sys.argv[1:], __name__)")
    assert main(["run", path, "--run", "mine", "-m", "--budget", "x"]) == 0
    told = capsys.readouterr()
    assert "['--run', 'mine', '-m', '--budget', 'x'] __main__" in told.out
    assert "no training was seen" in told.err


def test_a_module_runs_as_python_m_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, TRAINING)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--run", "run", "-m", "train"]) == 0
    assert len(load_run(tmp_path / "run").series("loss")[0]) == 4


def test_findings_can_fail_it(tmp_path: Path) -> None:
    path = script(tmp_path, TRAINING.replace("    optimizer.step()\n", ""))
    assert main(["run", "--run", str(tmp_path / "one"), path]) == 0
    assert main(["run", "--run", str(tmp_path / "two"), "--fail-on", "error", path]) == 1


def test_a_missing_script_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"there is no script 'none.py'"):
        run_script("none.py", [], Watch(tmp_path / "run"))


def test_a_cockpit_that_cannot_open_leaves_the_script_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(CockpitWarning, match="Linear could not be watched"):
        assert run_script(script(tmp_path, TRAINING), [], Watch(tmp_path / "file" / "run")) == 0


def test_from_the_command_line(tmp_path: Path) -> None:
    path = script(tmp_path, TRAINING + "print('script is done')")
    ended = subprocess.run(
        [sys.executable, "-m", "cockpit_lite", "run", path], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "script is done" in ended.stdout
    assert len(list((tmp_path / "runs").glob("*/report.html"))) == 1


def test_the_model_is_the_smallest_that_holds_everything() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    wrapper = nn.Sequential(model, nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    assert find_models(model[0], [optimizer]) == [(model, [optimizer])]
    assert find_models(wrapper, [optimizer]) == [(wrapper, [optimizer])]  # that is what is called


def test_optimizers_of_one_model_share_a_cockpit() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    first, second = (torch.optim.SGD(part.parameters(), lr=1.0) for part in model)
    assert find_models(model, [first, second]) == [(model, [first, second])]
    whole = torch.optim.SGD(model.parameters(), lr=1.0)
    assert find_models(nn.Linear(1, 1), [first, whole]) == [(model, [first, whole])]


def test_parts_that_nobody_holds_are_put_together() -> None:
    encoder, decoder = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=1.0)
    ((model, optimizers),) = find_models(encoder, [optimizer])
    assert {id(part) for part in model.children()} == {id(encoder), id(decoder)}
    assert optimizers == [optimizer]
