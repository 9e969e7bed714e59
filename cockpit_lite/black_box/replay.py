"""Running a kept step again, to name the first module and operation that made a bad value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cockpit_lite.black_box.containers import NotKept, leaves, restored, tensors
from cockpit_lite.black_box.kept_step import KeptStep
from cockpit_lite.black_box.loss_operations import describe
from cockpit_lite.black_box.operations import advice, plain_name, ranges
from cockpit_lite.black_box.random_state import set_states
from cockpit_lite.black_box.trace import BackwardTrace, Event, ForwardTrace, first_bad
from cockpit_lite.errors import ReplayError

#: Prefixes that wrappers put in front of the names of parameters.
_WRAPPERS = ("module.", "_orig_mod.")

LossFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Verdict:
    """Where the first bad value of a step came from.

    Attributes:
        kind: ``"batch"``, ``"weights"``, ``"forward"``, ``"loss"``, ``"backward"``, ``"loss backward"`` or ``"nothing"``.
        cause: One or two sentences.
        advice: What to do.
        step: Number of the step.
        reason: Why it was kept.
        module: Path of the module, or "".
        operation: Name of the operation, or "".
        source: Line of code, or "".
        where: Names of the inputs or parameters that were bad before the step.
        place: Index of the first bad element.
        inputs: Ranges of the inputs of the operation.
        output: Range of its result.
        spread: Modules that gave back bad values, in order.
        bad_gradients: Parameters whose gradient is bad.
        loss: As it was, and as it is again; None: not known.
        notes: What was not as it was in the step.
    """

    kind: str
    cause: str
    advice: str
    step: int
    reason: str
    module: str = ""
    operation: str = ""
    source: str = ""
    where: tuple[str, ...] = ()
    place: tuple[int, ...] = ()
    inputs: tuple[Mapping[str, float], ...] = ()
    output: Mapping[str, float] = field(default_factory=dict)
    spread: tuple[str, ...] = ()
    bad_gradients: tuple[str, ...] = ()
    loss: tuple[float | None, float | None] = (None, None)
    notes: tuple[str, ...] = ()


def replay(kept: KeptStep, model: nn.Module, loss: LossFunction | None = None, device: str | torch.device = "cpu") -> Verdict:
    """Run a kept step again and say where its first bad value came from.

    Args:
        kept: The step.
        model: A model like the one that was trained; its weights and buffers become those of the step.
        loss: Called with what the model returns and with the targets that the loss function was given. Without it the backward
            pass begins at the model's outputs, with what the loss has sent back to them.
        device: Where to run.

    Raises:
        ReplayError: if the step does not hold what it takes, or the model is another one.
    """
    if not kept.calls:
        raise ReplayError(f"Step {kept.step} was kept without its batch: {'; '.join(kept.notes) or 'no reason is known'}.")
    notes = list(kept.notes)
    model = model.to(device)
    _load(kept, model, notes)
    with ExitStack() as stack:
        accelerators = [torch.device(device)] if torch.device(device).type != "cpu" else []
        stack.enter_context(torch.random.fork_rng(accelerators, device_type=accelerators[0].type if accelerators else "cuda"))
        return _Replay(kept, model, loss, torch.device(device), notes).run()


class _Replay:
    def __init__(self, kept: KeptStep, model: nn.Module, loss: LossFunction | None, device: torch.device, notes: list[str]):
        self.kept, self.model, self.loss, self.device, self.notes = kept, model, loss, device, notes
        self.inputs: dict[str, Tensor] = {}
        self.outputs: list[list[Tensor]] = []
        self.value: Tensor | None = None
        self.trace = ForwardTrace(model)

    def run(self) -> Verdict:
        output: Any = None
        for number, call in enumerate(self.kept.calls):
            output = self._call(number, call)
            self.outputs.append(tensors(output))
        self._apply_loss(output)
        ends = [tensor for tensors_of_call in self.outputs for tensor in tensors_of_call if tensor.is_floating_point()]
        if self.value is not None:
            ends = [self.value]
        if any(not bool(torch.isfinite(end).all()) for end in ends):
            return self._of_forward(ends)
        lost = self.kept.loss is not None and not math.isfinite(self.kept.loss)
        if lost and self.value is None:
            return self._of_loss()
        return self._of_backward()

    def _call(self, number: int, call: Mapping[str, Any]) -> Any:
        args, kwargs = restored(call["args"]), restored(call["kwargs"])
        for path, leaf in leaves({"args": args, "kwargs": kwargs}):
            if isinstance(leaf, NotKept):
                raise ReplayError(f"The model was given a {leaf.kind} ({path}), which a file of plain tensors cannot hold.")
        args, kwargs = _moved(args, self.device), _moved(kwargs, self.device)
        prefix = "" if len(self.kept.calls) == 1 else f"call {number}: "
        for path, leaf in (*leaves(args, "input"), *leaves(kwargs)):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self.inputs[prefix + path] = leaf
        try:
            set_states(call["random"])
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            self.notes.append(f"the random numbers are others ({type(error).__name__}: {error})")
        with ExitStack() as stack:
            for kind, dtype in call["autocast"].items():
                if kind == self.device.type:
                    stack.enter_context(torch.autocast(kind, dtype=getattr(torch, dtype)))
                else:
                    self.notes.append(f"autocast to {dtype} on {kind} was left out on {self.device.type}")
            stack.enter_context(self.trace)
            try:
                return self.model(*args, **kwargs)
            except Exception as error:
                raise ReplayError(f"The model cannot be called with the kept batch ({type(error).__name__}: {error}).") from error

    def _apply_loss(self, output: Any) -> None:
        if self.loss is None:
            return
        if self.kept.target is None:
            raise ReplayError("The targets of this step are not known, so a loss function cannot be called: leave it out.")
        # What it does belongs to no module: the trace knows that, since none has begun.
        target = _moved(restored(self.kept.target["target"]), self.device)
        with self.trace:
            try:
                self.value = self.loss(output, target)
            except Exception as error:
                raise ReplayError(f"The loss function cannot be called with output and target ({_spelled(error)}).") from error
        if not isinstance(self.value, Tensor) or self.value.numel() != 1:
            raise ReplayError("The loss function has returned no single number.")

    # Verdicts

    def _of_forward(self, ends: Sequence[Tensor]) -> Verdict:
        history = self.trace.history(ends)
        bad_leaves = [leaf for event in history for leaf in event.leaves]
        found = self._given(bad_leaves, ends)
        if found is not None:
            return found
        births = [event for event in history if event.born]
        if not births:  # made of infinities that were given on purpose
            births = history[:1]
        if not births:
            raise ReplayError("The result is not finite, and no operation was seen that made it so.")
        event = births[0]
        in_loss = self.value is not None and not event.module
        return self._verdict("loss" if in_loss else "forward", event, "the loss function" if in_loss else "")

    def _given(self, bad: Sequence[Tensor], ends: Sequence[Tensor]) -> Verdict | None:
        """Return the verdict if the batch or the weights were bad before anything was computed."""
        addresses = {tensor.untyped_storage().data_ptr() for tensor in (*bad, *ends)}

        def those(named: Mapping[str, Tensor], infinite: bool) -> dict[str, Tensor]:
            return {
                name: tensor
                for name, tensor in named.items()
                if tensor.untyped_storage().data_ptr() in addresses
                and (bool(tensor.isnan().any()) or (infinite and bool(tensor.isinf().any())))
            }

        weights = those({name: parameter.detach() for name, parameter in self.model.named_parameters()}, True)
        weights.update(those({name: b for name, b in self.model.named_buffers() if b.is_floating_point()}, False))
        batch = those(self.inputs, True)
        if weights:
            return self._bad_weights(weights)
        if not batch:
            return None
        name, tensor = next(iter(batch.items()))
        place, about = first_bad(tensor), describe(tensor)
        return Verdict(
            "batch",
            f"The batch itself is bad: {name} holds {_counted(about)}, first at index {list(place)}.",
            "Find out where the loader makes it: check each sample with torch.isfinite(sample).all() before it is stacked.",
            where=tuple(batch),
            place=place,
            output=about,
            **self._common(),
        )

    def _bad_weights(self, bad: Mapping[str, Tensor]) -> Verdict:
        name, tensor = next(iter(bad.items()))
        rates = [group.get("lr") for optimizer in self.kept.optimizers for group in optimizer["groups"]]
        rate = f" with learning rate {rates[0]:g}" if rates and isinstance(rates[0], float) else ""
        which = f"{name}" if len(bad) == 1 else f"{name} and {len(bad) - 1} more"
        return Verdict(
            "weights",
            f"The weights were bad before this step: {which} (of {len(list(self.model.parameters()))} parameters) "
            f"hold{'s' if len(bad) == 1 else ''} {_counted(describe(tensor))}. An earlier step{rate} has made them so, or "
            "something "
            "beside the optimizer.",
            "Start again from an earlier checkpoint and call cockpit.keep_step() in the steps before this one, or measure every "
            "step, schedule=Every(1), which looks at all gradients.",
            where=tuple(bad),
            place=first_bad(tensor),
            output=describe(tensor),
            **self._common(),
        )

    def _of_loss(self) -> Verdict:
        """The model's outputs are good and the loss was not: what was seen of the loss function at the time has to do."""
        event = _suspect(self.kept.loss_operations)
        where = f" The first of them whose input is on an edge is {event.operation}: {ranges(event.inputs)}." if event else ""
        return Verdict(
            "loss",
            f"The model's outputs are finite, and the loss was {_in_words(self.kept.loss)}: it comes from the loss "
            f"function{_made_of(self.kept)}.{where}",
            advice(event.operation)
            if event
            else "Give the loss function, --loss module:function, to see which of its operations it was.",
            module="the loss function",
            operation=event.operation if event else "",
            inputs=tuple(event.inputs) if event else (),
            **self._common(),
        )

    def _of_backward(self) -> Verdict:
        if self.value is not None:
            roots, seeds = [self.value], [torch.ones_like(self.value)]
        else:
            pairs = [
                (output, gradient.to(output))
                for call, outputs in zip(self.kept.calls, self.outputs, strict=True)
                for output, gradient in zip(outputs, call["gradients"], strict=False)
                if isinstance(gradient, Tensor) and output.requires_grad and output.shape == gradient.shape
            ]
            if not pairs:
                return self._nothing("what the loss sent back to the outputs was not kept: give the loss function, --loss")
            roots, seeds = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            bad = next((seed for seed in seeds if not bool(torch.isfinite(seed).all())), None)
            if bad is not None:
                return self._of_loss_backward(bad)
        trace = BackwardTrace(roots, self.trace.by_number)
        self.model.zero_grad(set_to_none=True)
        try:
            torch.autograd.backward(roots, seeds, retain_graph=True)  # what the nodes keep is to be looked at
        finally:
            trace.stop()
        bad_gradients = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
        ]
        if not bad_gradients:
            return self._nothing("")
        if not trace.births:
            return self._nothing("the gradient is not finite, but no single node of the graph makes it so")
        event = trace.births[0]
        in_loss = self.value is not None and event.module == ""
        return self._verdict("backward", event, "the loss function" if in_loss else "", bad_gradients)

    def _of_loss_backward(self, seed: Tensor) -> Verdict:
        event = _suspect(self.kept.loss_operations)
        return Verdict(
            "loss backward",
            f"The loss was {_in_words(self.kept.loss)}, but what the loss function{_made_of(self.kept)} sends back to the "
            "model's "
            f"output is not finite: {_counted(describe(seed))}, first at index {list(first_bad(seed))}. Its derivative makes it.",
            advice(event.operation)
            if event
            else "Give the loss function, --loss module:function, to see which of its operations it is.",
            module="the loss function",
            operation=event.operation if event else "",
            place=first_bad(seed),
            output=describe(seed),
            **self._common(),
        )

    def _nothing(self, why: str) -> Verdict:
        reason = f" ({why})" if why else ""
        return Verdict(
            "nothing",
            f"Run again, step {self.kept.step} is finite forward and backward{reason}.",
            "If it was kept because it was asked for, that is as it should be. Else the run differs from the step: other kernels "
            "on another device, random numbers, or weights that were left out; the notes say what is known.",
            **self._common(),
        )

    def _verdict(self, kind: str, event: Event, place_name: str, bad_gradients: Sequence[str] = ()) -> Verdict:
        module = place_name or (event.module if event.module is not None else "")
        made = "NaN" if event.born == "nan" else "infinity"
        index = f", first at index {list(event.place)}" if event.place else ""
        backward = kind == "backward"
        kept = "; ".join(
            f"its {name} {ranges([about])}" for name, about in event.keeps.items() if name in ("self", "result", "other")
        )
        of_what = "what comes back to it is" if backward else "its input is"
        source = f" ({event.source})" if event.source else ""
        inside = "in the model" if not module else f"in {module}" if place_name else f"in module {module}"
        return Verdict(
            kind,
            f"{'In the backward pass, ' if backward else ''}{event.operation} {inside}{source} makes {made} of finite numbers: "
            f"{of_what} {ranges(event.inputs) or 'nothing'}{', ' + kept if kept else ''}; {_counted(event.output)} of "
            f"{event.output['elements']:,.0f} come out{index}.",
            advice(event.operation),
            module=module,
            operation=event.operation,
            source=event.source,
            place=event.place,
            inputs=tuple(event.inputs),
            output=event.output,
            bad_gradients=tuple(bad_gradients),
            **self._common(),
        )

    def _common(self) -> dict[str, Any]:
        again = None if self.value is None else float(self.value.detach())
        return {
            "step": self.kept.step,
            "reason": self.kept.reason,
            "spread": tuple(self.trace.modules),
            "loss": (self.kept.loss, again),
            "notes": tuple(self.notes),
        }


