r"""First and second derivatives along a direction, in one forward pass.

With weights ``theta + t v``, every tensor x of a forward pass is a function of t. Beside x go its moves: the derivatives x' and
x'' at t = 0. Each operation has a rule that makes the moves of its result of those of its inputs, as ``(W x)'' = W x'' + 2 V x'``
for a weight W that moves along V. At the end stand the moves of the outputs, so ``d'Hd`` takes no graph and no backward pass:
at most five products for each of the forward pass, and the memory of one layer.

PyTorch's own forward mode cannot be nested for this: version 2.15 leaves parts of the second derivative out in silence (layer and
batch normalisation), and it takes longer. Here an operation without a rule raises :class:`NoForwardMode`: nothing is left out.
"""

from cockpit_lite.curvature.taylor import (  # noqa: F401  # each adds its rules to the table
    constants,
    elementwise,
    linear,
    normalisations,
    pooling,
    products,
    softmax,
)
from cockpit_lite.curvature.taylor.mode import TaylorMode
from cockpit_lite.curvature.taylor.moves import Moves, NoForwardMode, Taken, moves_of, with_moves
from cockpit_lite.curvature.taylor.recurrent import sequence

__all__ = ["Moves", "NoForwardMode", "Taken", "TaylorMode", "moves_of", "sequence", "with_moves"]
