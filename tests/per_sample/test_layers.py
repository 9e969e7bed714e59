"""The per-sample gradients a layer at a time: elements, whole gradients and Gram matrices against the float64 loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.per_sample import PerSampleProbe, PerSampleStatistics
from cockpit_lite.probes.per_sample import layers as layers_module
from cockpit_lite.probes.per_sample import survey as survey_module
from cockpit_lite.probes.per_sample.elements import elements, rows, samples, stored
from cockpit_lite.probes.per_sample.forms import Chunks, Condensed, Dense, Form, OuterProducts, Windows, add
from cockpit_lite.probes.per_sample.forms.form import RankOne
from cockpit_lite.probes.per_sample.layers import LayerGradients, PerSampleGradients
from tests import reference
from tests.per_sample.checker import relative_error
from tests.per_sample.test_forms import outer, table
from tests.zoo import ZOO


@pytest.fixture(autouse=True)
def _probes_stop(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stop what a test has started, also where it failed in between."""
    started: list[PerSampleProbe] = []
    start = PerSampleProbe.start

    def remembered(self: PerSampleProbe, *args: Any, **kwargs: Any) -> None:
        started.append(self)
        start(self, *args, **kwargs)

    monkeypatch.setattr(PerSampleProbe, "start", remembered)
    yield
    for probe in started:
        probe.stop()


