r"""The second-order view of one mini-batch loss: products with its Hessian and Gauss-Newton matrix, and what is shared of them.

Under ReLU and other piecewise linear activations the Hessian is the one of the linear piece the weights are in: the kinks
carry curvature that no derivative sees. Where the network is piecewise linear in each layer, what is left beside the
Gauss-Newton matrix are only the products between different layers. Differences of gradients, which jump there, are useless.

What several instruments can use is computed once a step: the product with the gradient, one search for eigenvalues that the
next question finds where the last one left it, and random products.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from cockpit_lite.curvature.density import Spectrum, density_beside, spectral_density
from cockpit_lite.curvature.krylov import Krylov, RitzPairs
from cockpit_lite.curvature.matrix import Kind, Matrix, flatten
from cockpit_lite.curvature.memory import CurvatureMemory
from cockpit_lite.curvature.sample import GaussNewtonSample
from cockpit_lite.curvature.second_forward import ForwardCall
from cockpit_lite.curvature.source import Source
from cockpit_lite.curvature.tail import complete
from cockpit_lite.curvature.together import Together
from cockpit_lite.curvature.trace import RandomProducts, Remainder, TraceEstimate, beside, exact_trace, random_signs, trace_from
from cockpit_lite.errors import NotMeasured

#: So many of the largest eigenvectors are remembered, as far as they fit into so many bytes.
REMEMBERED, REMEMBERED_MEMORY = 4, 2**29

# The search in the last layers: the precision of the eigenvalue, and products, which cost little there. It is for one direction:
# a second one costs a product with the whole matrix and saves none on most steps.
_TAIL_TOLERANCE, _TAIL_PRODUCTS = 0.2, 5


class Curvature:
    """Second-order view of one mini-batch loss, alive until the user's backward frees the graph.

    Nothing is computed before the first use. The user's gradients, buffers, hooks on parameters and random numbers stay
    as they are, to the bit.

    Example:
        >>> weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> curvature = Curvature((weight**3).sum(), {"weight": weight}, torch.Generator())
        >>> curvature.hessian_vector_product([torch.tensor([1.0, 1.0])])
        [tensor([ 6., 12.])]

    Attributes:
        parameters: The parameters that require a gradient, by name, each once.
        generator: Generator for random vectors, on the parameters' device; never the global one.
    """

    def __init__(
        self,
        loss: Tensor,
        parameters: Mapping[str, nn.Parameter],
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        scale: float | Tensor | None = None,
        forward: ForwardCall | None = None,
        memory: CurvatureMemory | None = None,
        sampler: Callable[[], GaussNewtonSample] | None = None,
        together: Together | None = None,
    ):
        """Look at ``loss`` just before its backward.

        Args:
            loss: The mini-batch loss with its graph.
            parameters: By name. Those the loss does not depend on count as zero, those that are frozen are left out.
            generator: For random vectors.
            model: Where backward hooks are looked for and buffers are kept safe.
            scale: What a gradient scaler multiplied the loss with, if any; divided out of gradient and products.
            forward: The call of the model that the loss comes from. With it there are Gauss-Newton products, and operations
                without a second derivative that have a twin with one (fused attention) are run a second time, see
                :class:`SecondForward`.
            memory: Eigenvectors of the last step, to begin with; takes those of this one.
            sampler: Draws a sample of the Gauss-Newton matrix; called at most once.
            together: With other processes, which hold parts of the same batch: everything is then of all of it. ``generator``
                must be the same in all, and the sampler draw other numbers in each.
        """
        self.generator = generator
        self.parameters: dict[str, nn.Parameter] = {}
        known: set[int] = set()
        for name, parameter in parameters.items():
            if parameter.requires_grad and id(parameter) not in known:
                known.add(id(parameter))
                self.parameters[name] = parameter
        self._source = Source(loss, list(self.parameters.values()), model, scale, forward, together)
        self._together = together
        self._matrix = Matrix(self._source, tuple(range(len(self.parameters))))
        self._memory = CurvatureMemory() if memory is None else memory
        self._sampler = _Once(sampler)
        self._part = ""  # names of the parameters, of a restriction
        self._sub_batches: dict[float, Curvature | str] = {}
        self._forget_results()

    def _forget_results(self) -> None:
        self._deflated: dict[float, list[tuple[Tensor, Tensor, Tensor | None]]] = {}
        self._remainders: dict[tuple[int, float | None], tuple[tuple[int, int], Remainder]] = {}
        self._gradient: dict[str, Tensor] | None = None
        self._flat_gradient: Tensor | None = None
        self._gradient_product: Tensor | None = None
        self._krylov: Krylov | None = None
        self._random: list[tuple[Tensor, Tensor]] = []
        self._remembered_at: dict[str, int] = {}
        self._previous: dict[str, Tensor | None] = {}
        self._bottom_is_known = False

    @property
    def products(self) -> int:
        """How many products with the whole Hessian were spent so far."""
        return self._source.hessian_products

    @property
    def block_products(self) -> int:
        """How many products with diagonal blocks of the Hessian were spent so far, which cost less."""
        return self._source.block_products

    @property
    def gauss_newton_products(self) -> int:
        """How many Gauss-Newton-vector products were spent so far."""
        return self._source.gauss_newton_products

    @property
    def dimension(self) -> int:
        """Number of elements of all parameters."""
        return self._matrix.dimension

    @property
    def is_open(self) -> bool:
        """Whether the gradient has been taken with a graph, so that a product costs nothing beside itself."""
        return self._source.is_open

    @property
    def is_shared(self) -> bool:
        """Whether other processes hold parts of the same batch, and all have to measure alike."""
        return self._together is not None

    @property
    def samples(self) -> tuple[int, int] | None:
        """How many samples of how many it is estimated from, or None where it is from all."""
        found = self._source.samples
        return None if found is None else (found.size, found.batch_size)

    @property
    def note(self) -> str | None:
        """What a reader of the values should know, or None."""
        return "; ".join(self._source.notes) or None

    def undisturbed(self) -> AbstractContextManager[None]:
        """Return the context in which every pass over the graph is made; entered around many of them it saves time.

        Inside, hooks on parameters rest, autocast is off, and random numbers and buffers are put back at the end.
        """
        return self._source.undisturbed()

    @property
    def gradient(self) -> dict[str, Tensor]:
        """Gradient of the loss by parameter name, detached; zeros for unused parameters.

        Raises:
            NotMeasured: if it cannot be taken beside the user's own backward.
        """
        if self._gradient is None:
            self._gradient = dict(zip(self.parameters, self._source.gradient(self._matrix.positions), strict=True))
        return self._gradient

    # Products

    def hessian_vector_product(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return the Hessian times ``vectors``, one tensor a parameter, in the order of :attr:`parameters`.

        Raises:
            NotMeasured: if an operation of the user's has no second derivative; the message names it.
        """
        return self._matrix.multiply(vectors)

    def gauss_newton_vector_product(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return the Gauss-Newton matrix J'L''J times ``vectors``, of whatever loss; arguments as for the Hessian.

        It is positive semi-definite where the loss is convex in the model's outputs, which is not asked for here.

        Raises:
            NotMeasured: if it cannot be told which outputs of the model the loss was made of, or as for the Hessian.
        """
        return self._gauss_newton.multiply(vectors)

    @property
    def _gauss_newton(self) -> Matrix:
        return Matrix(self._source, self._matrix.positions, "gauss_newton")

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return one vector of at least single precision, on the device of the first parameter."""
        return flatten(tensors)

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """Undo :meth:`flatten`: cut a vector into tensors like the parameters."""
        return self._matrix.unflatten(vector)

    def product(self, vector: Tensor) -> Tensor:
        """Return the Hessian times one long vector (see :meth:`flatten`)."""
        return self._matrix(vector)

    def gauss_newton_product(self, vector: Tensor) -> Tensor:
        """Return the Gauss-Newton matrix times one long vector."""
        return self._gauss_newton(vector)

    def flat_gradient(self) -> Tensor:
        """Return :attr:`gradient` as one long vector, the same for all who ask."""
        if self._flat_gradient is None:
            self._flat_gradient = flatten(list(self.gradient.values()))
        return self._flat_gradient

    def restricted(self, names: Iterable[str]) -> Curvature:
        """Return the view of some parameters only: the diagonal block of the matrices that belongs to them.

        It costs nothing by itself: the graph is that of the whole, and a product goes no further down than it must.

        Raises:
            NotMeasured: if none of the names is one of :attr:`parameters`.
        """
        wanted = set(names)
        if not wanted & self.parameters.keys():
            raise NotMeasured("none of these parameters is trained")
        part = copy.copy(self)
        part.parameters = {name: parameter for name, parameter in self.parameters.items() if name in wanted}
        positions = zip(self.parameters, self._matrix.positions, strict=True)
        part._matrix = Matrix(self._source, tuple(position for name, position in positions if name in wanted))
        part._part = "+".join(part.parameters)
        part._sub_batches = {}
        part._forget_results()
        return part

    def sub_batch(self, size: float | None) -> Curvature:
        """Return the view of some samples of the batch, which estimates this one; the same for all who ask for so many.

        Products cost in proportion to the samples. Linear quantities (products, traces, quadratic forms) are unbiased; the
        largest eigenvalue is too large in the mean, and the more so the fewer samples there are.

        Args:
            size: Number of samples, or their share of the batch if below 1; None: the whole batch.

        Raises:
            NotMeasured: if samples meet in the model (batch normalisation) or in the loss, or it cannot be called again.
        """
        if size is None:
            return self
        if size not in self._sub_batches:
            try:
                self._sub_batches[size] = self._of(self._source.of_samples(size, self.generator), f"{self._part}~{size}")
            except NotMeasured as reason:
                self._sub_batches[size] = str(reason)
        found = self._sub_batches[size]
        if isinstance(found, str):
            raise NotMeasured(found)
        return found

    def _of(self, source: Source, part: str) -> Curvature:
        if source is self._source:
            return self
        view = copy.copy(self)
        view._source, view._matrix, view._part = source, Matrix(source, self._matrix.positions), part
        view._sub_batches = {}
        view._forget_results()
        return view

    def sub_batch_or_all(self, size: float | None) -> tuple[Curvature, str | None]:
        """Return the view of some samples, or this one where there is none, and what a reader of its values should know."""
        try:
            part = self.sub_batch(size)
        except NotMeasured as reason:
            return self, "; ".join([*self._source.notes, f"from the whole batch: {reason}"])
        return part, part.note

    # What is shared

    @property
    def gradient_product(self) -> Tensor:
        """The Hessian times the gradient, as one long vector; one product, whoever asks."""
        if self._gradient_product is None:
            self._gradient_product = self.product(self.flat_gradient())
        return self._gradient_product

    @property
    def krylov(self) -> Krylov:
        """The search for eigenvalues of the Hessian, shared by all who ask on this step.

        It begins with the gradient, whose product :attr:`gradient_product` it has in common with others, and with the sharpest
        direction of the last layers, which is found at little cost and completed with what the last measurement knows; see
        :mod:`~cockpit_lite.curvature.tail`. A network without such layers begins with the last eigenvector instead.
        """
        if self._krylov is None:
            gradient, product = self.flat_gradient(), self.gradient_product
            last = self.previous_eigenvectors()
            starts = self._sharp_in_the_last_layers(last)
            if not starts and last is not None:
                starts = [last[0]]
            self._krylov = Krylov(self._matrix, [gradient, *starts], self.generator, known_products=[product])
        return self._krylov

    def _sharp_in_the_last_layers(self, last: Tensor | None) -> list[Tensor]:
        positions = self._source.last_layers(self._matrix.positions)
        if not positions:
            return []
        known = [*(vector / torch.linalg.vector_norm(vector) for vector in (self.flat_gradient(), self.gradient_product))]
        known.extend(() if last is None else last)
        sizes = [parameter.numel() for parameter in self._matrix.parameters]
        places = [index for index, place in enumerate(self._matrix.positions) if place in positions]
        cut = [vector.split(sizes) for vector in known]
        given = torch.stack([torch.cat([pieces[place] for place in places]) for pieces in cut])
        search = Krylov(Matrix(self._source, tuple(positions)), [given[0], *given[2:3]], self.generator)
        found = search.top(tolerance=_TAIL_TOLERANCE, max_products=_TAIL_PRODUCTS).vectors
        starts = []
        for piece, weights in zip(found, complete(found, given), strict=True):
            start = known[0] * weights[0]
            for vector, weight in zip(known[1:], weights[1:], strict=True):
                start.addcmul_(vector, weight)
            pieces = start.split(sizes)
            for place, exact in zip(places, piece.split([sizes[place] for place in places]), strict=True):
                pieces[place].copy_(exact)
            starts.append(start)
        return starts

    def top_eigenpairs(self, count: int = 1, *, tolerance: float = 1e-2, max_products: int = 12) -> RitzPairs:
        """Return the algebraically largest eigenvalues of the Hessian and remember their vectors for the next step.

        Arguments as of :meth:`Krylov.top`; the product with the gradient counts as one.
        """
        return self._remembered("top", self.krylov.top(count, tolerance=tolerance, max_products=max_products - 1))

    def bottom_eigenpairs(self, count: int = 1, *, tolerance: float = 1e-2, max_products: int = 12) -> RitzPairs:
        """Return the algebraically smallest eigenvalues, as :meth:`top_eigenpairs` does the largest."""
        known = self.previous_eigenvectors("bottom")
        if known is not None and not self._bottom_is_known:
            self._bottom_is_known = True
            self.krylov.add(known[0])
        return self._remembered("bottom", self.krylov.bottom(count, tolerance=tolerance, max_products=max_products - 1))

    def _remembered(self, end: str, pairs: RitzPairs) -> RitzPairs:
        self.previous_eigenvectors(end)  # before they are replaced
        if not all(math.isfinite(value) for value in pairs.values):
            self._memory.forget(self._part)
            return pairs
        spent, self._remembered_at[end] = self._remembered_at.get(end), self.krylov.spent
        if spent == self.krylov.spent:  # asked again: nothing new is known
            return pairs
        vectors = pairs.vectors
        if end == "top" and len(vectors) < REMEMBERED:  # what the basis knows of the next ones helps, too
            fitting = max(1, REMEMBERED_MEMORY // (vectors.shape[1] * vectors.element_size()))
            vectors = self.krylov.leading(min(REMEMBERED, fitting))
        self._memory.remember(self._part, end, self._shapes, vectors)
        return pairs

    @property
    def _shapes(self) -> list[torch.Size]:
        return [parameter.shape for parameter in self.parameters.values()]

    def previous_eigenvectors(self, end: str = "top") -> Tensor | None:
        """Return the eigenvectors of the last measurement as rows, or None; ``end`` is "top" or "bottom"."""
        if end not in self._previous:
            self._previous[end] = self._memory.recall(self._part, end, self._shapes, self.flat_gradient())
        return self._previous[end]

    def sub_batch_error(self, vector: Tensor) -> Tensor | None:
        """Return the standard error that taking a sub-batch brings into ``v'Hv``; None where there is none, or it is not known.

        It is that of the Gauss-Newton part, of which the samples' shares are known for nothing more than a product's first half.
        """
        if self._source.samples is None:
            return None
        try:
            return self._source.spread(self.unflatten(vector), self._matrix.positions).sqrt()
        except NotMeasured:
            return None

    def random_products(self, count: int, sub_batch: float | None = None) -> RandomProducts:
        """Return ``count`` random sign vectors and their products with the Hessian, the same for all who ask on this step.

        From a sub-batch comes only what the search for eigenvalues does not know yet: the outliers of the spectrum, of which a
        sub-batch knows least, are those of the whole batch. Where there is no sub-batch, all is of the whole batch.

        Args:
            count: How many.
            sub_batch: Estimate the products from so many samples, see :meth:`sub_batch`.
        """
        part, _ = self.sub_batch_or_all(sub_batch)
        like = self.flat_gradient()
        if part is self or sub_batch is None:
            while len(self._random) < count:
                vector = random_signs(like, self.generator)
                self._random.append((vector, self.product(vector)))
            chosen = self._random[:count]
            return RandomProducts(_rows([vector for vector, _ in chosen]), _rows([image for _, image in chosen]))
        drawn = self._deflated.setdefault(sub_batch, [])
        while len(drawn) < count:
            drawn.append(self._deflated_product(part))
        signs, products, variances = zip(*drawn[:count], strict=True)
        known = [variance for variance in variances if variance is not None]
        return RandomProducts(_rows(signs), _rows(products), torch.stack(known) if known else None)

    def _deflated_product(self, part: Curvature) -> tuple[Tensor, Tensor, Tensor | None]:
        signs = random_signs(self.flat_gradient(), self.generator)
        basis, products = self.known_subspace()
        inside = basis @ signs
        outside = torch.addmv(signs, basis.T, inside, alpha=-1)
        images, variance = part._source.product_and_spread(part.unflatten(outside), part._matrix.positions)
        return signs, flatten(images).addmv_(products.T, inside), variance

    def known_subspace(self) -> tuple[Tensor, Tensor]:
        """Return what the search for eigenvalues knows by now: orthonormal rows, and their products."""
        if self._krylov is None:
            nothing = self.flat_gradient().new_empty(0, self.dimension)
            return nothing, nothing
        return self._krylov.basis, self._krylov.basis_products

    def random_remainder(self, count: int, sub_batch: float | None = None) -> Remainder:
        """Return what :meth:`random_products` say beside what the search for eigenvalues knows by now.

        It is made again only when the search has gone on. Arguments as of :meth:`random_products`.
        """
        samples = self.random_products(count, sub_batch)
        basis, products = self.known_subspace()
        state = len(basis), 0 if self._krylov is None else self._krylov.spent
        found = self._remainders.get((count, sub_batch))
        if found is None or found[0] != state:
            self._remainders.pop((count, sub_batch), None)  # before the new one is made, as large
            found = self._remainders[count, sub_batch] = state, beside(samples, basis, products)
        return found[1]

    def trace(self, samples: int, sub_batch: float | None = None) -> TraceEstimate:
        """Return the trace of the Hessian, from ``samples`` random products and what the search for eigenvalues has found.

        It is exact where the model has no more elements than that.

        Args:
            samples: Random vectors.
            sub_batch: As of :meth:`random_products`.
        """
        if self.dimension <= samples:
            return TraceEstimate(exact_trace(self.product, self.flat_gradient()), None)
        known = () if self._krylov is None else self._krylov.ritz_values
        return trace_from(self.random_remainder(samples, sub_batch), sum(known))

    def spectral_density(self, steps: int = 10, probes: int = 1, kind: Kind = "hessian") -> Spectrum:
        """Return how the eigenvalues are spread, by stochastic Lanczos quadrature.

        The random vectors are those of :meth:`random_products`, so of the Hessian each costs one product less than ``steps``.

        Args:
            steps: Nodes, and products, for each random vector.
            probes: Random vectors.
            kind: "hessian" or "gauss_newton".
        """
        if kind == "hessian":
            random = self.random_products(probes)
            return spectral_density(self._matrix, random.signs, steps, random.products)
        like = self.flat_gradient()
        signs = torch.stack([random_signs(like, self.generator) for _ in range(probes)])
        return spectral_density(self._gauss_newton, signs, steps)

    @property
    def eigenvalues_are_known(self) -> bool:
        """Whether a search for eigenvalues has been made on this step."""
        return self._krylov is not None and len(self._krylov.basis) > 0

    def density_beside_eigenvalues(self, steps: int, sub_batch: float | None = None) -> Spectrum:
        """Return how the eigenvalues of the Hessian are spread, those that the search has found by themselves.

        The random vector is the first of :meth:`random_products`, so it costs one product less than ``steps``.

        Args:
            steps: Nodes for what the search does not know.
            sub_batch: Estimate that part from so many samples, see :meth:`sub_batch`.
        """
        part, _ = self.sub_batch_or_all(sub_batch)
        known = self.krylov.ritz_values
        if len(self.krylov.basis) == self.dimension:  # all is known
            values = torch.tensor(known, dtype=torch.float64)
            return Spectrum(values, torch.full_like(values, 1 / len(values)), 0)
        return density_beside(part._matrix, self.random_remainder(1, sub_batch), self.krylov.basis, known, steps)

    def gauss_newton_trace(self) -> TraceEstimate:
        """Return the trace of the Gauss-Newton matrix from one random gradient, shared by all who ask on this step.

        It costs about half a Hessian-vector product and needs no second derivative.

        Raises:
            NotMeasured: if the loss is not known as a function of the model's outputs, or nobody asked for it in time.
        """
        together = self._together
        if together is None:
            return self._sampler().trace(self.parameters)
        own = together.everywhere(lambda: self._sampler().trace(self.parameters), place=f"sampled trace {self._part}")
        error = torch.zeros_like(own.value) if own.standard_error is None else own.standard_error
        value, variance = together.mean([own.value, error.square()])
        return TraceEstimate(value, (variance / together.size).sqrt())

    def gauss_newton_diagonal(self) -> dict[str, Tensor]:
        """Return an unbiased estimate of the diagonal of the Gauss-Newton matrix by parameter, from the same random gradient.

        Raises:
            NotMeasured: as :meth:`gauss_newton_trace`.
        """

        def draw() -> dict[str, Tensor]:
            sample = self._sampler()
            return {name: sample.diagonal(name) for name in self.parameters}

        together = self._together
        if together is None:
            return draw()
        own = together.everywhere(draw, place=f"sampled diagonal {self._part}")
        return dict(zip(own, together.mean(list(own.values())), strict=True))

    def release(self) -> None:
        """Let go of the graph; from here on nothing can be measured."""
        self._source.release()
        for part in self._sub_batches.values():
            if isinstance(part, Curvature):
                part._source.release()
        self._sampler.forget()
        self._forget_results()


def _rows(vectors: Sequence[Tensor]) -> Tensor:
    return vectors[0][None] if len(vectors) == 1 else torch.stack(list(vectors))


class _Once:
    """Draws a sample at the first call and returns it ever after; a view of some parameters shares it with the whole."""

    def __init__(self, draw: Callable[[], GaussNewtonSample] | None):
        self._draw = draw
        self._drawn: GaussNewtonSample | None = None
        self._obstacle = "" if draw is not None else "no instrument asked for sampled labels before the forward pass"

    def __call__(self) -> GaussNewtonSample:
        if self._obstacle:
            raise NotMeasured(self._obstacle)
        if self._drawn is None:
            assert self._draw is not None
            try:
                self._drawn = self._draw()
            except NotMeasured as reason:
                self._obstacle = str(reason)
                raise
            finally:
                self._draw = None
        return self._drawn

    def forget(self) -> None:
        """Let go of everything."""
        self._draw = self._drawn = None
        self._obstacle = "the graph of the loss is no longer there"
