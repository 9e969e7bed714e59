"""What every sample of a step contributes to the loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.loss_head import Contributions, add_up, find_loss_heads, without_autocast
from cockpit_lite.probes.per_sample.probe import MicroBatch


class SampleLosses:
    """Takes the losses of a step's backward passes apart; nothing but one number a row is kept of them."""

    def __init__(self) -> None:
        self._passes: list[tuple[list[Contributions], Tensor] | NotMeasured] = []

    def before_backward(self, loss: Tensor, outputs: Sequence[Tensor]) -> None:
        """Take a loss apart while its graph is there.

        Args:
            loss: The root, a scalar with its graph.
            outputs: What the model has returned.
        """
        try:
            with torch.no_grad(), without_autocast(loss):
                found = [head.contributions() for head in find_loss_heads(loss, outputs, check=False)]
                # Whether they add up to the loss is looked at later, when the device has to be waited for anyway.
                self._passes.append((found, add_up([part.terms for part in found], loss)))
        except NotMeasured as reason:
            self._passes.append(reason)
        except Exception as error:
            self._passes.append(NotMeasured(f"the loss could not be taken apart ({type(error).__name__}: {error})"))

    def forget(self) -> None:
        """Forget the backward passes so far."""
        self._passes = []

    def by_sample(self, micro_batches: Sequence[MicroBatch]) -> Tensor:
        """Return what every sample contributed to the sum of all losses, shape (N,), in the order of the per-sample statistics.

        Args:
            micro_batches: The parts that the step's batch came in.

        Raises:
            NotMeasured: if it is not known.
        """
        flags: list[Tensor] = []
        losses: list[Tensor] = []
        for micro_batch in micro_batches:
            parts: list[Tensor] = []
            for number in micro_batch.backwards:
                found = self._passes[number]
                if isinstance(found, NotMeasured):
                    raise found
                contributions, flag = found
                flags.append(flag)
                parts += [part.by_sample(micro_batch.batch_size, micro_batch.axis) for part in contributions]
            losses.append(torch.stack(parts).sum(0) if len(parts) > 1 else parts[0])
        if not losses:
            raise NotMeasured("no backward pass reached a call of the model")
        if not bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all()):
            raise NotMeasured("a part of the loss is a constant, which belongs to no sample")
        return losses[0] if len(losses) == 1 else torch.cat(losses)
