"""What holds from step to step: which modules use trainable parameters by themselves, under which names, and by which rule.

Looking this up takes longer than measuring a small layer, so it is done once and checked at every step: a module or a parameter
that was replaced shows by its identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from cockpit_lite.probes.per_sample.rules import Rule, rule_of
from cockpit_lite.sharded import any_is_sharded


@dataclass(frozen=True, eq=False)
class Owner:
    """A module that uses trainable parameters by itself, not through a child that is called.

    Attributes:
        module: The module.
        names: Name in the module -> name of the parameter.
        parameters: Name in the module -> the parameter.
        rule: The rule that covers all of them, if there is one.
        repeats: Whether covering them takes a repetition of the call, which is compared with what the user's returned.
    """

    module: nn.Module
    names: Mapping[str, str]
    parameters: Mapping[str, nn.Parameter]
    rule: Rule | None
    repeats: bool


@dataclass(frozen=True)
class Watched:
    """Ids of the modules whose calls the probe looks at: a hook that any other module calls is through after one look.

    Attributes:
        begins: Those of which the beginning of a call says something: they may call other modules, or draw random numbers.
        ends: Those of which the end says something.
        simple: Those that call no other module.
        around: Those whose calls are remembered for the sake of parameters within.
        repeated: Those whose calls may have to be repeated with the random numbers that they draw.
        norms: Batch normalisations.
        with_statistics: Normalisations whose own statistics a rule can use.
    """

    begins: frozenset[int]
    ends: frozenset[int]
    simple: frozenset[int]
    around: frozenset[int]
    repeated: frozenset[int]
    norms: frozenset[int]
    with_statistics: frozenset[int]


class ModuleTable:
    """The modules of a model.

    Args:
        model: The model.
        parameters: The trainable parameters by name.

    Attributes:
        modules: All of them by id.
        owners: Those that use trainable parameters by themselves, by id.
        remarkable: Ids of the owners and of all others whose call says something about the step: those with state of their own.
        has_buffers: Whether recomputing a part of the model might change its state, as batch normalisation's running statistics.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self._model = model
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        # FSDP changes them in its modules during every call, and back; they are looked at while it has not begun
        self._parameters_change = not any_is_sharded(parameters.values())
        self._views: list[Iterable[object]] = []  # of the dictionaries that hold them
        self._seen: list[int] = []
        self.modules: dict[int, nn.Module] = {}
        self.owners: dict[int, Owner] = {}
        self.remarkable: set[int] = set()
        self.has_buffers = False

    def watched(self, wants: Callable[[nn.Module], bool]) -> Watched:
        """Return which modules to look at.

        Args:
            wants: Whether to remember the calls of a module for the sake of parameters within.
        """
        around = {key for key, module in self.modules.items() if wants(module)}
        ends = self.remarkable | around
        simple = {key for key in ends if rule_of(self.modules[key]) is not None and not self.modules[key]._modules}
        by_rule = {key for key, owner in self.owners.items() if owner.rule is not None} - around
        repeated = {key for key in self.owners.keys() | around if _may_be_repeated(self.modules[key], key in by_rule)}
        norms = {key for key in ends if isinstance(self.modules[key], nn.modules.batchnorm._BatchNorm)}
        with_statistics = norms | {key for key in ends if type(self.modules[key]) is nn.LayerNorm}
        begins = (ends - simple) | repeated | {id(self._model)}
        return Watched(*map(frozenset, (begins, ends, simple, around, repeated, norms, with_statistics)))

    def refresh(self) -> bool:
        """Look at the model again; return whether anything in it was replaced."""
        if self._seen and self._seen == self._look():
            return False
        modules = {id(self._model): self._model}
        waiting = [self._model]
        for module in waiting:
            for child in module._modules.values():
                if child is not None and id(child) not in modules:
                    modules[id(child)] = child
                    waiting.append(child)
        self.modules = modules
        self._views = [module._modules.values() for module in waiting]
        if self._parameters_change:
            self._views += [module._parameters.values() for module in waiting]
        self._seen = self._look()
        owners = {key: self._owner(module) for key, module in modules.items()}
        self.owners = {key: owner for key, owner in owners.items() if owner is not None}
        with_buffers = {key for key, module in modules.items() if any(buffer is not None for buffer in module._buffers.values())}
        norms = {key for key, module in modules.items() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
        self.remarkable = self.owners.keys() | with_buffers | norms
        self.has_buffers = bool(with_buffers)
        return True

    def _look(self) -> list[int]:
        """Return the identities of all submodules and parameters; in a model of many layers every operation for each counts."""
        return list(map(id, chain.from_iterable(self._views)))

    def _owner(self, module: nn.Module) -> Owner | None:
        if isinstance(module, ParametrizationList):  # the parametrisation never sees the samples
            return None
        used = dict(module._parameters)
        if is_parametrized(module):  # a parametrised weight belongs to the module it is the weight of
            used.update({f"parametrizations.{name}": p for name, p in module.parametrizations.named_parameters()})  # type: ignore[union-attr]
        if isinstance(module, nn.MultiheadAttention):  # it never calls its output projection, it takes the weights
            used.update({f"out_proj.{name}": p for name, p in module.out_proj._parameters.items()})
        own = {local: p for local, p in used.items() if p is not None and id(p) in self._names}
        if not own:
            return None
        rule = rule_of(module)
        if rule is not None and not own.keys() <= set(rule.names(module)):
            rule = None
        names = {local: self._names[id(parameter)] for local, parameter in own.items()}
        return Owner(module, names, own, rule, rule is None or rule.repeats)


def _may_be_repeated(module: nn.Module, by_rule: bool) -> bool:
    """Whether a call may have to be repeated with the random numbers that it draws."""
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):  # its rule repeats it, if it has dropout
        return True
    return not by_rule and next(module.parameters(), None) is not None
