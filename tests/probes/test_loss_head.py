"""The head of a loss against the loss itself: its value, its derivatives by the prediction, and its parts by sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.loss_head import LossHead, find_loss_head, find_loss_heads

N, T, K = 4, 3, 5


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shares(*shape: int) -> Tensor:
    return random(*shape).softmax(-1)


def labels(*shape: int, classes: int = K) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(2))


def ignoring(values: Tensor, index: int = -100) -> Tensor:
    return values.masked_fill(torch.arange(values.numel()).reshape(values.shape) % 3 == 0, index)


@dataclass(frozen=True)
class Case:
    """A loss of one output.

    Attributes:
        loss: Makes it of the output.
        kind: What it is to be recognised as.
        shape: Of the output, the samples on its first axis.
        by_sample: Makes the part of sample n of the output, if that is not the loss's part that the n-th row of it adds.
    """

    loss: Callable[[Tensor], Tensor]
    kind: str
    shape: tuple[int, ...] = (N, K)
    probabilities: bool = False


WEIGHT = shares(K) * K
CASES = {
    "cross entropy": Case(lambda y: F.cross_entropy(y, labels(N)), "cross_entropy"),
    "sum": Case(lambda y: F.cross_entropy(y, labels(N), reduction="sum"), "cross_entropy"),
    "none": Case(lambda y: (F.cross_entropy(y, labels(N), reduction="none") * shares(N)).sum() / 3, "cross_entropy"),
    "class weights": Case(lambda y: F.cross_entropy(y, labels(N), weight=WEIGHT), "cross_entropy"),
    "ignored": Case(lambda y: F.cross_entropy(y, ignoring(labels(N))), "cross_entropy"),
    "ignored and weighted": Case(lambda y: F.cross_entropy(y, ignoring(labels(N), 1), WEIGHT, ignore_index=1), "cross_entropy"),
    "smoothed": Case(lambda y: F.cross_entropy(y, labels(N), label_smoothing=0.2), "cross_entropy"),
    "smoothed, weighted, ignored": Case(
        lambda y: F.cross_entropy(y, ignoring(labels(N)), weight=WEIGHT, label_smoothing=0.2), "cross_entropy"
    ),
    "probabilities": Case(lambda y: F.cross_entropy(y, shares(N, K)), "cross_entropy"),
    "probabilities, smoothed and weighted": Case(
        lambda y: F.cross_entropy(y, shares(N, K), WEIGHT, label_smoothing=0.1), "cross_entropy"
    ),
    "log_softmax and nll_loss": Case(lambda y: F.nll_loss(y.log_softmax(-1), labels(N), weight=WEIGHT), "cross_entropy"),
    "indexed": Case(lambda y: -y.log_softmax(1)[torch.arange(N), labels(N)].mean(), "cross_entropy"),
    "gathered": Case(lambda y: -y.log_softmax(1).gather(1, labels(N)[:, None]).squeeze(1).mean(), "cross_entropy"),
    "positions flattened": Case(
        lambda y: F.cross_entropy(y.view(-1, K), ignoring(labels(N, T)).view(-1)), "cross_entropy", (N, T, K)
    ),
    "positions shifted": Case(
        lambda y: F.cross_entropy(y[:, :-1].reshape(-1, K), labels(N, T)[:, 1:].flatten()), "cross_entropy", (N, T, K)
    ),
    "positions last": Case(lambda y: F.cross_entropy(y.transpose(1, 2), labels(N, T)), "cross_entropy", (N, T, K)),
    "positions before samples": Case(
        lambda y: F.cross_entropy(y.transpose(0, 1).flatten(0, 1), labels(T, N).flatten()), "cross_entropy", (N, T, K)
    ),
    "images": Case(lambda y: F.cross_entropy(y, ignoring(labels(N, 2, 2))), "cross_entropy", (N, K, 2, 2)),
    "volumes": Case(lambda y: F.cross_entropy(y, labels(N, 2, 1, 2)), "cross_entropy", (N, K, 2, 1, 2)),
    "images, smoothed": Case(
        lambda y: F.cross_entropy(y, labels(N, 2, 2), WEIGHT, label_smoothing=0.2), "cross_entropy", (N, K, 2, 2)
    ),
    "temperature": Case(lambda y: F.cross_entropy(y / 0.7 + random(K), labels(N)), "cross_entropy"),
    "last position": Case(lambda y: F.cross_entropy(y[:, -1], labels(N)), "cross_entropy", (N, T, K)),
    "chunked": Case(lambda y: F.cross_entropy(y.chunk(3, 1)[1].squeeze(1), labels(N)), "cross_entropy", (N, T, K)),
    "unbound": Case(lambda y: F.cross_entropy(y.unbind(1)[2], labels(N)), "cross_entropy", (N, T, K)),
    "masked": Case(lambda y: F.cross_entropy(y[labels(N, T) > 1], labels(N, T)[labels(N, T) > 1]), "cross_entropy", (N, T, K)),
    "divergence": Case(lambda y: F.kl_div(y.log_softmax(1), shares(N, K), reduction="batchmean"), "kl_div"),
    "divergence of logarithms": Case(
        lambda y: F.kl_div(y.log_softmax(1), shares(N, K).log(), reduction="sum", log_target=True), "kl_div"
    ),
    "mse": Case(lambda y: F.mse_loss(y, random(N, K)), "mse"),
    "mse, turned round": Case(lambda y: F.mse_loss(random(N, K), y, reduction="sum"), "mse"),
    "mse by sample": Case(lambda y: F.mse_loss(y, random(N, K), reduction="none").sum(1).mean(), "mse"),
    "mse, weighted": Case(lambda y: F.mse_loss(y, random(N, K), weight=shares(N, K)), "mse"),
    "mse of vectors": Case(lambda y: F.mse_loss(y.squeeze(-1), random(N)), "mse", (N, 1)),
    "mse of images": Case(lambda y: 0.5 * F.mse_loss(y, random(N, 1, 2, 2)), "mse", (N, 1, 2, 2)),
    "mean of squares": Case(lambda y: ((y - random(N, K)) ** 2).mean(), "mse"),
    "sum of squares": Case(lambda y: 0.5 * (random(N, K) - y).square().sum(1).mean(), "mse"),
    "squares of a broadcast": Case(lambda y: (y - random(1, K)).square().mean(), "mse", (N, 1)),
    "l1": Case(lambda y: F.l1_loss(y, random(N, K)), "l1"),
    "smooth l1": Case(lambda y: F.smooth_l1_loss(y, random(N, K), beta=0.5), "smooth_l1"),
    "huber": Case(lambda y: F.huber_loss(y, random(N, K), delta=0.7, reduction="sum"), "huber"),
    "power": Case(lambda y: (y - random(N, K)).pow(4).mean(), "pow(4)"),
    "soft margin": Case(lambda y: F.soft_margin_loss(y, random(N, K).sign()), "soft_margin"),
    "bce with logits": Case(lambda y: F.binary_cross_entropy_with_logits(y, shares(N, K)), "binary_cross_entropy_with_logits"),
    "bce with logits and weights": Case(
        lambda y: F.binary_cross_entropy_with_logits(y, shares(N, K), shares(N, 1), pos_weight=WEIGHT),
        "binary_cross_entropy_with_logits",
    ),
    "bce": Case(lambda y: F.binary_cross_entropy(y, shares(N, K), shares(N, K)), "binary_cross_entropy", probabilities=True),
    "linear": Case(lambda y: -y.mean(), "linear"),
    "linear, weighted": Case(lambda y: (y.squeeze(1) * shares(N)).sum() - y[:, 0].mean(), "linear", (N, 1)),
    "log-probabilities": Case(lambda y: F.nll_loss(y, labels(N)), "nll"),
    "log-probabilities, whatever they are": Case(lambda y: F.nll_loss(y, labels(N, 2), ignore_index=0), "nll", (N, K, 2)),
}
CONVEX = [name for name, case in CASES.items() if case.kind not in ("nll", "binary_cross_entropy")]


def output(case: Case, dtype: torch.dtype = torch.float64) -> Tensor:
    values = random(*case.shape, seed=3).to(dtype)
    leaf = (values.sigmoid() if case.probabilities else values).requires_grad_()
    return leaf.clone()  # as a model does: an output is no leaf


def head_of(case: Case) -> tuple[LossHead, Tensor, Tensor]:
    y = output(case)
    loss = case.loss(y)
    return find_loss_head(loss, [y]), y, loss


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_kind_and_value(case: Case) -> None:
    head, _, loss = head_of(case)
    assert head.kind == case.kind
    assert head.losses().shape == (len(head.prediction),)
    torch.testing.assert_close(head.losses().sum(), loss.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(head.terms(head.prediction), head.terms(), rtol=1e-9, atol=1e-12)


def test_as_a_function_of_the_output(case: Case) -> None:
    """At another output: value, gradient and Hessian are those of the loss itself."""
    head, y, _ = head_of(case)
    assert head.position == 0
    other = y.detach() * 0.8 + 0.05 if case.probabilities else y.detach() + random(*case.shape, seed=4)

    def again(values: Tensor) -> Tensor:
        return head.loss(head.from_output(values))

    torch.testing.assert_close(again(other), case.loss(other), rtol=1e-10, atol=1e-12)
    for derivative in (torch.autograd.functional.jacobian, torch.autograd.functional.hessian):
        torch.testing.assert_close(derivative(again, other), derivative(case.loss, other), rtol=1e-9, atol=1e-11)


def test_by_sample(case: Case) -> None:
    """A sample's part is what the loss loses when its rows' terms are left out: the rest does not depend on its output."""
    head, y, loss = head_of(case)
    found = head.losses_by_sample(N)
    assert found.shape == (N,)
    torch.testing.assert_close(found.sum(), loss.detach(), rtol=1e-12, atol=1e-13)
    changed = y.detach() * 0.5 + 0.1
    for n in range(N):
        other = y.detach().clone()
        other[n] = changed[n]
        y_again = other.clone().requires_grad_().clone()
        differences = find_loss_head(case.loss(y_again), [y_again]).losses_by_sample(N) - found
        expected = torch.zeros(N, dtype=torch.float64)
        expected[n] = case.loss(other) - loss.detach()
        torch.testing.assert_close(differences, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CONVEX)
def test_sampled_gradients_have_the_hessian_as_covariance(name: str) -> None:
    head, _, _ = head_of(CASES[name])
    point = head.prediction
    size = point.numel()
    hessian = torch.autograd.functional.hessian(head.loss, point).reshape(size, size)
    if not (torch.linalg.eigvalsh(hessian) > -1e-12).all():
        pytest.skip("not convex here")
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([head.sampled_gradient(generator).flatten() for _ in range(1000)])
    products = draws[:, :, None] * draws[:, None, :]
    for values, expected in ((products, hessian), (draws, torch.zeros(size, dtype=torch.float64))):
        spread = values.std(0).norm() / len(draws) ** 0.5
        assert (values.mean(0) - expected).norm() <= 2 * spread + 1e-12


def head_and_loss(make: Callable[[Tensor], Tensor], shape: tuple[int, ...] = (N, K)) -> LossHead:
    y = random(*shape, seed=3).requires_grad_().clone()
    return find_loss_head(make(y), [y])


def test_sampled_gradients_of_log_probabilities_are_those_of_the_logits() -> None:
    """Through the softmax of the model they have the covariance that the cross entropy of the logits has."""
    logits = random(N, K, seed=3).requires_grad_()
    log_probabilities = logits.clone().log_softmax(1)
    head = find_loss_head(F.nll_loss(log_probabilities, labels(N), WEIGHT), [log_probabilities])
    assert head.kind == "nll"
    hessian = torch.autograd.functional.hessian(lambda z: F.cross_entropy(z, labels(N), WEIGHT), logits.detach())
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(2000):
        (drawn,) = torch.autograd.grad(log_probabilities, logits, head.sampled_gradient(generator), retain_graph=True)
        draws.append(drawn.flatten())
    products = torch.stack([draw[:, None] * draw for draw in draws])
    spread = products.std(0).norm() / len(draws) ** 0.5
    assert (products.mean(0) - hessian.reshape(N * K, N * K)).norm() <= 2 * spread


def test_sampled_labels_come_from_the_prediction() -> None:
    generator = torch.Generator().manual_seed(0)
    head = head_and_loss(lambda y: F.cross_entropy(y, labels(N)))
    drawn = torch.stack([head.sample_labels(generator) for _ in range(3000)])
    assert drawn.shape == (3000, N)
    torch.testing.assert_close(F.one_hot(drawn, K).double().mean(0), head.prediction.softmax(1), atol=0.04, rtol=0)
    head = head_and_loss(lambda y: F.binary_cross_entropy_with_logits(y, shares(N, K)))
    drawn = torch.stack([head.sample_labels(generator) for _ in range(3000)])
    torch.testing.assert_close(drawn.mean(0), head.prediction.sigmoid(), atol=0.04, rtol=0)
    head = head_and_loss(lambda y: F.mse_loss(y, random(N, K)))
    drawn = torch.stack([head.sample_labels(generator) for _ in range(3000)])
    torch.testing.assert_close(drawn.mean(0), head.prediction, atol=0.06, rtol=0)
    torch.testing.assert_close(drawn.var(0), torch.full((N, K), 0.5, dtype=torch.float64), atol=0.08, rtol=0)
    with pytest.raises(NotMeasured, match="not the negative logarithm"):
        head_and_loss(lambda y: F.l1_loss(y, random(N, K))).sample_labels(generator)


def test_random_numbers_are_not_the_users() -> None:
    before = torch.get_rng_state()
    for case in CASES.values():
        head_of(case)[0].sampled_gradient(torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_time_first_outputs() -> None:
    """The samples are on the second axis of the output, and rows of positions and samples are counted by position first."""
    y = random(T, N, K, seed=3).requires_grad_().clone()
    targets = labels(T, N)
    head = find_loss_head(F.cross_entropy(y.flatten(0, 1), targets.flatten()), [y])
    expected = F.cross_entropy(y.detach().flatten(0, 1), targets.flatten(), reduction="none").view(T, N).sum(0) / (T * N)
    torch.testing.assert_close(head.losses_by_sample(N, axis=1), expected)
    last = y[-1]
    head = find_loss_head(F.cross_entropy(last, targets[-1]), [last])
    torch.testing.assert_close(head.losses_by_sample(N, axis=1).sum(), F.cross_entropy(last, targets[-1]).detach())


@pytest.mark.parametrize(("size", "axis"), [(3, 0), (7, 0), (3, 1)], ids=["fewer", "others", "second axis"])
def test_samples_that_are_not_on_the_axis(size: int, axis: int) -> None:
    head = head_and_loss(lambda y: F.cross_entropy(y, labels(N)))
    with pytest.raises(NotMeasured, match="which of the"):
        head.losses_by_sample(size, axis)


def test_square_outputs_of_time_first_models() -> None:
    """As many positions as samples: nothing tells the axes apart."""
    y = random(N, N, K, seed=3).requires_grad_().clone()
    head = find_loss_head(F.cross_entropy(y.flatten(0, 1), labels(N * N)), [y])
    with pytest.raises(NotMeasured, match="which of the"):
        head.losses_by_sample(N, axis=1)


def test_which_output() -> None:
    first, second = (random(N, K, seed=seed).requires_grad_().clone() for seed in (3, 4))
    loss = F.mse_loss(second.t(), random(K, N))
    head = find_loss_head(loss, [first, second])
    assert head.position == 1
    torch.testing.assert_close(head.from_output(first), first.t())


def test_several_terms() -> None:
    mean, log_variance = (random(N, K, seed=seed).requires_grad_().clone() for seed in (3, 4))
    targets = random(N, K)

    def parts(first: Tensor, second: Tensor) -> Tensor:
        return (0.5 * (second + (targets - first).square() / second.exp())).sum(1) / N

    loss = parts(mean, log_variance).sum()
    heads = find_loss_heads(loss, [mean, log_variance])
    found = sum(head.losses_by_sample(N) for head in heads)
    torch.testing.assert_close(found, parts(mean, log_variance).detach())
    with pytest.raises(NotMeasured, match="several terms"):
        find_loss_head(loss, [mean, log_variance])


def test_a_term_of_values_only() -> None:
    y = random(N, K, seed=3).requires_grad_().clone()
    heads = find_loss_heads((random(N, K) - y).norm(dim=1).mean(), [y])
    expected = (random(N, K) - y.detach()).norm(dim=1) / N
    torch.testing.assert_close(heads[0].losses_by_sample(N), expected)
    with pytest.raises(NotMeasured, match="linalgvectornorm"):
        find_loss_head((random(N, K) - y).norm(dim=1).mean(), [y])


def refused(make: Callable[[Tensor, nn.Linear], Tensor]) -> str:
    model = nn.Linear(3, K, dtype=torch.float64)
    y = model(random(N, 3))
    with pytest.raises(NotMeasured) as reason:
        find_loss_heads(make(y, model), [y])
    return str(reason.value)


def test_what_belongs_to_no_sample() -> None:
    targets = labels(N)
    assert "parameters themselves" in refused(lambda y, m: F.cross_entropy(y, targets) + 0.1 * m.weight.square().sum())
    assert "parameters themselves" in refused(lambda y, m: F.cross_entropy(y, targets) + 0.1 * m.weight.abs().sum())
    assert "parameters themselves" in refused(lambda y, m: F.cross_entropy(y, targets) + m.bias.sum())
    assert "model's output" in refused(lambda y, m: y.square().mean() + (m.weight @ m.weight.T).square().sum())
    assert "a constant" in refused(lambda y, m: F.mse_loss(y, random(N, K)) + m.weight.square().sum().detach())
    assert "made by the model, too" in refused(lambda y, m: F.mse_loss(y[:, 1:], y[:, :-1]))
    assert "ends in" in refused(lambda y, m: y.sin().mean())
    assert "no graph" in refused(lambda y, m: y.detach().sum())
    assert "no scalar" in refused(lambda y, m: y.sum(1))


def test_the_loss_of_a_model_that_returns_it() -> None:
    """The root is one of the outputs; the logits may be another one or not."""
    logits = random(N, T, K, seed=3).requires_grad_().clone()
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels(N * (T - 1)))
    for outputs in ([loss, logits], [loss]):
        head = find_loss_head(loss, outputs)
        torch.testing.assert_close(head.losses_by_sample(N).sum(), loss.detach())
    with pytest.raises(NotMeasured, match="not one of the model's outputs"):
        head.from_output(logits)


@pytest.mark.parametrize("divisor", [4, torch.tensor(4)])
def test_the_loss_of_a_model_that_returns_it_scaled_by_the_trainer(divisor: int | Tensor) -> None:
    """As Hugging Face models and trainers do: the sum over the number of items, and the trainer multiplies it once more."""
    output = random(N, K).requires_grad_() * 1
    returned = F.cross_entropy(output, labels(N), reduction="sum") / divisor
    head = find_loss_head(returned * 2, [returned, output])
    assert head.kind == "cross_entropy"
    torch.testing.assert_close(head.loss(output), 2 * returned)


def test_outputs_that_are_cast_after_the_loss() -> None:
    """As Accelerate does under mixed precision."""
    output = random(N, K).bfloat16().requires_grad_() * 1
    loss = F.cross_entropy(output, labels(N))
    head = find_loss_head(loss, [loss.float(), output.float()])
    torch.testing.assert_close(head.losses_by_sample(N).sum().float(), loss.detach().float(), rtol=1e-2, atol=0)


def test_half_precision() -> None:
    y = random(N, K, seed=3).float().requires_grad_().clone()
    with torch.autocast("cpu", torch.bfloat16):
        logits = y @ torch.eye(K)
        loss = F.cross_entropy(logits, labels(N))
    head = find_loss_head(loss * 1024, [logits])
    torch.testing.assert_close(head.losses_by_sample(N).sum(), loss.detach() * 1024)
    assert head.from_output(logits).dtype == head.prediction.dtype


def test_packed_tensors_are_left_alone() -> None:
    unpacked = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: unpacked.append(1) or tensor):
        y = random(N, K, seed=3).requires_grad_().clone()
        loss = F.cross_entropy(y, labels(N)) * 2
    with pytest.raises(NotMeasured, match="packed away"):
        find_loss_head(loss, [y])
    assert not unpacked
    y = random(N, K, seed=3).requires_grad_().clone()
    loss = checkpoint(lambda y: F.mse_loss(y, random(N, K)), y, use_reentrant=False)
    with pytest.raises(NotMeasured, match="packed away"):
        find_loss_head(loss, [y])


def test_overwritten_and_freed_tensors() -> None:
    targets = random(N, K)
    y = random(N, K, seed=3).requires_grad_().clone()
    loss = F.mse_loss(y, targets)
    targets.zero_()
    with pytest.raises(NotMeasured, match="changed in place"):
        find_loss_head(loss, [y])
    loss = F.mse_loss(y, targets)
    loss.backward(retain_graph=False)
    with pytest.raises(NotMeasured, match="no longer there"):
        find_loss_head(loss, [y])


def test_the_users_backward_is_the_same_after_it(case: Case) -> None:
    """No hook fires, nothing is freed, and the gradients are bit for bit the same."""
    fired = []
    leaf = random(*case.shape, seed=3)
    leaf = (leaf.sigmoid() if case.probabilities else leaf).requires_grad_()
    gradients = []
    for look in (False, True):
        y = leaf.clone()
        y.register_hook(lambda delta: fired.append(1))
        loss = case.loss(y)
        if look:
            find_loss_head(loss, [y]).losses_by_sample(N)
            assert len(fired) == 1
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    assert torch.equal(*gradients)


def test_a_loss_that_is_not_finite() -> None:
    head = head_and_loss(lambda y: F.mse_loss(y * float("inf"), random(N, K)))
    assert not head.losses_by_sample(N).isfinite().all()
