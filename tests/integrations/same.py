"""Whether two trainings ended the same, to the bit."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Outcome:
    """What a training leaves behind."""

    model: nn.Module
    random_state: Tensor = field(default_factory=torch.get_rng_state)

    def assert_same(self, other: Outcome) -> None:
        """Compare weights, buffers, modes, hooks and the state of the random numbers."""
        mine, others = self.model.state_dict(), other.model.state_dict()
        assert mine.keys() == others.keys()
        for name, value in mine.items():
            assert torch.equal(value, others[name]), name
        assert torch.equal(self.random_state, other.random_state)
        for (name, module), (_, twin) in zip(self.model.named_modules(), other.model.named_modules(), strict=True):
            assert module.training == twin.training, name
            assert len(module._forward_hooks) == len(twin._forward_hooks), name
            assert len(module._forward_pre_hooks) == len(twin._forward_pre_hooks), name
