"""Cockpits that open and close in one thread while an optimizer steps in another."""

from __future__ import annotations

import threading
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD

from cockpit_lite import Cockpit, Every
from cockpit_lite.instrument import GRADIENT, Instrument, Readings
from cockpit_lite.step import Step


class Slow(Instrument):
    """Measures inside ``optimizer.step`` until the test lets it go on."""

    name = "slow"
    needs = (GRADIENT,)

    def __init__(self) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()

    def measure(self, step: Step) -> Readings:
        self.inside.set()
        assert self.go_on.wait(60)
        return {"slow": 1.0}


def test_a_cockpit_opens_and_closes_while_another_thread_is_inside_its_step(tmp_path: Path) -> None:
    slow = Slow()
    opened, two_open = threading.Event(), threading.Event()
    errors: list[Exception] = []

    def train() -> None:
        model = nn.Linear(2, 1)
        optimizer = SGD(model.parameters(), lr=0.1)
        try:
            with Cockpit(model, optimizer, run=tmp_path / "one", instruments=[slow], schedule=Every(100), budget=None):
                opened.set()
                assert two_open.wait(60)
                for _ in range(2):
                    optimizer.zero_grad()
                    model(torch.ones(3, 2)).sum().backward()
                    optimizer.step()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    assert opened.wait(60)
    other = nn.Linear(2, 1)
    optimizer = SGD(other.parameters(), lr=0.1)
    with Cockpit(other, optimizer, run=tmp_path / "two", instruments="light"):
        two_open.set()
        assert slow.inside.wait(30), errors
        with Cockpit(other, optimizer, run=tmp_path / "three", instruments="light"):
            slow.go_on.set()
            thread.join()
    assert not errors
