"""The families of simulated fine-tuning runs by name."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from trimtab.core.errors import unknown_name
from trimtab.envs.simulators.family import Family, FamilyOptions

_PLACES = {
    "simulated/mlp": ("mlp", "mlp_family"),
    "simulated/transformer": ("transformer", "transformer_family"),
    "simulated/cnn": ("cnn", "cnn_family"),
    "simulated/wide": ("wide", "wide_family"),
}

FAMILIES: tuple[str, ...] = tuple(_PLACES)
"""Every name that `make_family` knows."""


def make_family(name: str, options: FamilyOptions | None = None) -> Family:
    """Return a family by name; JAX is imported here and not before.

    Raises:
        UnknownNameError: There is no such family, or it lacks a hyperparameter asked for.
    """
    if name not in _PLACES:
        raise unknown_name("family", name, FAMILIES)
    module, function = _PLACES[name]
    make = getattr(import_module(f"trimtab.envs.simulators.families.{module}"), function)
    return cast(Family, make(options or FamilyOptions()))
