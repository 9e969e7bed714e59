"""MultiheadAttention: input projections, attention, output projection, in one call that shows none of them.

The probe reads the projections off the graph where it can (:mod:`cockpit_lite.probes.per_sample.projections`). Elsewhere, and
under plain BackPACK, the attention itself, which has no parameters, is repeated between the projections, which gives the input of
the output projection and, going backward, the gradients behind the input projections. Dropout of the attention weights is drawn
again with the random numbers of the user's call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from cockpit_lite.probes.per_sample.forms import Dense, Form, OuterProducts, accurate
from cockpit_lite.probes.per_sample.rules.rule import NoRule, Rule, agrees, random_numbers_of, require_whole


class PerSampleAttention(Rule):
    """All parameters from one repetition of the call."""

    repeats: ClassVar[bool] = True

    def names(self, module: Any) -> tuple[str, ...]:
        """The output projection is a child that is never called."""
        own = tuple(name for name, parameter in module._parameters.items() if parameter is not None)
        return own if module.bias_k is not None else (*own, "out_proj.weight", "out_proj.bias")

    def batch_axis(self, module: Any) -> int:
        """The second axis, if not asked otherwise."""
        return 0 if module.batch_first else 1

    def measure_all(
        self, ext: Any, module: Any, names: Iterable[str], g_inp: Any, g_out: Sequence[Tensor | None]
    ) -> dict[str, Any]:
        """Repeat the attention and read the gradients at the projections."""
        if module.bias_k is not None:
            raise NoRule("MultiheadAttention with add_bias_kv=True")
        if module.input0.dim() != 3:
            raise NoRule("MultiheadAttention without a batch")
        forms = _from_projections(module) or self._forms(module, g_out)
        return {name: ext.measure(forms[name], module.get_parameter(name)) for name in names}

    def _forms(self, module: Any, g_out: Sequence[Tensor | None]) -> dict[str, Form]:
        require_whole(module, module.parameters())
        arguments: list[Any] = [getattr(module, f"input{position}", default) for position, default in enumerate(_DEFAULTS)]
        key_padding_mask, need_weights, attn_mask, average, causal = arguments[3:]
        sources = [accurate(tensor) for tensor in arguments[:3]]
        if module.batch_first:
            sources = [tensor.transpose(0, 1) for tensor in sources]
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        separate = not module._qkv_same_embed_dim
        weights = [accurate(getattr(module, name)) for name in names] if separate else accurate(module.in_proj_weight).chunk(3)
        biases = [None] * 3 if module.in_proj_bias is None else accurate(module.in_proj_bias).chunk(3)
        projected = [functional.linear(*triple) for triple in zip(sources, weights, biases, strict=True)]
        with torch.enable_grad(), random_numbers_of(module):
            projected = [tensor.requires_grad_() for tensor in projected]
            if need_weights or module.add_zero_attn:
                attended, attention = _through_torch(
                    module, projected, key_padding_mask, need_weights, attn_mask, average, causal
                )
            else:
                attended, attention = _fused(module, projected, key_padding_mask, attn_mask, causal), None
        out_weight = accurate(module.out_proj.weight)
        out_bias = None if module.out_proj.bias is None else accurate(module.out_proj.bias)
        if not _agrees_along_one_direction(attended.detach(), out_weight, out_bias, module):
            raise NoRule("the call of MultiheadAttention could not be repeated")
        outputs: list[Tensor] = []
        cotangents: list[Tensor] = []
        delta = torch.zeros_like(attended)
        if g_out[0] is not None:
            delta = accurate(g_out[0])
            delta = delta.transpose(0, 1) if module.batch_first else delta
            outputs, cotangents = [attended], [delta @ out_weight]
        if len(g_out) > 1 and g_out[1] is not None and attention is not None:
            outputs, cotangents = [*outputs, attention], [*cotangents, g_out[1].to(attention.dtype)]
        found = torch.autograd.grad(outputs, projected, cotangents, allow_unused=True)
        deltas = [torch.zeros_like(p) if d is None else d for d, p in zip(found, projected, strict=True)]
        forms: dict[str, Form] = {
            "out_proj.weight": OuterProducts(_positions(attended.detach()), _positions(delta), out_weight.shape),
            "out_proj.bias": Dense(delta.sum(0)),
            "in_proj_bias": Dense(torch.cat([delta.sum(0) for delta in deltas], -1)),
        }
        if separate:
            for name, source, at, weight in zip(names, sources, deltas, weights, strict=True):
                forms[name] = OuterProducts(_positions(source), _positions(at), weight.shape)
        else:
            longest = max(len(tensor) for tensor in sources)
            together = [torch.cat([_positions(_padded(tensor, longest)) for tensor in group], 1) for group in (sources, deltas)]
            forms["in_proj_weight"] = OuterProducts(together[0], together[1], module.in_proj_weight.shape)
        return forms


def _from_projections(module: Any) -> dict[str, Form] | None:
    """Return the forms from what the probe has read off the graph; None if that is not everything."""
    projections = module.__dict__.get("projections")
    samples = module.input0.shape[module.batch_first ^ 1]
    if not projections or any(projection.delta is None for projection in projections.values()):
        return None
    forms: dict[str, Form] = {}
    weights = {"in_proj": (module.in_proj_weight, "in_proj_weight", "in_proj_bias")}
    weights["out_proj"] = (module.out_proj.weight, "out_proj.weight", "out_proj.bias")
    for name, (weight, weight_name, bias_name) in weights.items():
        inputs, delta = (
            accurate(rows).unflatten(0, (-1, samples)) for rows in (projections[name].inputs, projections[name].delta)
        )
        forms[weight_name] = OuterProducts(_positions(inputs), _positions(delta), weight.shape)
        forms[bias_name] = Dense(delta.sum(0))
    return forms


def _through_torch(
    module: Any,
    projected: Sequence[Tensor],
    key_padding_mask: Tensor | None,
    need_weights: bool,
    attn_mask: Tensor | None,
    average: bool,
    causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return attended values and attention weights by torch's own function, with the identity for every projection."""
    identity = torch.eye(module.embed_dim, dtype=projected[0].dtype, device=projected[0].device)
    return functional.multi_head_attention_forward(
        projected[0],
        projected[1],
        projected[2],
        embed_dim_to_check=module.embed_dim,
        num_heads=module.num_heads,
        in_proj_weight=None,
        in_proj_bias=None,
        bias_k=None,
        bias_v=None,
        add_zero_attn=module.add_zero_attn,
        dropout_p=module.dropout,
        out_proj_weight=identity,
        out_proj_bias=None,
        training=module.training,
        key_padding_mask=_mask(key_padding_mask, projected[0]),
        need_weights=need_weights,
        attn_mask=_mask(attn_mask, projected[0]),
        use_separate_proj_weight=True,
        q_proj_weight=identity,
        k_proj_weight=identity,
        v_proj_weight=identity,
        average_attn_weights=average,
        is_causal=causal,
    )


