"""Real model families at a small size, of whichever of the three packages are installed (extra ``models``)."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from tests.zoo import Architecture

PACKAGES = ("torchvision", "timm", "transformers")

#: The packages that are not installed.
MISSING = tuple(package for package in PACKAGES if find_spec(package) is None)

#: Name of the package and of the family -> the family. Built like the architectures of the zoo.
FAMILIES: dict[str, Architecture] = {
    name: family
    for package in PACKAGES
    if package not in MISSING
    for name, family in import_module(f"tests.models.{package}_families").FAMILIES.items()
}
