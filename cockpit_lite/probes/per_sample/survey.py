"""From the calls of a step to statistics by parameter, with the checks that keep a wrong number from getting out.

1. The input and the output of every call must carry the batch: as many rows as the forward has samples, or a multiple of it.
2. The contributions must sum to the gradient, as far as the gradient is known.
3. All uses of a parameter count: calls of several modules that share it, and several calls of one module, are added up before
   anything is squared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from math import isfinite

import torch
from torch import Tensor, distributed, nn

from cockpit_lite.probes.per_sample.alike import measure_alike, small_vector
from cockpit_lite.probes.per_sample.around import Learned, calls_around, contains
from cockpit_lite.probes.per_sample.calls import Call
from cockpit_lite.probes.per_sample.checks import (
    HALF_PRECISION_TOLERANCE,
    TOLERANCES,
    Check,
    accurate_type,
    along_direction,
    check_direction,
    compared,
)
from cockpit_lite.probes.per_sample.drawing import Drawing, Drawn
from cockpit_lite.probes.per_sample.elements import stored
from cockpit_lite.probes.per_sample.extension import Forms
from cockpit_lite.probes.per_sample.forms import Condensed, Dense, Form, Measured, OuterProducts, add
from cockpit_lite.probes.per_sample.forms.form import RankOne
from cockpit_lite.probes.per_sample.forwards import Forward, call_axes, trailing_axes
from cockpit_lite.probes.per_sample.generic import generic_forms
from cockpit_lite.probes.per_sample.layers import nothing
from cockpit_lite.probes.per_sample.modules import Owner
from cockpit_lite.probes.per_sample.owners import FLAT, Layout, by_shape, rows
from cockpit_lite.probes.per_sample.plain import is_plain, measure_plain, plain_forms
from cockpit_lite.probes.per_sample.rules import NoRule, Rule
from cockpit_lite.probes.per_sample.shadow import with_call
from cockpit_lite.probes.per_sample.statistics import PerSampleStatistics
from cockpit_lite.sharded import part, unsharded_class

BATCH_STATISTICS = "conditional on the batch statistics: batch normalisation in train mode lets the samples meet"

BY_SHAPE = "the first axis of the model's input is taken for the samples: the graph of sharded parameters is not asked"

#: Elements (16 MB in float32) that the factors of all forms may have that are kept until they are asked for again.
KEPT = 4_000_000


#: Parameter name -> micro-batch -> form of the per-sample gradients.
FormsByName = dict[str, dict[int, Form]]


class Survey:
    """The calls of one step, sorted by parameter.

    Args:
        parameters: The trainable parameters by name.
        calls: The calls that a backward reached.
        forwards: The forwards of the step.
        reached: For every backward the forwards that it reached.
        learned: What earlier steps have shown; added to.
        keep: Whether small forms are kept for :meth:`forms`, which would otherwise make them a second time.
        drawing: What elements are to be drawn.
        some: How many samples are enough along directions that have a name, at least; all if left out.
        in_shards: Whether this process holds only a part of every parameter, and of the gradient.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        calls: Iterable[Call],
        forwards: Sequence[Forward],
        reached: Sequence[set[int]],
        learned: Learned,
        keep: bool = False,
        drawing: Drawing | None = None,
        some: int | None = None,
        in_shards: bool = False,
    ) -> None:
        self.parameters, self.drawing, self._some, self._in_shards = parameters, drawing, some, in_shards
        self.calls = sorted(calls, key=lambda call: call.forward)
        self.forwards = forwards
        self.micro_batches = connected(reached)
        self._micro_batch = {forward: number for number, group in enumerate(self.micro_batches) for forward in group}
        self.batch_statistics = any(forwards[number].batch_statistics for group in self.micro_batches for number in group)
        self.learned = learned
        self.not_covered: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.used_again: set[str] = set()
        self.around: list[tuple[list[Call], list[str]]] = []  # calls around parameters, and names that these covered
        self.unused: set[str] = set()  # names that no sample uses
        self.sizes: list[int] = []  # of the micro-batches
        self._kept: FormsByName = {}
        self._room = KEPT if keep else 0

    def statistics(
        self, directions: Mapping[str, Mapping[str, Tensor]], gradient: Mapping[str, Tensor] | None, squares: bool = False
    ) -> PerSampleStatistics:
        """Return the statistics.

        Args:
            directions: Name -> direction of inner products, which is parameter name -> tensor. That of the name "" is what is
                called the direction everywhere else.
            gradient: The gradient that the contributions are checked against.
            squares: Whether to return sums of squares.
        """
        sizes = self.sizes = self._micro_batch_sizes()
        result = PerSampleStatistics(batch_size=sum(sizes), not_covered=self.not_covered, drawing=self.drawing)
        if self.not_covered:  # the samples could not be counted: that concerns every parameter
            return result
        missing: dict[str, str] = {}
        checks: dict[str, Check] = {}
        unused = dict(self.parameters)
        vectors: dict[str, Dense] = {}
        in_one_piece = len(sizes) == 1 and not self._in_shards
        plainly = in_one_piece and not self._room
        for calls in self._groups():  # one layer at a time: what a rule unfolds is gone before the next one's
            if plainly and len(calls) == 1 and is_plain(calls[0], sizes[0]):
                checks.update(measure_plain(calls[0], result, directions, gradient, squares, self._some))
                for name in calls[0].owner.names.values():  # type: ignore[union-attr]  # it is one of the owned
                    unused.pop(name, None)
                if self.drawing is not None:
                    self._draw_plainly(self.drawing, calls[0], result)
                continue
            forms = self._forms(calls, sizes, missing)
            checks.update(self._measure(result, forms, directions, squares, gradient, vectors if in_one_piece else None))
            if self._room:
                self._keep_small(forms)
            for name in forms:
                unused.pop(name, None)
        if vectors:
            checks.update(measure_alike(vectors, result, directions, gradient, squares, self._some))
            result.arrange([name for call in self.calls if call.owner is not None for name in call.owner.names.values()])
        for name, parameter in unused.items():
            if name not in missing and _arrived(parameter, name, gradient):
                missing[name] = "the parameter is used outside of any module's call"
        if self._in_shards:
            missing = {name: reason for name, reason in missing.items() if self.parameters[name].grad is not None}
        missing.update(self._failures(checks, gradient, result))
        self._cover_by_calls_around(
            missing, lambda forms: self._measure(result, forms, directions, squares, gradient), gradient, result
        )
        self.unused = unused.keys() - missing.keys()
        for name in self.unused:
            self._measure(result, {name: {}}, directions, squares, None)
        for name in self.not_covered:
            result.drop(name)
        result.conditional.update({name: note for name, note in self.notes.items() if name in result.squared_norms})
        if result.to_check:
            result.note = BY_SHAPE
            result.tolerance = (
                HALF_PRECISION_TOLERANCE if self._half_precision else max(map(self._tolerance, self.parameters.values()))
            )
        if self.batch_statistics:
            result.conditional = dict.fromkeys(result.squared_norms, BATCH_STATISTICS)
        return result

    def forms(self, wanted: frozenset[str]) -> Iterator[tuple[str, dict[int, Form]]]:
        """Yield name and forms by micro-batch of some covered parameters once more, a layer at a time.

        After :meth:`statistics`, and before the weights change. A micro-batch that does not use the parameter is missing.
        """
        around = [(calls, [name for name in names if name in wanted]) for calls, names in self.around]
        elsewhere = dict.fromkeys([*(name for _, names in self.around for name in names), *self.not_covered], "")
        kept = {name: parts for name, parts in self._kept.items() if name in wanted and name not in elsewhere}
        yield from kept.items()
        if len(kept) == len(wanted):
            return
        elsewhere.update(dict.fromkeys((name for name in self.parameters if name in kept or name not in wanted), ""))
        for calls in self._groups():
            yield from self._forms(calls, self.sizes, dict(elsewhere)).items()
        for calls, names in around:
            if names:
                yield from self._repeated(calls, names).items()
        for name in sorted(self.unused & wanted):
            yield name, {}

    def _keep_small(self, forms: FormsByName) -> None:
        for name, parts in forms.items():
            size = sum(map(stored, parts.values())) if self._room else 0
            if size < self._room:
                self._kept[name] = parts
                self._room -= size

    def _groups(self) -> list[list[Call]]:
        """Return the calls, those that share a parameter together."""
        owned = [call for call in self.calls if call.owner is not None]
        used = [name for call in owned for name in call.owner.names.values()]  # type: ignore[union-attr]
        if len(set(used)) == len(used):  # nearly always
            return [[call] for call in owned]
        groups: list[tuple[set[str], list[Call]]] = []
        by_name: dict[str, tuple[set[str], list[Call]]] = {}
        for call in owned:
            assert call.owner is not None
            names = set(call.owner.names.values())
            joined: tuple[set[str], list[Call]] = (names, [call])
            if not names.isdisjoint(by_name):
                for group in {id(by_name[name]): by_name[name] for name in names if name in by_name}.values():
                    joined = (joined[0] | group[0], group[1] + joined[1])
                    groups.remove(group)
            groups.append(joined)
            by_name.update(dict.fromkeys(joined[0], joined))
        return [calls for _, calls in groups]

    def _measure(
        self,
        result: PerSampleStatistics,
        forms: FormsByName,
        directions: Mapping[str, Mapping[str, Tensor]],
        squares: bool,
        gradient: Mapping[str, Tensor] | None,
        vectors: dict[str, Dense] | None = None,
    ) -> dict[str, Check]:
        """Add norms, products and squares to the result; return what :meth:`_failures` compares, by parameter.

        Small vectors only become part of ``vectors`` where that is given.
        """
        checks: dict[str, Check] = {}
        for name, parts in forms.items():
            drawn = None if self.drawing is None else self._drawn(self.drawing, name, parts)
            if drawn is not None:
                result.elements[name] = drawn
            vector = None if vectors is None else small_vector(parts.get(0))
            if vectors is not None and vector is not None:
                vectors[name] = vector
                continue
            total = None if gradient is None else gradient.get(name)
            towards = _towards(name, directions) if directions else {}
            by_gradient = "" in towards and directions[""] is gradient
            form = parts.get(0)
            if by_gradient and len(self.sizes) == 1 and isinstance(form, OuterProducts) and form.sum_is_quick():
                # The contributions sum to the gradient, which is checked, so their products among each other say the same.
                result.products[name] = form.products_with_sum()
                del towards[""]
                by_gradient = False
            checked = self._in_shards or (total is not None and not by_gradient)
            along = check_direction(self.parameters[name]) if checked else None
            found = self._measured(name, parts, towards, along, squares)
            result.squared_norms[name] = found.norms
            for key, products in zip(towards, found.products, strict=True):
                kept = result.along.setdefault(key, {}) if key else result.products
                kept[name] = products
            if found.squares is not None:
                result.sum_of_squares[name] = found.squares
            if self._in_shards and found.along is not None:
                result.to_check[name] = found.along
            if total is None or not parts:
                continue
            if along is None:
                checks[name] = Check(result.products[name], None)
            elif found.along is not None:
                checks[name] = Check(found.along, along_direction(total, along))
        return checks

    def _measured(
        self, name: str, parts: Mapping[int, Form], towards: Mapping[str, Tensor], along: RankOne | None, squares: bool
    ) -> Measured:
        """Measure the micro-batches of a parameter one after the other; return all of them together."""
        if len(self.sizes) == 1 and parts:
            return _measured(parts[0], towards, along, squares, self._some)
        measured = [
            _measured(parts[number], towards, along, squares, self._some)
            if number in parts
            else _nothing(self.parameters[name], size, towards, squares, self._some)
            for number, size in enumerate(self.sizes)
        ]
        found = [part.squares for part in measured if part.squares is not None]
        return Measured(
            torch.cat([part.norms for part in measured]),
            tuple(torch.cat(products) for products in zip(*[part.products for part in measured], strict=True)),
            None if along is None else torch.cat([part.along for part in measured if part.along is not None]),
            sum(found[1:], start=found[0]) if squares else None,
        )

    def _drawn(self, drawing: Drawing, name: str, parts: Mapping[int, Form]) -> Drawn | None:
        """Return the elements that are drawn of a parameter, or were when it was measured."""
        known = [
            parts[number] if number in parts else nothing(self.parameters[name], size) for number, size in enumerate(self.sizes)
        ]
        if not any(isinstance(part, Condensed) for part in known):
            return drawing.take(name, known, self.parameters[name].shape)
        return known[0].drawn if len(known) == 1 and isinstance(known[0], Condensed) else None

    def _draw_plainly(self, drawing: Drawing, call: Call, result: PerSampleStatistics) -> None:
        if call.owner is not None and any(map(drawing.count, call.owner.names.values())):
            for name, form in plain_forms(call).items():
                drawn = drawing.take(name, [form], form.shape)
                if drawn is not None:
                    result.elements[name] = drawn

    def _cover_by_calls_around(
        self,
        missing: Mapping[str, str],
        wanted: Callable[[FormsByName], dict[str, Check]],
        gradient: Mapping[str, Tensor] | None,
        result: PerSampleStatistics,
    ) -> None:
        """Cover parameters by the generic rule on the smallest calls around them that contain every use; name the others."""
        if self._in_shards:  # the calls around them would have to be repeated
            self.not_covered.update(missing)
            return
        if not missing:  # nearly always
            self.learned.learn(set(), {})
            return
        training = self._training()
        hopeless = {name: self.learned.hopeless.get((name, training), "") for name in missing}
        self.not_covered.update({name: reason for name, reason in hopeless.items() if reason})
        reasons = {name: reason for name, reason in missing.items() if not hopeless[name]}
        if not reasons:
            self.learned.learn(set(), {})
            return
        tried = set(reasons)
        for calls in calls_around(self.calls):
            inside = {id(parameter) for parameter in calls[0].module.parameters()}
            names = [name for name in reasons if id(self.parameters[name]) in inside and self._has_every_use(calls, name)]
            if not names:
                continue
            try:
                forms = self._repeated(calls, names)
                failed = self._failures(wanted(forms), gradient, result)
            except NoRule as reason:
                failed = {name: str(reason) for name in names}
            for name in names:
                if name not in failed:
                    del reasons[name]
                elif failed[name] not in reasons[name]:
                    reasons[name] = f"{reasons[name]}; and {failed[name]}"
            covered = [name for name in names if name not in failed]
            if covered:
                self.around.append((calls, covered))
            if not reasons:
                break
        self.not_covered.update(reasons)
        used = {id(calls[0].module) for calls, _ in self.around}
        self.learned.learn(used, {(name, training): reasons[name] for name in tried if name in reasons})

    def _has_every_use(self, calls: Sequence[Call], name: str) -> bool:
        """Whether every call of a module that owns the parameter is within one of these, and none of them is such a call."""
        if _owns(calls[0], name) and calls[0].layout is not None and not calls[0].layout.reason:
            return any(call is self.forwards[call.forward].whole for call in calls)
        own = [call for call in self.calls if _owns(call, name)]
        return all(any(contains(around, call) for around in calls) for call in own)

    def _repeated(self, calls: Sequence[Call], names: Sequence[str]) -> FormsByName:
        """Return the forms of these parameters from the generic rule on calls around them."""
        wanted = {id(self.parameters[name]): name for name in names}
        found: dict[str, dict[int, list[Form]]] = {}
        for call in calls:
            number = self._micro_batch[call.forward]
            forward = self.forwards[call.forward]
            layout = Layout(forward.axis) if call is forward.whole else call.layout
            if layout is None:
                raise NoRule("nothing is known of the call around it")
            if layout.reason:
                raise NoRule(f"{type(call.module).__name__}: {layout.reason}")
            own = {local: parameter for local, parameter in call.module.named_parameters() if id(parameter) in wanted}
            repeated, note = generic_forms(call, own, layout, self.sizes[number], self._samples_stay_apart(call))
            if note:
                self.notes.update(dict.fromkeys(names, note))
            for local, form in repeated.items():
                found.setdefault(wanted[id(own[local])], {}).setdefault(number, []).append(form)
        return {name: {number: add(parts) for number, parts in uses.items()} for name, uses in found.items()}

    def _samples_stay_apart(self, around: Call) -> bool:
        """Whether no layer within the call shows that samples meet."""
        return not any(contains(around, call) for call in self._meetings)

    @cached_property
    def _meetings(self) -> list[Call]:
        """Calls that are given the samples and not split into them.

        A table of positions is not given the samples; or only to see how long they are, and then returns nothing for each.
        """

        def carries(tensor: Tensor, call: Call, size: int) -> bool:
            if not tensor.dim() or tensor.shape[0] % size:
                return False
            output = call.outputs[0]
            return tensor.is_floating_point() or (tensor.shape[0] == size and output.dim() > 0 and output.shape[0] % size == 0)

        return [
            call
            for call in self.calls
            if call.layout is not None
            and call.layout.reason
            and any(carries(tensor, call, self.forwards[call.forward].batch_size or 1) for tensor in call.inputs)
        ]

    def _training(self) -> bool:
        return any(forward.training for forward in self.forwards)

    def _micro_batch_sizes(self) -> list[int]:
        """Return the number of samples of every micro-batch, or name all parameters as not covered."""
        if not self.micro_batches:
            self.not_covered.update(dict.fromkeys(self.parameters, "no backward pass reached a call of the model"))
        sizes: list[int] = []
        for forwards in self.micro_batches:
            found = {self.forwards[number].batch_size for number in forwards}
            if any(self.forwards[number].abandoned for number in forwards):
                reason = "the model was called many times before the backward pass"
                self.not_covered.update(dict.fromkeys(self.parameters, reason))
                return []
            if len(found) != 1 or None in found:
                known = sorted(size for size in found if size is not None)
                reason = (
                    f"forwards of different batch size ({known}) in one backward" if known else "the model's input has no tensor"
                )
                self.not_covered.update(dict.fromkeys(self.parameters, reason))
                return []
            sizes.extend(size for size in found if size is not None)
        return sizes

    def _forms(self, calls: Sequence[Call], sizes: Sequence[int], missing: dict[str, str]) -> FormsByName:
        """Return parameter name -> micro-batch -> form of the per-sample gradients; add those without to ``missing``."""
        found: dict[str, dict[int, list[Form]]] = {}
        for call in calls:
            number = self._micro_batch[call.forward]
            assert call.owner is not None
            own = call.owner.names
            if missing and set(own.values()) <= set(missing):
                continue
            if len(calls) == 1 and not missing and is_plain(call, sizes[number]):
                return {name: {number: form} for name, form in plain_forms(call).items()}
            try:
                forms = forms_of_call(call, call.owner, sizes[number], self._samples_stay_apart, repeat=not self._in_shards)
            except NoRule as reason:
                missing.update(dict.fromkeys(own.values(), str(reason)))
                if call.spent:
                    self.used_again.update(own.values())
                continue
            except Exception as error:  # one layer that fails, for want of memory for instance, must not take the others along
                kind = type(call.module).__name__
                missing.update(dict.fromkeys(own.values(), f"the rule of {kind} failed ({type(error).__name__}: {error})"))
                continue
            if len(calls) == 1 and not missing:
                return {own[local]: {number: form} for local, form in forms.items()}
            for local, form in forms.items():
                found.setdefault(own[local], {}).setdefault(number, []).append(form)
        for name, uses in found.items():
            if any(len(parts) > 1 and any(isinstance(form, Condensed) for form in parts) for parts in uses.values()):
                missing.setdefault(name, "a second use of it showed after the first was measured")
                self.used_again.add(name)
        return {
            name: {number: add(parts) for number, parts in uses.items()} for name, uses in found.items() if name not in missing
        }

    def _failures(
        self, checks: Mapping[str, Check], gradient: Mapping[str, Tensor] | None, result: PerSampleStatistics
    ) -> dict[str, str]:
        """Return name -> reason of the parameters whose contributions do not sum to the gradient, out of the result."""
        failed: dict[str, str] = {}
        if not checks or gradient is None:
            return failed
        doubtful = {
            name: (abs(found - expected), abs(expected))
            for name, (found, expected) in compared(checks, gradient).items()
            # a gradient that is not finite has nothing to be compared with: the contributions are reported as they are
            if not abs(found - expected) <= self._tolerance(gradient[name]) * abs(expected) and isfinite(expected)
        }
        if not doubtful:  # nearly always
            return failed
        scales = torch.stack([checks[name].scale() for name in doubtful]).tolist()
        for (name, (off, size)), scale in zip(doubtful.items(), scales, strict=True):
            tolerance = HALF_PRECISION_TOLERANCE if self._half_precision else self._tolerance(gradient[name])
            if not off <= tolerance * max(scale, size) and not self._is_rounding(name, gradient[name]):
                failed[name] = self._reason(name)
                result.drop(name)
        return failed

    @staticmethod
    def _tolerance(gradient: Tensor) -> float:
        return TOLERANCES.get(gradient.dtype, HALF_PRECISION_TOLERANCE)

    @cached_property
    def _half_precision(self) -> bool:
        return any(call.half_precision for call in self.calls)

    def _is_rounding(self, name: str, gradient: Tensor) -> bool:
        """Whether the gradient is nothing but rounding errors, as that of a bias whose effect a normalisation takes away."""
        bound = sum(call.magnitude() for call in self.calls if _owns(call, name))
        return float(gradient.detach().abs().max()) <= 8 * torch.finfo(gradient.dtype).eps * bound

    def _reason(self, name: str) -> str:
        owners = sorted({type(call.module).__name__ for call in self.calls if _owns(call, name)})
        why = f"the parameter is also used outside of {' and '.join(owners)}'s call"
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            why += ", or its gradient is averaged over processes that do not measure together (hand over process_group=)"
        return f"contributions do not sum to the gradient: {why}"