def _made_of(kept: KeptStep) -> str:
    names = [plain_name(str(operation.get("name"))) for operation in kept.loss_operations]
    return f" ({', '.join(names)})" if names else ""


def _suspect(operations: Sequence[Mapping[str, Any]]) -> Event | None:
    """Return the first operation of the loss function that keeps a value on the edge of where it is defined."""
    for operation in operations:
        name = plain_name(str(operation.get("name")))
        for about in operation.get("keeps", {}).values():
            on_edge = about["zeros"] and name.startswith(("log", "sqrt", "rsqrt", "div", "pow", "reciprocal", "norm", "linalg"))
            below = about["smallest"] < 0 and name in ("log", "sqrt", "rsqrt", "log2", "log10")
            if about["nan"] or about["infinite"] or ((on_edge or below) and name not in ("log_softmax",)):
                return Event(0, name, "", "", inputs=[about])
    return None


def _load(kept: KeptStep, model: nn.Module, notes: list[str]) -> None:
    """Put the weights and buffers of the step into the model."""
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    if kept.weights is None:
        notes.append("the weights are those that the model was made with, since the step was kept without")
    else:
        weights = _renamed(kept.weights, parameters)
        wrong = [name for name, parameter in parameters.items() if name not in weights or weights[name].shape != parameter.shape]
        if wrong:
            raise ReplayError(
                f"The model is not the one that was trained ({kept.model}): {len(wrong)} of its {len(parameters)} parameters are "
                "not in "
                f"the kept step, or of another shape, {wrong[0]} the first. --model has to name a function that makes the same "
                "model."
            )
        for name, parameter in parameters.items():
            parameter.data = weights[name].to(parameter.device)
    with torch.no_grad():
        for name, value in _renamed(kept.buffers, buffers).items():
            if name in buffers and buffers[name].shape == value.shape:
                buffers[name].copy_(value)
    training = set(kept.training)
    for prefix in _WRAPPERS:
        training |= {name.removeprefix(prefix) for name in training}
    for name, module in model.named_modules():
        module.training = name in training


def _renamed(kept: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Return the tensors under the names of the bare model, if a wrapper was trained."""
    for prefix in _WRAPPERS:
        if not kept.keys() & wanted.keys() and all(name.startswith(prefix) for name in kept):
            kept = {name.removeprefix(prefix): tensor for name, tensor in kept.items()}
    return kept


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(item, device) for item in value)
    return value.to(device) if isinstance(value, nn.utils.rnn.PackedSequence) else value  # type: ignore[arg-type]


def _counted(about: Mapping[str, float]) -> str:
    parts = [f"{about[key]:,.0f} {word}" for key, word in (("nan", "NaN"), ("infinite", "infinite")) if about.get(key)]
    return " and ".join(parts) or "nothing bad"


def _in_words(loss: float | None) -> str:
    return "not known" if loss is None else "NaN" if math.isnan(loss) else f"{loss:.4g}"


def _spelled(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