def _fused(
    module: Any, projected: Sequence[Tensor], key_padding_mask: Tensor | None, attn_mask: Tensor | None, causal: bool
) -> Tensor:
    """Return the attended values as torch's function calculates them when no weights are wanted, without the projections."""
    heads, samples = module.num_heads, projected[0].shape[1]
    query, key, value = (tensor.unflatten(2, (heads, -1)).permute(1, 2, 0, 3) for tensor in projected)
    causal = causal and key_padding_mask is None
    mask = None if causal or attn_mask is None else _additive(attn_mask, query)
    if mask is not None and mask.dim() == 3:
        mask = mask.unflatten(0, (samples, heads))
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, query)[:, None, None]
        mask = padding.expand(-1, heads, -1, -1) if mask is None else mask + padding
    dropout = module.dropout if module.training else 0.0
    attended = functional.scaled_dot_product_attention(query, key, value, mask, dropout, causal)
    return attended.permute(2, 0, 1, 3).flatten(2)


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask that is added to the attention scores; True in a boolean one means "not allowed"."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(mask, float("-inf"))


def _agrees_along_one_direction(attended: Tensor, weight: Tensor, bias: Tensor | None, module: Any) -> bool:
    """Compare with the user's output along one direction of the features: no second output projection is needed for that."""
    if module.output is None:
        return True
    direction = torch.linspace(-1, 1, len(weight), dtype=weight.dtype, device=weight.device).cos()
    repeated = attended @ (direction @ weight) + (0.0 if bias is None else direction @ bias)
    return agrees(repeated.transpose(0, 1) if module.batch_first else repeated, accurate(module.output) @ direction)


#: Defaults of the arguments of ``MultiheadAttention.forward``, in its order.
_DEFAULTS = (None, None, None, None, True, None, True, False)


def _mask(mask: Tensor | None, like: Tensor) -> Tensor | None:
    return mask if mask is None or mask.dtype == torch.bool else mask.to(like.dtype)


def _positions(tensor: Tensor) -> Tensor:
    """Return (N, 1, T, E) from (T, N, E)."""
    return tensor.transpose(0, 1)[:, None]


def _padded(tensor: Tensor, length: int) -> Tensor:
    """Queries and keys may be of different number; positions of zeros change nothing."""
    return functional.pad(tensor, (0, 0, 0, 0, 0, length - len(tensor)))