def forms_of_call(
    call: Call, owner: Owner, batch_size: int, apart: Callable[[Call], bool], repeat: bool = True
) -> Mapping[str, Form]:
    """Return parameter name in the module -> form of its per-sample gradients in this call.

    Args:
        call: The call, with its output gradients.
        owner: What is known of its module.
        batch_size: Number of samples.
        apart: Whether the samples are known not to meet in a call.
        repeat: Whether a call without a rule may be repeated.

    Raises:
        NoRule: if there is none; the message is the reason.
    """
    if call.condensed:
        return call.condensed
    layout = call.layout
    if layout is None and not repeat:
        raise NoRule(f"{_kind(call)}: it is called in the backward pass, and sharded parameters leave only the shapes to tell")
    if layout is None:  # recomputed in the backward pass
        layout = by_shape(call, batch_size, call_axes(call.module, call.outputs[0]))
    if layout.reason:
        raise NoRule(f"{_kind(call)}: {layout.reason}")
    if owner.rule is not None:
        try:
            return ruled_forms(call, owner.rule, owner.names, layout, batch_size)
        except NoRule:
            if layout.axis == FLAT or not repeat:
                raise
    if not repeat:
        raise NoRule(f"{_kind(call)} has no rule, and with sharded parameters its call cannot be repeated")
    repeated, _ = generic_forms(call, owner.parameters, layout, batch_size, apart(call))
    return repeated


