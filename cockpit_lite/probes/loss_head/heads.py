r"""The end of a loss: the last function that is no mean, sum or scaling, and what the objective makes of it.

Every loss that is a weighted sum of one function of the prediction is a :class:`LossHead`: with elements or rows i,

    objective(z) = sum_i w_i l(z_i),

where the weights hold reduction, class weights, masks, a loss scale, and everything else that is linear behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cockpit_lite.curvature.control import Controls
from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.loss_head.aligned import aligned, output_kernels
from cockpit_lite.probes.loss_head.route import Route

#: How far the contributions may be from adding up to the loss, relative to the sum of their magnitudes.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
HALF_PRECISION_TOLERANCE = 3e-2

_CLASSES = "the axis of the samples is the axis of the classes"


@dataclass(frozen=True)
class Contributions:
    """What the elements or rows of a prediction contribute to the objective, without anything of the graph.

    Attributes:
        terms: One number each.
        route: How the prediction was made of the model's output.
        summed: The axis of the prediction that the terms do not have any more, if any.
    """

    terms: Tensor
    route: Route
    summed: int | None = None

    def by_sample(self, batch_size: int, axis: int = 0) -> Tensor:
        """Return what every sample contributes to the objective, shape (N,).

        Args:
            batch_size: Number of samples N.
            axis: The axis of the model's input that holds them.

        Raises:
            NotMeasured: if it is not known which rows are whose.
        """
        terms = self.terms
        owners = self.route.owners(batch_size, axis, terms.device)
        if isinstance(owners, int):  # nothing was moved on the way: their axis
            if owners == self.summed:
                raise NotMeasured(_CLASSES)
            terms = terms.movedim(owners - (self.summed is not None and owners > self.summed), 0)
            return terms.flatten(1).sum(1) if terms.dim() > 1 else terms
        if self.summed is not None:
            first = owners.select(self.summed, 0)
            if not bool((owners == first.unsqueeze(self.summed)).all()):
                raise NotMeasured(_CLASSES)
            owners = first
        return terms.new_zeros(batch_size).index_add_(0, owners.reshape(-1), terms.reshape(-1))


class LossHead:
    """The loss as a function of the prediction.

    Attributes:
        kind: Name of the function: ``"cross_entropy"``, ``"nll"``, ``"kl_div"``, ``"mse"``, ``"l1"``, ``"smooth_l1"``,
            ``"huber"``, ``"binary_cross_entropy"``, ``"binary_cross_entropy_with_logits"``, ``"soft_margin"``, ``"linear"``,
            or the operation.
        prediction: What the function was given, up to constants that make no difference to it. Detached.
        route: How the prediction was made of the model's output.
    """

    kind: str
    prediction: Tensor
    route: Route

    @property
    def position(self) -> int:
        """Which of the model's outputs the prediction was made of.

        Raises:
            NotMeasured: if it was not made of one by reshaping, casting, scaling and shifting.
        """
        if self.route.position is None:
            raise NotMeasured("what the loss function was given is not one of the model's outputs")
        return self.route.position

    def from_output(self, output: Tensor) -> Tensor:
        """Return the prediction that another output of the model, of the same shape, would have been; differentiable.

        Raises:
            NotMeasured: see :attr:`position`.
        """
        return self.route.again(output, self.prediction)

    def terms(self, prediction: Tensor | None = None) -> Tensor:
        """Return what every element of the prediction (every row of logits, for a cross entropy) contributes to the objective.

        Args:
            prediction: Instead of the one that was seen; the targets and weights stay the same. Differentiable.
        """
        raise NotImplementedError

    def losses(self, prediction: Tensor | None = None) -> Tensor:
        """Return what every row of the prediction contributes to the objective: the terms added up to the first axis."""
        terms = self.terms(prediction)
        return terms.flatten(1).sum(1) if terms.dim() > 1 else terms.reshape(-1)

    def loss(self, prediction: Tensor) -> Tensor:
        """Return the objective, a scalar, at another prediction; differentiable."""
        return self.terms(prediction).sum()

    def contributions(self) -> Contributions:
        """Return the terms, and what it takes to give them to the samples."""
        return Contributions(self.terms(), self.route.without_output())

    def losses_by_sample(self, batch_size: int, axis: int = 0) -> Tensor:
        """Return what every sample contributes to the objective; see :meth:`Contributions.by_sample`."""
        return self.contributions().by_sample(batch_size, axis)

    def sample_labels(self, generator: torch.Generator | None = None) -> Tensor:
        """Return labels drawn from the distribution that the prediction stands for.

        Raises:
            NotMeasured: if it stands for none.
        """
        raise NotMeasured(f"the loss ({self.kind}) is not the negative logarithm of a probability that labels can be drawn from")

    def sampled_gradient(self, generator: torch.Generator | None = None) -> Tensor:
        """Return u with the shape of the prediction, mean 0 and covariance L'', the Hessian of the objective by the prediction.

        It is the gradient that labels drawn from the model's own distribution would send back, scaled (a mean over N rows
        divides every row's gradient by N, but its Hessian only by N). Where the loss stands for no distribution, the root of the
        second derivative with random signs. NaN where the loss is not convex in the prediction, which has no root then.

        Raises:
            NotMeasured: if the second derivative is not known.
        """
        raise NotMeasured(f"the second derivative of the loss ({self.kind}) is not known")

    def random_root(self, generator: torch.Generator | None = None) -> Tensor:
        """Return u with mean 0 and covariance L'' like :meth:`sampled_gradient`, but from random signs instead of labels.

        What labels draw by chance is taken with its probability here, so that ``‖J'u‖²`` is spread less: of a binary loss every
        sample's part of it is exact. Where the last layer tells something of the network behind it, the signs are turned by
        that, see :mod:`~cockpit_lite.probes.loss_head.aligned`.

        Raises:
            NotMeasured: if the second derivative is not known.
        """
        return self.sampled_gradient(generator)

    def controls(self, root: Tensor, batch_size: int, axis: int = 0) -> Controls | None:
        """Return what is known of a random root where samples have several predictions; None: nothing.

        Args:
            root: What :meth:`random_root` returned.
            batch_size: Number of samples.
            axis: The axis of the model's input that holds them.

        Raises:
            NotMeasured: if it is not known which predictions are whose.
        """
        return None


class Elementwise(LossHead):
    """One function of every element.

    Args:
        kind: Its name.
        prediction: What it was given.
        route: How that was made of the model's output.
        weights: What the objective multiplies every element of it with; any shape that broadcasts to the prediction's.
        function: The function of a prediction, without reduction.
    """

    def __init__(self, kind: str, prediction: Tensor, route: Route, weights: Tensor, function: Callable[[Tensor], Tensor]):
        self.kind, self.prediction, self.route = kind, prediction, route
        self._weights = weights
        self._function = function

    def terms(self, prediction: Tensor | None = None) -> Tensor:
        """See :meth:`LossHead.terms`."""
        return self._weights * self._function(self.prediction if prediction is None else prediction)

    def sampled_gradient(self, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`LossHead.sampled_gradient`."""
        return _signs(self.prediction, generator) * self._second_derivative().sqrt()

    def random_root(self, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`LossHead.random_root`."""
        signs, root = _signs(self.prediction, generator), self._second_derivative().sqrt()
        kernels = output_kernels(self.route.start) if root.dim() == 2 else None
        return signs * root if kernels is None else aligned(torch.diag_embed(root), kernels, signs)

    def _second_derivative(self) -> Tensor:
        with torch.enable_grad():
            point = self.prediction.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.loss(point), point, create_graph=True)
            if not slope.requires_grad:
                return torch.zeros_like(point)
            (second,) = torch.autograd.grad(slope.sum(), point, materialize_grads=True)
        return second.detach()


class SquaredError(Elementwise):
    """The squared error: the prediction is the mean of a normal distribution of variance 1/2."""

    def __init__(self, prediction: Tensor, route: Route, weights: Tensor, target: Tensor | float):
        super().__init__("mse", prediction, route, weights, lambda value: (value - target).square())

    def sample_labels(self, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`LossHead.sample_labels`."""
        noise = torch.empty_like(self.prediction).normal_(generator=generator)
        return self.prediction + noise * 0.5**0.5

    def sampled_gradient(self, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`LossHead.sampled_gradient`."""
        return 2 * (self.prediction - self.sample_labels(generator)) * self._weights.sqrt()


class BinaryCrossEntropyWithLogits(Elementwise):
    """The binary cross entropy of logits: every one stands for a coin.

    Args:
        prediction: The logits.
        route: How they were made of the model's output.
        weights: What the objective multiplies every element of the loss with.
        target: Between 0 and 1.
        weight: As the loss function takes it.
        pos_weight: As the loss function takes it.
    """

    def __init__(
        self, prediction: Tensor, route: Route, weights: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None
    ):
        def function(logits: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none", pos_weight=pos_weight)

        super().__init__("binary_cross_entropy_with_logits", prediction, route, weights, function)
        self._scale = weights if weight is None else weights * weight
        if pos_weight is not None:
            self._scale = self._scale * (1 + (pos_weight - 1) * target)

    def sample_labels(self, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`LossHead.sample_labels`."""
        return torch.bernoulli(self.prediction.sigmoid(), generator=generator)

    def sampled_gradient(self, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`LossHead.sampled_gradient`."""
        return (self.prediction.sigmoid() - self.sample_labels(generator)) * self._scale.sqrt()


class CrossEntropy(LossHead):
    """Any weighted sum of log-probabilities: cross entropy, with class weights, ignored rows, smoothed or uncertain labels.

    Args:
        prediction: The logits, or the log-probabilities they become; of a ``"nll"`` the log-probabilities.
        route: How the prediction was made of the model's output.
        axis: The axis of the classes.
        normalised: The log-probabilities at the prediction.
        labels: Class by row.
        ignored: Rows that do not count.
        label_weights: What the objective multiplies -log p of the label with, by row.
        dense: What the objective multiplies all log-probabilities with, beside that.
        logits: Whether the prediction is made into log-probabilities by a softmax; else it is taken as it is.
        divergence: Whether the entropy of the targets is taken off.
    """

    def __init__(
        self,
        prediction: Tensor,
        route: Route,
        axis: int,
        normalised: Tensor,
        labels: Tensor | None,
        ignored: Tensor | None,
        label_weights: Tensor | None,
        dense: Tensor | None,
        logits: bool = True,
        divergence: bool = False,
    ):
        self.kind = "kl_div" if divergence else "cross_entropy" if logits else "nll"
        self.prediction, self.route = prediction, route
        self._axis = axis % prediction.dim()
        self._normalised = normalised
        self._labels, self._ignored, self._label_weights, self._dense = labels, ignored, label_weights, dense
        self._logits = logits
        self._constant = self._entropy() if divergence else None

    def terms(self, prediction: Tensor | None = None) -> Tensor:
        """See :meth:`LossHead.terms`."""
        if prediction is None:
            log_probabilities = self._normalised
        else:
            log_probabilities = prediction.log_softmax(self._axis) if self._logits else prediction
        terms: Tensor | None = self._constant
        if self._labels is not None and self._label_weights is not None:
            chosen = log_probabilities.gather(self._axis, self._labels.unsqueeze(self._axis)).squeeze(self._axis)
            part = -self._label_weights * chosen
            if self._ignored is not None:  # whatever it holds
                part = part.masked_fill(self._ignored, 0)
            terms = part if terms is None else terms + part
        if self._dense is not None:
            part = torch.where(self._dense == 0, 0, self._dense * log_probabilities).sum(self._axis)
            terms = part if terms is None else terms + part
        assert terms is not None
        return terms

    def row_weights(self) -> Tensor:
        """Return what the objective multiplies the cross entropy of every row with: the target's probabilities add up to one."""
        weights = torch.zeros_like(self._normalised.select(self._axis, 0))
        if self._label_weights is not None:
            weights = weights + self._label_weights
        return weights if self._dense is None else weights - self._dense.sum(self._axis)

    def _entropy(self) -> Tensor:
        """Return the entropy of the targets by row, weighted and negative."""
        assert self._dense is not None
        weights = self.row_weights()
        shares = -self._dense / weights.unsqueeze(self._axis)
        return weights * torch.special.xlogy(shares, shares).sum(self._axis)

    def sample_labels(self, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`LossHead.sample_labels`."""
        probabilities = self._normalised.exp().movedim(self._axis, -1)
        rows = probabilities.reshape(-1, probabilities.shape[-1])
        return torch.multinomial(rows, 1, generator=generator).reshape(probabilities.shape[:-1])

    def sampled_gradient(self, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`LossHead.sampled_gradient`.

        Of log-probabilities the Hessian is zero, and what counts is that of the softmax before them: there u is the gradient that
        the drawn labels send back to the log-probabilities, with second moments diag(w p), and J'u has the covariance that it
        would have from the logits on.
        """
        labels = self.sample_labels(generator).unsqueeze(self._axis)
        root = self.row_weights().sqrt().unsqueeze(self._axis)
        gradient = self._normalised.exp() if self._logits else torch.zeros_like(self._normalised)
        return root * gradient.scatter_add(self._axis, labels, -torch.ones_like(gradient))

    def random_root(self, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`LossHead.random_root`: the columns of a root of diag(p) - pp', each with a random sign.

        If not aligned, it is a Cholesky factor with the likeliest class as the first. Where only one other counts, one column is
        everything, and its sign makes no difference to what is squared; columns of the rest hardly overlap. Of log-probabilities
        see :meth:`sampled_gradient`.
        """
        probabilities = self._normalised.exp()
        signs = _signs(probabilities, generator)
        rows = self._logits and probabilities.dim() == 2 and self._axis == 1
        kernels = output_kernels(self.route.start) if rows else None
        if kernels is not None:  # diag(r)(I - rr') times its transpose is diag(p) - pp', too, with the roots r of p
            roots = probabilities.sqrt()
            drawn = aligned(torch.diag_embed(roots) - probabilities[:, :, None] * roots[:, None], kernels, signs)
        else:
            drawn = _cholesky_times(probabilities, signs, self._axis) if self._logits else -signs * probabilities.sqrt()
        return self.row_weights().sqrt().unsqueeze(self._axis) * drawn

    def controls(self, root: Tensor, batch_size: int, axis: int = 0) -> Controls | None:
        """See :meth:`LossHead.controls`."""
        if not self._logits or self.row_weights().numel() <= batch_size:
            return None
        owners = self.route.owners(batch_size, axis, root.device)
        known: Tensor | bool = True
        if isinstance(owners, int):  # nothing was moved on the way: their axis
            if owners == self._axis:
                raise NotMeasured(_CLASSES)
            shape = [batch_size if place == owners else 1 for place in range(root.dim())]
            rows = torch.arange(batch_size, device=root.device).view(shape).expand(root.shape).select(self._axis, 0).reshape(-1)
        else:
            rows = owners.select(self._axis, 0)
            known = (owners == rows.unsqueeze(self._axis)).all()  # else the numbers say nothing: nobody has to wait for this
            rows = rows.reshape(-1)
        numbers = root.movedim(self._axis, -1).reshape(len(rows), -1)
        traces = self.row_weights().reshape(-1) * (1 - self._normalised.exp().square().sum(self._axis).reshape(-1))
        sums = numbers.new_zeros(batch_size, numbers.shape[1]).index_add_(0, rows, numbers)
        each = numbers.new_zeros(batch_size, 2).index_add_(0, rows, torch.stack([numbers.square().sum(1), traces], 1))
        expected = each[:, 1:].expand(-1, 2)
        values = torch.stack([each[:, 0], sums.square().sum(1)], 1)
        return Controls(torch.where(torch.as_tensor(known, device=values.device), values, expected), expected)

    def contributions(self) -> Contributions:
        """See :meth:`LossHead.contributions`."""
        return Contributions(self.terms(), self.route.without_output(), self._axis)


def _signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.empty_like(like).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def _cholesky_times(probabilities: Tensor, vectors: Tensor, axis: int) -> Tensor:
    """Return L v for LL' = diag(p) - pp', the covariance of a class drawn from p, with the likeliest class as the first.

    Column j of L is ``sqrt(p_j q_j / s_j)`` at j and ``-p_i sqrt(p_j / (q_j s_j))`` at the classes i behind it, where q_j adds up
    the probabilities behind j, and s_j these and its own.

    Reference: K. Tanabe and M. Sagae, "An exact Cholesky decomposition [...] of the variance-covariance matrix of the multinomial
    distribution" (1992).
    """
    largest, first = probabilities.max(axis, keepdim=True)
    rest = probabilities.scatter(axis, first, 0)
    sums = rest.flip(axis).cumsum(axis).flip(axis)
    behind = torch.cat([sums.narrow(axis, 1, sums.shape[axis] - 1), torch.zeros_like(largest)], axis)
    nothing = torch.finfo(sums.dtype).tiny
    shares = (rest / sums.clamp_min(nothing)).sqrt()
    own = vectors * shares * behind.sqrt()
    # Where nothing is behind a class, its column is zero.
    sent = torch.where(behind > nothing, vectors * shares / behind.clamp_min(nothing).sqrt(), 0)
    in_front = vectors.gather(axis, first) * (largest / sums.narrow(axis, 0, 1).clamp_min(nothing)).sqrt()
    others = rest * (sent.cumsum(axis) - sent + in_front)
    return (own - others).scatter(axis, first, others.sum(axis, keepdim=True) - own.sum(axis, keepdim=True))


class Value(LossHead):
    """A function of which only the value is known: enough to share the loss out to the samples.

    Args:
        kind: Its name.
        value: What came out of it.
        route: How the value was made of a model's output: from the input of the function on, if it acts on each element.
        weights: What the objective multiplies the value with.
    """

    def __init__(self, kind: str, value: Tensor, route: Route, weights: Tensor):
        self.kind, self.prediction, self.route = kind, value, route
        self._weights = weights

    @property
    def position(self) -> int:
        """See :attr:`LossHead.position`."""
        raise self.unknown()

    def from_output(self, output: Tensor) -> Tensor:
        """See :meth:`LossHead.from_output`."""
        raise self.unknown()

    def terms(self, prediction: Tensor | None = None) -> Tensor:
        """See :meth:`LossHead.terms`."""
        if prediction is not None:
            raise self.unknown()
        return self._weights * self.prediction

    def unknown(self) -> NotMeasured:
        """Return the reason why it is not known as a function."""
        return NotMeasured(f"the loss ends in {self.kind}, which is not known as a function of the prediction")
