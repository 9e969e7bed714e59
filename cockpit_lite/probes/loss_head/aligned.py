r"""Random roots of the loss's second derivative, turned so that what is drawn hardly depends on the signs.

A sample's draw u = R s, with random signs s and RR' = L'', gives ‖J'u‖² = s'(R'KR)s with the kernel K = JJ' of its outputs. The
mean is trace L''K whatever root R is, and all of the spread comes from R'KR beside its diagonal. Roots differ by a rotation,
R = F V; so V is chosen for R'K^R to be diagonal, as far as K is known: of the layers behind the last one a sample shows which of
their units pass something on, so with the last layer's weights W and inputs h ::

    K^ = W diag(h != 0) W'

K^ knows nothing of the signs, so the estimate is unbiased however far it is from K. After some training most of the spread comes
from a few samples with several likely classes, and this takes out much of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.loss_head.nodes import Edge, inputs_of, is_parameter, saved, shape_of
from cockpit_lite.probes.loss_head.route import KEEPS, MOVES

#: Fewer outputs of a sample have one direction only, and for more of them, or for larger matrices in all, it costs too much.
FEWEST_OUTPUTS, MOST_OUTPUTS, MOST_ELEMENTS = 2, 128, 2**23

#: It is done where the operations of the network put out so many times as many numbers as its outputs hold: for less it would
#: cost as much as they do.
SMALLEST_NETWORK = 100

#: So often the matrices are squared: directions whose shares differ by little need not be told apart.
_SQUARINGS = 2

#: Where a node of a linear layer keeps its inputs and its weights.
_LINEAR = {"AddmmBackward0": ("mat1", "mat2"), "MmBackward0": ("self", "mat2")}


def output_kernels(edge: Edge) -> Tensor | None:
    """Return K^ for every sample, shape (N, C, C).

    Args:
        edge: Where the outputs come from; None is returned where that is no linear layer with a large enough network behind it.
    """
    while edge[0].name() in KEEPS and (before := inputs_of(edge[0])[0]) is not None:
        edge = before
    node, _ = edge
    names = _LINEAR.get(node.name())
    if names is None:
        return None
    try:
        inputs, weight = (saved(node, name) for name in names)
    except NotMeasured:
        return None
    if type(inputs) is not Tensor or type(weight) is not Tensor or weight.device.type not in ("cpu", "cuda"):
        return None
    width, count = weight.shape
    if not FEWEST_OUTPUTS <= count <= MOST_OUTPUTS or max(width, len(inputs)) * count**2 > MOST_ELEMENTS:
        return None
    if not _puts_out(edge, SMALLEST_NETWORK * len(inputs) * count):
        return None
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    pairs = (weight[:, :, None] * weight[:, None]).flatten(1)
    return ((inputs != 0).to(weight) @ pairs).unflatten(1, (count, count))


def _puts_out(edge: Edge, numbers: int) -> bool:
    """Whether the operations from the edge on down put out so many numbers in all; looks no further than it must."""
    pending, seen = [edge], {edge}
    while pending and numbers > 0:
        edge = pending.pop()
        if edge[0].name() not in MOVES:  # of a weight, most often
            numbers -= shape_of(edge).numel()
        following = {source for source in inputs_of(edge[0]) if source is not None and not is_parameter(source)} - seen
        seen |= following
        pending.extend(following)
    return numbers <= 0


def aligned(factors: Tensor, kernels: Tensor, signs: Tensor) -> Tensor:
    """Return R s for the roots R = F V with orthogonal V that make R'KR nearly diagonal.

    Args:
        factors: F, any roots, shape (N, C, C).
        kernels: K, likewise.
        signs: s, shape (N, C).
    """
    factors = factors.to(kernels)
    rotations = _rotations(factors.mT @ kernels @ factors)
    return (factors @ (rotations @ signs.to(kernels)[:, :, None]))[:, :, 0].to(signs)


def _rotations(matrices: Tensor) -> Tensor:
    """Return orthogonal matrices whose columns are near the eigenvectors, the largest first.

    The columns of a high power are, which are made orthogonal; for ``eigh`` the host would have to wait on an accelerator.
    """
    shares = matrices.diagonal(dim1=-2, dim2=-1)
    order = shares.argsort(-1, descending=True)
    powers = matrices / shares.sum(-1)[:, None, None].clamp_min(torch.finfo(matrices.dtype).tiny)
    for _ in range(_SQUARINGS):
        powers = powers @ powers
    return torch.linalg.qr(powers.gather(2, order[:, None].expand_as(powers))).Q