def condense(
    call: Call,
    batch_size: int,
    squares: bool,
    directions: Mapping[str, Mapping[str, Tensor]],
    drawing: Drawing | None = None,
    some: int | None = None,
) -> None:
    """Measure a call whose gradient has arrived, and let go of everything else.

    Args:
        call: Of a module that has a rule.
        batch_size: Number of samples.
        squares: Whether to measure sums of squares, too.
        directions: Name -> direction of inner products, which is parameter name -> tensor.
        drawing: What elements are to be drawn; of a batch that comes in one piece.
        some: How many samples are enough along directions that have a name.

    Raises:
        NoRule: if there is none; the call is then as it was.
    """
    owner = call.owner
    assert call.layout is not None and owner is not None and owner.rule is not None
    forms = ruled_forms(call, owner.rule, owner.names, call.layout, batch_size)
    condensed: dict[str, Form] = {}
    for local, form in forms.items():
        vector = small_vector(form)
        if vector is not None:
            condensed[local] = vector.alone()
            continue
        name = owner.names[local]
        towards = _towards(name, directions)
        # where the gradient is known, the contributions are checked along that
        along = None if "" in towards else check_direction(owner.parameters[local])
        drawn = None if drawing is None else drawing.take(name, [form], owner.parameters[local].shape)
        condensed[local] = Condensed(form, along, squares, towards, drawn, some)
    call.condense(condensed)