def watched(
    model: nn.Module, losses: Iterator[Callable[[], Tensor]], scale: float | None = None
) -> tuple[PerSampleGradients, PerSampleStatistics, PerSampleProbe]:
    """Run one step of several backward passes under a probe."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    probe = PerSampleProbe(model, parameters)
    model.zero_grad()
    probe.start(products=False, squares=False, gradients=True)
    for loss in losses:
        value = loss()
        probe.backward_begins()
        value.backward()
        probe.backward_ends()
    gradient = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
    statistics = probe.statistics(False, None, gradient)
    return probe.gradients(statistics, None if scale is None else torch.tensor(scale)), statistics, probe


def by_chunks(layer: LayerGradients) -> Tensor:
    return torch.cat(list(layer.gradients()))


@pytest.mark.parametrize("chunk", [1, 1_000_000])
@pytest.mark.parametrize("name", ZOO)
def test_the_zoo(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_module, "CHUNK", chunk)
    architecture = ZOO[name]
    generator = torch.Generator().manual_seed(0)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        model = architecture.build(dtype=dtype).eval()
        batch = architecture.batch(6, generator.manual_seed(0), dtype=dtype)
        found, statistics, _ = watched(model, iter([lambda model=model, batch=batch: architecture.loss(model, batch)]))
        try:
            expected = reference.contributions(architecture, model, batch)
        except ValueError:
            assert architecture.interacts
            continue
        everything = sum(contribution.square().sum() for contribution in expected.values())
        seen = []
        for parameter, layer in found:
            seen.append(parameter)
            whole = expected[parameter]
            assert layer.shape == whole.shape[1:]
            assert layer.batch_size == found.batch_size == len(whole)
            if whole.square().sum() < torch.finfo(dtype).eps ** 2 * everything:
                continue  # nothing but rounding, e.g. a bias that a normalisation takes away
            flat = whole.reshape(len(whole), -1)
            assert relative_error(by_chunks(layer), whole) < tolerance, (parameter, dtype)
            lengths = flat.norm(dim=1)
            assert relative_error(layer.gram(), flat @ flat.T, torch.outer(lengths, lengths)) < tolerance, (parameter, dtype)
            for indices in (layer.choose(12, generator), torch.randint(flat.shape[1], (12,), generator=generator)):
                assert relative_error(layer.elements(indices), flat[:, indices], whole) < tolerance, (parameter, dtype)
        assert sorted(seen) == sorted(statistics.squared_norms) == sorted(found.shapes)
        assert [parameter for parameter, _ in found] == seen, "it can be gone through twice"


@pytest.mark.parametrize("name", ["mlp", "conv", "gpt_tied", "lstm"])
def test_several_micro_batches_are_one_batch_and_a_scale_is_taken_out(name: str) -> None:
    architecture = ZOO[name]
    model = architecture.build(dtype=torch.float64).eval()
    batches = [architecture.batch(size, torch.Generator().manual_seed(size), dtype=torch.float64) for size in (3, 4)]
    found, _, _ = watched(model, ((lambda batch=batch: 8 * architecture.loss(model, batch)) for batch in batches), scale=8)
    expected = [reference.contributions(architecture, model, batch) for batch in batches]
    assert found.batch_size == 7
    for parameter, layer in found:
        whole = torch.cat([contributions[parameter] for contributions in expected]).flatten(1)
        indices = layer.choose(9, torch.Generator())
        torch.testing.assert_close(by_chunks(layer).flatten(1), whole)
        torch.testing.assert_close(layer.gram(), whole @ whole.T)
        torch.testing.assert_close(layer.elements(indices), whole[:, indices])
        for first, every in ((0, 2), (1, 2), (2, 5), (6, 7)):
            torch.testing.assert_close(layer.elements(indices, first, every), whole[first::every, indices])


def test_a_micro_batch_that_does_not_use_a_parameter_contributes_nothing() -> None:
    heads = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])

    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = heads

        def forward(self, x: Tensor, head: int) -> Tensor:
            return self.heads[head](x)

    model = TwoHeads()
    found, _, _ = watched(model, ((lambda head=head: model(torch.randn(4, 3), head).square().sum()) for head in (0, 1)))
    for name, layer in found:
        gradients = by_chunks(layer)
        used, other = (gradients[:4], gradients[4:]) if name.startswith("heads.0") else (gradients[4:], gradients[:4])
        assert used.abs().sum() > 0
        assert torch.equal(other, torch.zeros_like(other))
        assert layer.gram().shape == (8, 8)


def test_what_is_not_covered_is_not_there() -> None:
    architecture = ZOO["physics_informed"]
    model = architecture.build()
    found, statistics, _ = watched(model, iter([lambda: architecture.loss(model, architecture.batch(5, torch.Generator()))]))
    assert statistics.not_covered
    assert sorted(name for name, _ in found) == sorted(statistics.squared_norms)


@pytest.mark.parametrize("name", ["mlp", "conv", "gpt_tied", "lstm", "mixture_of_experts"])
def test_forms_that_were_kept_are_those_that_are_made_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = ZOO[name]
    model = architecture.build()
    batch = architecture.batch(5, torch.Generator())
    found = []
    for room in (0, 2_000, 4_000_000):
        monkeypatch.setattr(survey_module, "KEPT", room)
        layers, _, _ = watched(model, iter([lambda: architecture.loss(model, batch)]))
        found.append({name: by_chunks(layer) for name, layer in layers})
        assert len(found[-1]) > 2
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert all(torch.equal(other[name], values) for name, values in found[0].items())


def test_a_layer_that_cannot_be_made_a_second_time_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "KEPT", 0)
    model = nn.Sequential(nn.Linear(3, 2))
    inputs = torch.randn(4, 3)
    found, _, _ = watched(model, iter([lambda: model(inputs).square().sum()]))
    inputs.zero_()  # what the rule multiplies with is gone
    with pytest.raises(NotMeasured, match=r"0\.weight could not be made a second time"):
        list(found)


def test_the_probe_has_to_be_told_before() -> None:
    model = nn.Linear(3, 2)
    probe = PerSampleProbe(model, dict(model.named_parameters()))
    probe.start()
    with pytest.raises(ValueError, match="started without"):
        probe.gradients(PerSampleStatistics())
    probe.stop()


SIZE = st.integers(1, 5)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 999), SIZE, SIZE, st.integers(1, 9), SIZE, SIZE)
def test_every_form_agrees_with_its_gradients(seed: int, n: int, groups: int, positions: int, fan_in: int, fan_out: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    factors = outer(generator, n, groups, positions, fan_in, fan_out)
    flat, entries = outer(generator, n, 1, positions, fan_in, fan_out), table(generator, n, positions, (fan_out, fan_in))

    def some(part: slice) -> OuterProducts:
        return OuterProducts(factors.inputs[part], factors.deltas[part], factors.shape)

    forms: list[Form] = [factors, flat, Chunks(some, n, 2, factors.shape), entries, add([flat, entries]), Dense(flat.gradients())]
    for form in forms:
        whole = form.gradients().reshape(n, form.shape[0], -1)
        indices = torch.randint(form.shape.numel(), (7,), generator=generator)
        first, every = sorted(torch.randint(n, (2,), generator=generator).tolist())
        for of in (slice(None), slice(first, n, every + 1)):
            torch.testing.assert_close(elements(form, indices, of), whole[of].flatten(1)[:, indices])
        assert stored(form) <= 2 * n * groups * positions * (fan_in + fan_out + fan_in * fan_out)
        start, end = sorted(torch.randint(form.shape[0], (2,), generator=generator).tolist())
        torch.testing.assert_close(rows(form, start, end + 1), whole[:, start : end + 1])
        start, end = sorted(torch.randint(n, (2,), generator=generator).tolist())
        torch.testing.assert_close(
            samples(form, start, end + 1).reshape(-1, form.shape[0], whole.shape[2]), whole[start : end + 1]
        )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999), SIZE, st.integers(1, 2), *[st.integers(1, 3)] * 5)
def test_elements_of_windows(
    seed: int, n: int, groups: int, size: int, stride: int, dilation: int, fan_in: int, axes: int
) -> None:
    """Of a convolution they are read off the images, where they make a block of rows and columns and where they do not."""
    generator = torch.Generator().manual_seed(seed)
    steps, gaps, shape = [stride, 1, 2][:axes], [dilation, 2, 1][:axes], torch.Size([2 * groups, fan_in, *[size, 2, 1][:axes]])
    positions = torch.randint(1, 4, (axes,), generator=generator).tolist()
    axis = zip(positions, steps, shape[2:], gaps, strict=True)
    pixels = [count * step + (width - 1) * gap for count, step, width, gap in axis]  # strides leave some at the end
    images = torch.randn(n, fan_in * groups, *pixels, generator=generator)
    deltas = torch.randn(n, 2 * groups, *positions, generator=generator)
    form = Windows(images, deltas, steps, gaps, groups, shape)
    whole = form.gradients().flatten(1)
    layer = LayerGradients([form], shape)
    for indices in (layer.choose(6, generator), torch.randint(shape.numel(), (9,), generator=generator)):
        for of in (slice(None), slice(n - 1, n, 2)):
            torch.testing.assert_close(elements(form, indices, of), whole[of][:, indices])


def test_a_form_that_was_let_go_says_so() -> None:
    form = Dense(torch.randn(3, 4))
    condensed = Condensed(form, RankOne(torch.ones(4), torch.ones(1)), squares=False)
    with pytest.raises(TypeError, match="Condensed does not keep the gradients"):
        elements(condensed, torch.tensor([0]), slice(None))


@pytest.mark.parametrize("positions", [1, 6])
def test_every_element_is_as_likely_to_be_chosen(positions: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = LayerGradients([outer(generator, 2, 1, positions, 5, 8)], torch.Size((8, 5)))
    times = torch.zeros(40)
    for _ in range(2_000):
        indices = layer.choose(9, generator)
        assert 1 <= len(indices) <= 9
        times += torch.bincount(indices, minlength=40)
    share = times / times.sum()
    assert (share - 1 / 40).abs().max() < 0.2 / 40  # the standard error is 0.05 / 40
    assert layer.choose(40, generator).tolist() == list(range(40)), "a small parameter is taken whole"
