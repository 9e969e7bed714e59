"""Labels drawn by lot against a count by hand, and the hashes of samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cockpit_lite import Every, load_run
from cockpit_lite.instruments import LabelNoise, ValidationOverlap
from cockpit_lite.instruments.label_noise import share_by_lot
from cockpit_lite.instruments.validation_overlap import hashes
from tests.identity import cockpit


@pytest.mark.parametrize("classes", [4, 5, 10])
def test_labels_by_lot_against_a_loop(classes: int) -> None:
    scores = torch.randn(200, classes, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % classes
    valid = torch.arange(200) % 7 > 0
    low = 0
    for row, label, counts in zip(scores.tolist(), labels.tolist(), valid.tolist(), strict=True):
        rank = sorted(row, reverse=True).index(row[label])  # 0: the first guess
        low += counts and rank >= classes - classes // 2
    expected = low / int(valid.sum()) * classes / (classes // 2)
    assert share_by_lot(scores, labels, valid).item() == pytest.approx(expected)


def test_it_estimates_the_share_that_was_drawn() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(10, (4000,), generator=generator)
    drawn = torch.rand(4000, generator=generator) < 0.2
    labels = torch.where(drawn, torch.randint(10, (4000,), generator=generator), truth)
    scores = F.one_hot(truth, 10) * 5 + torch.rand(4000, 10, generator=generator)
    assert share_by_lot(scores, labels, torch.ones(4000, dtype=torch.bool)).item() == pytest.approx(0.2, abs=0.03)


def test_few_classes_say_why_not(tmp_path: Path) -> None:
    model = nn.Linear(4, 2)
    with cockpit(model, torch.optim.SGD(model.parameters(), lr=0.1), run=tmp_path / "run", instruments=[LabelNoise()]):
        F.cross_entropy(model(torch.randn(8, 4)), torch.arange(8) % 2).backward()
    assert "label_noise" not in load_run(tmp_path / "run").names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8, torch.bfloat16])
def test_hashes_are_of_the_sample_alone(dtype: torch.dtype) -> None:
    samples = (100 * torch.rand(50, 3, 7, generator=torch.Generator().manual_seed(2))).to(dtype)
    whole = hashes(samples)
    assert len(whole.unique()) == 50
    assert torch.equal(torch.cat([hashes(sample) for sample in samples.split(1)]), whole)
    assert torch.equal(hashes(samples.flip(0).transpose(1, 2).contiguous().transpose(1, 2)), whole.flip(0))
    changed = samples.clone()
    changed[3, 1, 2] += 1
    assert (hashes(changed) != whole).nonzero().flatten().tolist() == [3]


def test_the_overlap_is_counted_between_the_steps(tmp_path: Path) -> None:
    data = torch.randn(40, 12, generator=torch.Generator().manual_seed(3))
    model = nn.Linear(12, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"instruments": [ValidationOverlap()], "schedule": Every(1), "budget": None}
    with cockpit(model, optimizer, run=tmp_path / "run", **options):
        for step in range(4):
            if step == 2:
                with torch.no_grad():
                    model(data[12:22])  # four of them were trained on
                    model(data[30:40])
            model(data[8 * step : 8 * step + 8]).square().mean().backward()
            optimizer.step()
    run = load_run(tmp_path / "run")
    assert run.series("validation_samples")[1].tolist() == [0, 0, 20, 0]
    assert [array.tolist() for array in run.series("validation_overlap")] == [[2], [0.2]]