def ruled_forms(call: Call, rule: Rule, names: Iterable[str], layout: Layout, batch_size: int) -> dict[str, Form]:
    """Return what the rule of the module says, with the rows given to their samples."""
    module = call.module
    if call.spent:
        raise NoRule(f"a second gradient arrived at {_kind(call)} after the first was measured")
    if call.overwritten:
        raise NoRule(f"the input of {_kind(call)} was changed in place after its call")
    if rule.repeats and call.outputs_forgotten and any(projection.delta is None for projection in call.projections.values()):
        raise NoRule(f"what {_kind(call)} returned was not kept")
    inputs, deltas, shape, axis = call.bound(), call.deltas, call.shapes[0], layout.axis
    if (deltas[0] is None and not _any_axis(module)) or not inputs or not isinstance(inputs[0], Tensor):
        raise NoRule(f"{_kind(call)} was called without input")
    if axis == FLAT:
        assert deltas[0] is not None  # layouts of several axes are for modules with one output
        trailing = rule.trailing_axes(module)
        assert trailing is not None
        inputs = [inputs[0].flatten(0, inputs[0].dim() - trailing[0] - 1), *inputs[1:]]
        deltas = [rows(deltas[0], FLAT, trailing[1])]
        shape, axis = rows(call.outputs[0], FLAT, trailing_axes(module)).shape, 0
    if inputs[0].shape[axis] != shape[axis] and not isinstance(module, nn.EmbeddingBag):
        raise NoRule(f"{_kind(call)}: input and output have different numbers of rows")
    copy = with_call(module, inputs, None if call.outputs_overwritten else call.outputs[0])
    if call.random_state is not None:
        copy.__dict__["random_state"] = call.random_state
    if call.projections:
        copy.__dict__["projections"] = call.projections
    if call.kernels:
        copy.__dict__["kernels"] = call.kernels
    if call.statistics is not None:
        copy.__dict__["statistics"] = call.statistics
    forms = rule.measure_all(_FORMS, copy, names, (), list(deltas))
    if layout.owners is not None:
        forms = {name: form.fold(layout.owners, batch_size) for name, form in forms.items()}
    return forms


