"""Residual growth, collapsed attention, ranks that disagree: histories that show them, and healthy ones that come close."""

from __future__ import annotations

import math

import pytest

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.attention import AttentionCollapse
from cockpit_lite.diagnosis.depth import ResidualGrowth
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.parallel import RanksDisagree
from tests.diagnosis.histories import Level, at, falling, level, readable


def growth(factors: list[float]) -> Alert | None:
    history = History()
    late = sorted(factors[len(factors) // 2 :])
    layers = {f"residual_growth/block{number}": factor for number, factor in enumerate(factors)}
    history.add(0, {"residual_growth": late[len(late) // 2], **layers})
    return ResidualGrowth().check(history)


def test_a_variance_that_doubles_at_every_block() -> None:
    alert = growth([2.0] * 8)
    assert alert is not None and alert.where == ("block7", "block0")
    readable(alert)
    assert "1 / sqrt(8)" in alert.advice and alert.evidence["growth in all"] == 256


@pytest.mark.parametrize("blocks", [4, 6, 12, 24])
def test_linear_growth_is_silent(blocks: int) -> None:
    assert growth([100.0] + [(place + 1) / place for place in range(1, blocks)]) is None  # from a small embedding
    assert growth([1.1] * blocks) is None


def collapse(steps: int = 80, loss: Level = 2.0, **levels: Level) -> Alert | None:
    history = History()
    rule = AttentionCollapse()
    usual: dict[str, Level] = {
        "attention_entropy": lambda step: 0.95 * math.exp(-step / 8),
        "attention_logit": lambda step: min(2 * math.exp(step / 10), 500.0),
    }
    for step in range(steps):
        row = {name: at(value, step) for name, value in {**usual, **levels, "loss": loss}.items()}
        history.add(
            step, {name: value for name, value in row.items() if value >= 0} | {"attention_entropy/block.attention": 0.01}
        )
        alert = rule.check(history)
        if alert is not None:
            return alert
    return None


def test_attention_that_collapses() -> None:
    alert = collapse()
    assert alert is not None and alert.where == ("block.attention",) and alert.step >= 50
    readable(alert)
    written_out = collapse(attention_logit=-1.0)  # not measured
    assert written_out is not None and written_out.confidence < alert.confidence
    readable(written_out)


def test_sharp_heads_are_no_collapse() -> None:
    assert collapse(loss=falling(2.0, 0.1, 30)) is None  # it learns
    assert collapse(attention_entropy=level(0.05), attention_logit=level(20.0)) is None  # sharp, and stable
    assert collapse(attention_entropy=level(0.6)) is None  # large logits alone
    assert collapse(attention_entropy=level(0.05), attention_logit=-1.0) is None  # sharp from the start


def test_ranks_that_disagree() -> None:
    history, rule = History(), RanksDisagree()
    history.add(0, {"ranks_apart": 0.0})
    assert rule.check(history) is None
    history.add(1, {"ranks_apart": 3.0})
    alert = rule.check(history)
    assert alert is not None and alert.step == 1 and alert.severity == "error"
    readable(alert)
