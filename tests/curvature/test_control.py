from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cockpit_lite.curvature import Curvature, ForwardProbe
from cockpit_lite.curvature.control import Controls
from cockpit_lite.probes.loss_head import find_loss_heads
from cockpit_lite.probes.sampled_curvature import SampledCurvature
from tests import reference
from tests.curvature.cases import dense

SAMPLES, TOKENS, CLASSES = 8, 6, 5


class Language(nn.Module):
    """A text model so small that its matrix fits; ``classes_first`` as losses over pixels want it."""

    def __init__(self, classes_first: bool) -> None:
        super().__init__()
        self.table, self.last, self.classes_first = nn.Embedding(7, 3), nn.Linear(3, CLASSES), classes_first

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.last(self.table(tokens).tanh() + 1)
        return logits.transpose(1, 2) if self.classes_first else logits


def build(classes_first: bool) -> tuple[Language, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Language(classes_first).double()
    return model, torch.randint(7, (SAMPLES, TOKENS)), torch.randint(CLASSES, (SAMPLES, TOKENS))


def loss_of(outputs: Tensor, labels: Tensor, classes_first: bool) -> Tensor:
    return F.cross_entropy(outputs, labels) if classes_first else F.cross_entropy(outputs.flatten(0, 1), labels.flatten())


@pytest.mark.parametrize("classes_first", [True, False])
def test_the_expectation_of_what_is_known(classes_first: bool) -> None:
    model, tokens, labels = build(classes_first)
    outputs = model(tokens)
    (head,) = find_loss_heads(loss_of(outputs, labels, classes_first), [outputs])
    draws, found = torch.Generator().manual_seed(0), []
    for _ in range(150):
        root = head.random_root(draws)
        controls = head.controls(root, SAMPLES)
        assert controls is not None
        found.append(controls.values)
    by_token = root.transpose(1, 2) if classes_first else root.view(SAMPLES, TOKENS, CLASSES)
    torch.testing.assert_close(controls.values, torch.stack([by_token.square().sum((1, 2)), by_token.sum(1).square().sum(1)], 1))
    values = torch.stack(found)
    assert (values.mean(0) - controls.expected).norm() <= 2 * (values.std(0) / len(values) ** 0.5).norm()


def test_a_sample_is_corrected_by_what_the_others_say() -> None:
    draws = torch.Generator().manual_seed(0)
    parts, values, expected = (torch.rand(shape, generator=draws).double() for shape in ((3, 9), (9, 2), (9, 2)))
    found = Controls(values, expected).corrected(parts)
    for sample in range(9):
        others = [other for other in range(9) if other != sample]
        weights = torch.linalg.lstsq(values[others], parts[:, others].T).solution
        torch.testing.assert_close(
            found[:, sample], parts[:, sample] - (values[sample] - expected[sample]) @ weights, rtol=0.1, atol=1e-2
        )


@pytest.mark.parametrize("classes_first", [True, False])
def test_the_trace_of_the_dense_matrix_is_spread_less(classes_first: bool) -> None:
    model, tokens, labels = build(classes_first)
    parameters = reference.trainable(model)
    probe, sampler, draws = ForwardProbe(model), SampledCurvature(model, parameters), torch.Generator().manual_seed(0)
    corrected, plain = [], []
    for _ in range(80):
        probe.start()
        sampler.start(squares=False)
        loss, call = loss_of(model(tokens), labels, classes_first), probe.call
        probe.stop()
        assert call is not None
        sample = sampler.draw(loss, call, draws)
        sampler.stop()
        corrected.append(sample.trace(parameters).value)
        plain.append(torch.stack(list(sample.squared_norms.values())).sum())
    curvature = Curvature(loss, parameters, draws, model=model, forward=call)
    exact = dense(curvature.gauss_newton_product, curvature.flat_gradient()).trace()
    values = torch.stack(corrected)
    assert abs(values.mean() - exact) <= 4 * values.std() / len(values) ** 0.5
    assert values.std() < torch.stack(plain).std() / 1.5
