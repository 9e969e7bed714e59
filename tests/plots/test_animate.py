from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.animation import FFMpegWriter
from PIL import Image

from cockpit_lite.alert import Alert
from cockpit_lite.errors import CockpitError
from cockpit_lite.plots import Layout, animate, grad_norm, loss
from cockpit_lite.plots.moment import Moment
from cockpit_lite.run import Run
from cockpit_lite.run_log import RunWriter
from tests.plots.synthetic import ALERTS, readings_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    readings = {"loss": [1.0 / (step + 1) for step in range(200)], "grad_norm": [1.0] * 50, "gsnr/a": [0.5] * 30}
    return readings_run(tmp_path / "run", readings, alerts=[ALERTS["learning-rate-too-high"]])


def test_an_animation_shows_the_run_growing(run, tmp_path):
    layout = Layout((("", (loss,)), ("", (grad_norm,))))
    path = animate(run, tmp_path / "run.gif", layout=layout, frames=4, frames_per_second=1, dpi=30)
    with Image.open(path) as film:
        pictures = []
        for frame in range(film.n_frames):
            film.seek(frame)
            pictures.append(np.asarray(film.convert("RGB"), dtype=int))
    assert len(pictures) == 5  # and the end, held for a second
    assert pictures[0].shape == (270, 432, 3)
    assert all((one != other).any() for one, other in itertools.pairwise(pictures))


def test_a_moment_holds_what_was_there_by_then(run):
    moment = Moment(run)
    moment.move_to(29)
    assert moment.last_step == 29
    assert moment.series("loss")[0].tolist() == list(range(30))
    assert moment.series("loss")[1].tolist() == run.series("loss")[1][:30].tolist()
    assert moment.layers("gsnr") == ["a"]
    assert moment.alerts == []
    moment.move_to(180)
    assert [alert.name for alert in moment.alerts] == ["learning-rate-too-high"]
    assert len(moment.series("grad_norm")[0]) == 50
    with pytest.raises(KeyError):
        moment.series("nothing")


def test_what_was_not_there_yet_is_not_among_the_names(tmp_path):
    writer = RunWriter(tmp_path / "run", {})
    writer.step(0, {"loss": 1.0})
    writer.step(5, {"loss": 1.0, "late": 2.0, "late/a": 1.0})
    writer.alert(Alert("CL901", "x", "note", 5, cause="", advice="").to_dict())
    writer.close(status="completed")
    moment = Moment(Run(tmp_path / "run"))
    moment.move_to(4)
    assert moment.names == ["loss"]
    assert moment.layers("late") == []
    moment.move_to(5)
    assert moment.names == ["late", "late/a", "loss"]


def test_nothing_is_animated_of_a_run_without_steps(tmp_path):
    with pytest.raises(CockpitError, match="has no step to animate"):
        animate(readings_run(tmp_path / "run", {}), tmp_path / "run.gif")


def test_a_film_without_ffmpeg_says_what_does(run, tmp_path, monkeypatch):
    monkeypatch.setattr(FFMpegWriter, "isAvailable", lambda: False)
    with pytest.raises(CockpitError, match=r"\.mp4 needs ffmpeg.*one of \.gif"):
        animate(run, tmp_path / "run.mp4")
