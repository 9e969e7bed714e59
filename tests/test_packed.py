"""Copies that lie one behind the other are what single copies are."""

from __future__ import annotations

import torch
from torch import Tensor

from cockpit_lite.packed import Packed, difference, flats, packed
from cockpit_lite.probes.last_step import inner_product

SHAPES = {"a": (3, 4), "b": (), "c": (5,), "nothing": (0, 2)}


def drawn(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def test_a_copy_of_its_own() -> None:
    tensors = drawn(0)
    tensors["a"] = tensors["a"].T.contiguous().T  # other strides
    copies = packed(tensors)
    assert isinstance(copies, Packed)
    assert list(copies) == list(tensors) and len(copies) == 4
    assert "c" in copies and "d" not in copies and copies.get("d") is None
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.fill_(7)
    assert all(torch.equal(copies[name], expected[name]) for name in expected)


def test_one_tensor_is_copied_too() -> None:
    tensor = torch.ones(3)
    copies = packed({"a": tensor})
    tensor.zero_()
    assert copies["a"].tolist() == [1, 1, 1]


def test_tensors_of_several_kinds_are_copied_one_by_one() -> None:
    tensors = {**drawn(0), "double": torch.ones(2, dtype=torch.float64)}
    copies = packed(tensors)
    assert isinstance(copies, dict)
    tensors["double"].zero_()
    assert copies["double"].tolist() == [1, 1]
    moved = difference(tensors, copies)
    assert moved["double"].tolist() == [-1, -1] and not moved["a"].any()
    assert packed({}) == {}


def test_differences_and_products() -> None:
    before, now = drawn(0), drawn(1)
    moved = difference(now, packed(before))
    assert isinstance(moved, Packed)
    expected = {name: now[name] - before[name] for name in now}
    assert all(torch.equal(moved[name], expected[name]) for name in expected)
    assert torch.allclose(inner_product(moved, packed(before)), inner_product(expected, before))


def test_what_does_not_correspond_is_told_apart() -> None:
    one = packed(drawn(0))
    backwards = packed(dict(reversed(drawn(0).items())))
    assert flats(one, backwards) is None
    assert flats(one, packed(drawn(0, torch.float64))) is None
    assert flats(one, drawn(0)) is None
    assert flats(one, packed(drawn(1))) is not None