def _kind(call: Call) -> str:
    return unsharded_class(call.module).__name__


def _towards(name: str, directions: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the directions that a parameter has a part in."""
    return {key: values[name] for key, values in directions.items() if values.get(name) is not None}


_FORMS = Forms()


def _owns(call: Call, name: str) -> bool:
    return call.owner is not None and name in call.owner.names.values()


def _any_axis(module: nn.Module) -> bool:
    """Whether a gradient may arrive at another output than the first: the final states of recurrent layers."""
    return isinstance(module, nn.RNNBase | nn.MultiheadAttention)


def _measured(form: Form, towards: Mapping[str, Tensor], along: RankOne | None, squares: bool, some: int | None) -> Measured:
    if isinstance(form, Condensed):
        return form.recalled(list(towards), along is not None, squares)
    return form.measure_towards(towards, along, squares, some)


def _nothing(parameter: nn.Parameter, size: int, towards: Mapping[str, Tensor], squares: bool, some: int | None) -> Measured:
    """What a micro-batch contributes to a parameter that it does not use."""
    zeros = torch.zeros(size, dtype=accurate_type(parameter.dtype), device=parameter.device)
    products = tuple(zeros[:: max(1, size // some)] if name and some else zeros for name in towards)
    return Measured(zeros, products, zeros, torch.zeros_like(parameter, dtype=zeros.dtype) if squares else None)


def _arrived(parameter: nn.Parameter, name: str, gradient: Mapping[str, Tensor] | None) -> bool:
    """Whether the parameter has a gradient, so that something must have contributed to it."""
    value = parameter.grad if gradient is None else gradient.get(name)
    return value is not None and bool(part(value.coalesce().values() if value.is_sparse else value).any())


def connected(reached: Sequence[set[int]]) -> list[set[int]]:
    """Return the micro-batches: forwards are of the same one if a backward reached both."""
    groups: list[set[int]] = []
    for forwards in reached:
        if not forwards:
            continue
        merged = set(forwards)
        for group in [group for group in groups if group & merged]:
            merged |= group
            groups.remove(group)
        groups.append(merged)
    return sorted(groups, key=min)
