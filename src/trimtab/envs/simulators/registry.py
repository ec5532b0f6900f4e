"""The families of simulated fine-tuning runs by name."""

from __future__ import annotations

from typing import cast

from trimtab.core.errors import unknown_name
from trimtab.envs.simulators.family import Family, FamilyOptions

__all__ = ["FAMILIES", "make_family"]

FAMILIES: tuple[str, ...] = ("simulated/mlp", "simulated/transformer")
"""Every name that `make_family` knows."""


def make_family(name: str, options: FamilyOptions | None = None) -> Family:
    """Return a family by name; JAX is imported here and not before.

    Raises:
        UnknownNameError: There is no such family, or it lacks a hyperparameter asked for.
    """
    options = options or FamilyOptions()
    if name == "simulated/mlp":
        from trimtab.envs.simulators.mlp import mlp_family

        return cast(Family, mlp_family(options))
    if name == "simulated/transformer":
        from trimtab.envs.simulators.transformer import transformer_family

        return cast(Family, transformer_family(options))
    raise unknown_name("family", name, FAMILIES)
