"""Embedding and EmbeddingBag: every sample uses a few rows of a table."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from cockpit_lite.probes.per_sample.forms import Rows, accurate
from cockpit_lite.probes.per_sample.rules.rule import NoRule, Rule


def of_samples(per_sample: int, batch_size: int, device: torch.device) -> Tensor:
    """Return 0, 0, ..., 1, 1, ...: the sample of every entry when each has equally many."""
    return torch.arange(batch_size, device=device).repeat_interleave(per_sample)


class PerSampleEmbedding(Rule):
    """The output gradient goes to the rows that were looked up; the padding row gets none."""

    parameters = ("weight",)

    def trailing_axes(self, module: Any) -> tuple[int, int]:
        """All axes of the indices are alike."""
        return (0, 1)

    def weight(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """One entry a token."""
        indices = module.input0
        rows = indices.reshape(-1).long()
        values = accurate(g_out[0]).reshape(len(rows), -1)
        if module.padding_idx is not None:
            values = values.masked_fill((rows == module.padding_idx)[:, None], 0)
        if module.scale_grad_by_freq:
            values = values / torch.bincount(rows, minlength=module.num_embeddings)[rows][:, None]
        samples = of_samples(indices[0].numel(), indices.shape[0], rows.device)
        return ext.measure(Rows(samples, rows, values, indices.shape[0], module.weight.shape), module.weight)


class PerSampleEmbeddingBag(Rule):
    """A bag is one row of the output: a weighted sum or a mean of rows of the table."""

    parameters = ("weight",)
    repeats: ClassVar[bool] = True  # where a bag is a maximum, the generic rule does

    def weight(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """One entry an item of a bag."""
        if module.mode == "max":
            raise NoRule("EmbeddingBag with mode='max'")
        if module.scale_grad_by_freq:
            raise NoRule("EmbeddingBag with scale_grad_by_freq=True")
        indices, deltas = module.input0, accurate(g_out[0])
        weights = getattr(module, "input2", None)
        rows, batch_size = indices.reshape(-1).long(), deltas.shape[0]
        if indices.dim() == 2:
            samples = of_samples(indices.shape[1], batch_size, rows.device)
        else:
            starts = module.input1.long()[:batch_size]
            samples = torch.searchsorted(starts, torch.arange(len(rows), device=rows.device), right=True) - 1
        share = torch.ones(len(rows), dtype=deltas.dtype, device=rows.device)
        if weights is not None:
            share = weights.detach().reshape(-1).to(deltas.dtype)
        if module.padding_idx is not None:
            share = share * (rows != module.padding_idx)
        if module.mode == "mean":
            counted = torch.ones_like(share) if module.padding_idx is None else (rows != module.padding_idx).to(share.dtype)
            items = torch.zeros(batch_size, dtype=share.dtype, device=rows.device).index_add_(0, samples, counted)
            share = share / items[samples].clamp(min=1)
        values = deltas[samples] * share[:, None]
        return ext.measure(Rows(samples, rows, values, batch_size, module.weight.shape), module.weight)
