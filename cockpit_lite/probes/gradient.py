"""The mini-batch gradient as backward left it, and as the optimizer found it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from cockpit_lite.probes.whole_parameters import WholeParameters
from cockpit_lite.sharded import any_is_sharded, part


class GradientProbe:
    """Tells backward passes of the watched parameters from others, and the raw gradient from the clipped one.

    Gradients are compared by identity and version counter, never by value, so nothing is computed and nothing copied.
    Only where a gradient is found changed between backward and the optimizer (clipping), or may be because this is the
    first look, is a copy of the raw one kept on the next steps.

    Args:
        parameters: The watched ones by name.
        whole: And as modules see them, where they are sharded.
    """

    #: Backward passes that are looked at in full before one parameter is trusted to stand for all.
    trial_passes = 3

    def __init__(self, parameters: Mapping[str, nn.Parameter], whole: WholeParameters | None = None):
        self._parameters, self._whole = parameters, whole
        self._keep_copies = True
        # A sharded tensor counts most, but not all of what is done to it in place.
        self._uncounted = any_is_sharded(parameters.values())
        self._full_looks = 0
        self._sentinel: nn.Parameter | None = None
        self._one_is_enough = True
        self._trusted: nn.Parameter | None = None
        self._grad: Tensor | None = None
        self._version = -1
        self._before: list[tuple[nn.Parameter, Tensor | None, int]] = []
        self._after: tuple[nn.Parameter, Tensor | None, int] | None = None
        self._marks: dict[str, tuple[Tensor, int]] = {}
        self._copies: dict[str, Tensor] = {}

    def before_backward(self) -> None:
        """Remember what ``.grad`` is, of one parameter if that has always been enough, else of all."""
        if self._trusted is not None:
            self._grad = grad = self._trusted.grad
            self._version = -1 if grad is None else grad._version
        else:
            self._before = [_mark(parameter) for parameter in self._parameters.values() if parameter.requires_grad]
            if self._whole is not None:
                self._whole.stop()
                self._before += map(_mark, self._whole.found)

    def after_backward(self) -> bool:
        """Return whether the backward pass reached a watched parameter."""
        if self._trusted is not None:
            parameter, known, self._grad = self._trusted, self._grad, None
            grad = parameter.grad
            if grad is not known or (grad is not None and grad._version != self._version):
                self._after = (parameter, grad, -1 if grad is None else grad._version)
                return True
            # Another model's backward, or a branch not taken: from now on look at all parameters.
            self._one_is_enough, self._trusted = False, None
            return False
        before, self._before = self._before, []
        changed = [parameter for parameter, grad, version in before if _changed(parameter.grad, grad, version)]
        if changed:
            # its gradient is held until the next pass; that of a whole parameter is gone where it was exchanged
            self._after = _mark(_smallest([parameter for parameter in changed if parameter.grad is not None] or changed))
        if self._sentinel is None and changed:
            self._sentinel = _smallest(changed)
        self._full_looks += 1
        if self._sentinel is None or not any(parameter is self._sentinel for parameter in changed):
            self._one_is_enough = False
        if self._one_is_enough and not self._uncounted and self._full_looks >= self.trial_passes:
            self._trusted = self._sentinel
        return bool(changed)

    def was_reset(self) -> bool:
        """Return whether the gradient was set to None or zero since the last backward pass: its step was skipped."""
        if self._after is None:
            return False
        parameter, grad, version = self._after
        if not _changed(parameter.grad, grad, version):
            return False
        # Looked at by value only where it was changed in place between two backward passes, which hardly anybody does.
        return parameter.grad is None or not bool(_dense({"": parameter.grad.detach()})[""].any())

    def record(self) -> None:
        """Note the raw gradient after a backward pass of a tracked step."""
        present = {name: parameter.grad for name, parameter in self._parameters.items() if parameter.grad is not None}
        self._marks = {name: (grad, grad._version) for name, grad in present.items()}
        self._copies = {name: grad.detach().clone() for name, grad in present.items()} if self._keep_copies else {}

    def gradients(self) -> tuple[Mapping[str, Tensor] | None, Mapping[str, Tensor], bool]:
        """Return the raw gradient (None if it is lost), the gradient as it is now, and whether they may differ."""
        marks, copies = self._marks, self._copies
        self._marks, self._copies = {}, {}
        applied = {name: parameter.grad.detach() for name, parameter in self._parameters.items() if parameter.grad is not None}
        changed = self._uncounted or any(
            _changed(self._parameters[name].grad, grad, version) for name, (grad, version) in marks.items()
        )
        had_copies = self._keep_copies
        self._keep_copies = changed
        if not changed:
            return _dense(applied), _dense(applied), False
        return (_dense(copies) if had_copies else None), _dense(applied), True


def _smallest(parameters: list[nn.Parameter]) -> nn.Parameter:
    return parameters[0] if len(parameters) == 1 else min(parameters, key=nn.Parameter.numel)


def _mark(parameter: nn.Parameter) -> tuple[nn.Parameter, Tensor | None, int]:
    grad = parameter.grad
    return parameter, grad, -1 if grad is None else grad._version


def _changed(now: Tensor | None, before: Tensor | None, version: int) -> bool:
    return now is not before or (now is not None and now._version != version)


def _dense(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: grad.to_dense() if grad.is_sparse else part(grad) for name, grad in gradients.items()}
