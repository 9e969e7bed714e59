"""Attention against attention written out, growth against variances by hand, and ranks through a real store."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cockpit_lite import Every, load_run
from cockpit_lite.errors import NotMeasured
from cockpit_lite.instruments.ranks_apart import Exchange
from cockpit_lite.probes.attention import attentions
from cockpit_lite.probes.hashes import tensors_hash
from tests.diagnosis.faults import residual
from tests.identity import cockpit


def entropy_by_hand(logits: Tensor, causal: bool) -> float:
    """Mean over all queries that have a choice of their entropy over that of equal weights."""
    found = []
    for matrix in logits.double().flatten(0, 1):
        for place, row in enumerate(matrix):
            kept = row[: place + 1] if causal else row
            weights = (kept - kept.max()).exp() / (kept - kept.max()).exp().sum()
            if len(kept) > 1:
                found.append(-sum(w * math.log(w) for w in weights.tolist() if w) / math.log(len(kept)))
    return sum(found) / len(found)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_against_attention_written_out(fused: bool, causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 8, generator=generator))
    inputs = torch.randn(3, 2, 6, 8, generator=generator)
    query, key = inputs @ weight, torch.randn(3, 2, 6, 8, generator=generator)
    logits = query @ key.transpose(-2, -1) / math.sqrt(8)
    if fused:
        output = F.scaled_dot_product_attention(query, key, key, is_causal=causal)
    else:
        hidden = torch.ones(6, 6, dtype=torch.bool).triu(1) if causal else torch.zeros(6, 6, dtype=torch.bool)
        output = logits.masked_fill(hidden, -math.inf).softmax(-1) @ key
    found = attentions(output.square().sum(), {id(weight): "block.query.weight"})
    assert found.entropy["block.query"].item() == pytest.approx(entropy_by_hand(logits.detach(), causal), rel=1e-4)
    if fused:
        assert found.logit["block.query"].item() == pytest.approx(logits.abs().max().item(), rel=1e-5)
    assert bool(found.logit) == fused


def test_a_classifier_has_no_attention() -> None:
    weight = nn.Parameter(torch.randn(8, 5))
    assert not attentions((torch.randn(4, 8) @ weight).softmax(1).log().sum(), {}).entropy


def test_growth_of_the_blocks_against_their_variances(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = residual(norm=False)
    inputs = torch.randn(32, 64)
    signals = [model[0](inputs)]
    for block in list(model)[1:-1]:
        signals.append(block(signals[-1]))
    variances = [signal.detach().double().var(correction=0).item() for signal in signals]
    expected = [later / earlier for earlier, later in itertools.pairwise(variances)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    options = {"instruments": ["residual_growth"], "schedule": Every(1), "budget": None}
    with cockpit(model, optimizer, run=tmp_path / "run", **options):
        for _ in range(4):
            model(inputs).square().mean().backward()
            optimizer.step()
    run = load_run(tmp_path / "run")
    found = [run.series(f"residual_growth/{number}")[1][0] for number in range(1, 9)]
    assert found == pytest.approx(expected, rel=1e-4)
    late = sorted(expected[4:])
    assert run.series("residual_growth")[1][0] == pytest.approx((late[1] + late[2]) / 2, rel=1e-4)
    assert run.series("residual_growth")[0].tolist() == [0, 1]  # how it begins


def test_ranks_are_compared_as_soon_as_all_have_come_by() -> None:
    store = torch.distributed.HashStore()
    one, two, three = (Exchange(store, rank, 3, "run") for rank in range(3))
    with pytest.raises(NotMeasured, match="have not come so far"):
        one.compare(0, 17.0)
    with pytest.raises(NotMeasured):
        two.compare(0, 17.0)
    assert three.compare(0, 17.0) == 0
    with pytest.raises(NotMeasured):
        three.compare(1, 5.0)
    assert one.compare(1, 4.0) == 0  # of step 0: the second rank is not there yet
    assert two.compare(1, 4.0) == 1
    with pytest.raises(NotMeasured):
        Exchange(store, 0, 3, "another run").compare(0, 17.0)


def test_the_hash_of_weights_sees_any_change() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).bfloat16()
    parameters = dict(model.named_parameters())
    before = tensors_hash(parameters.values()).item()
    assert tensors_hash(value.clone() for value in parameters.values()).item() == before
    for name in parameters:
        changed = {other: value.detach().clone() for other, value in parameters.items()}
        changed[name].view(-1)[0] += 1
        assert tensors_hash(changed.values()).item() != before
    swapped = {**parameters, "0.weight": parameters["0.weight"].detach().flip(0)}
    assert tensors_hash(swapped.values()).item() != before


def test_a_training_of_one_process_says_so(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"instruments": ["ranks_apart"], "schedule": Every(1), "budget": None}
    with cockpit(model, optimizer, run=tmp_path / "run", **options):
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
    assert load_run(tmp_path / "run").not_measured["ranks_apart"] == "the training is not distributed"
