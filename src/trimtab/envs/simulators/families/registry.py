"""The families of simulated fine-tuning runs by name, with all hyperparameters or only some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

from trimtab.core.errors import unknown_name
from trimtab.core.hyperparameters import Hyperparameter
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


@dataclass(frozen=True)
class Narrowed:
    """A family that offers ``names`` only, in that order; everything else is the family's own.

    Attributes:
        family: The whole family; hashable.
        names: Hyperparameters that are steered.
    """

    family: Any
    names: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        """Return what the whole family has."""
        return getattr(self.family, name)

    @property
    def hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """Those that are steered."""
        offered = {item.name: item for item in self.family.hyperparameters}
        return tuple(offered[name] for name in self.names)

    def advance(
        self, variant: int, bank: Any, draw: Any, state: Any, values: Any, *rest: Any
    ) -> Any:
        """Train one window with the others at their default; see `Family.advance`."""
        import jax.numpy as jnp

        given = {name: values[index] for index, name in enumerate(self.names)}
        whole = [given.get(h.name, jnp.float32(h.default)) for h in self.family.hyperparameters]
        return self.family.advance(variant, bank, draw, state, jnp.stack(whole), *rest)


def narrowed(family: Family, names: Sequence[str]) -> Family:
    """Return the family with only these hyperparameters offered.

    Raises:
        UnknownNameError: The family lacks one of them.
    """
    offered = [item.name for item in family.hyperparameters]
    for name in names:
        if name not in offered:
            raise unknown_name("hyperparameter", name, offered)
    if tuple(names) == tuple(offered):
        return family
    made: Any = Narrowed(family, tuple(names))
    return made
