"""The parameters as modules see them while they are called, where FSDP has cut them.

The graph leads to them, and not to the parts that the optimizer knows; and they keep the gradient of a pass that is not exchanged
yet (``set_requires_gradient_sync(False)``), of which the parts show nothing. They are the same objects at every call.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.hooks import RemovableHandle

from cockpit_lite.curvature.forward_probe import has_compiled_parts, remove_hooks
from cockpit_lite.sharded import any_is_sharded, is_sharded


class WholeParameters:
    """Looks for them until the first backward pass begins; where nothing is sharded, not at all.

    Args:
        model: The model.

    Attributes:
        found: Those that were seen.
    """

    def __init__(self, model: nn.Module) -> None:
        self.found: list[nn.Parameter] = []
        self._seen: set[int] = set()
        self._modules: set[int] = set()
        self._handles: list[RemovableHandle] = []
        if any_is_sharded(model.parameters()) and not has_compiled_parts(model):
            self._modules = {id(module) for module in model.modules() if module._parameters}
            self._handles = [register_module_forward_hook(self._look)]

    def stop(self) -> None:
        """Look no more; idempotent."""
        if self._handles:
            remove_hooks(self._handles)
            self._handles = []

    def _look(self, module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in self._modules:
            for parameter in module._parameters.values():
                if parameter is not None and id(parameter) not in self._seen and not is_sharded(parameter):
                    self._seen.add(id(parameter))
                    self.found.append(parameter)
