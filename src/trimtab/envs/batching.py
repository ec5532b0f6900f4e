"""Decisions of many runs at once, and what can be batched at all."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

from trimtab.core.carry import Carry
from trimtab.core.control import apply, observe
from trimtab.core.errors import MissingDependencyError, SpecError
from trimtab.core.spec import ControlSpec
from trimtab.envs.settings import EnvSettings

__all__ = ["decisions_of", "require_batchable"]


def require_batchable(settings: EnvSettings, render_mode: str | None) -> None:
    """Raise unless the task and the reward can be compiled and run in batches.

    Raises:
        SpecError: The task is no simulated family, the reward is a function, or pictures are
            wanted.
        MissingDependencyError: JAX is not installed.
    """
    remedy = 'use gymnasium.make_vec(..., vectorization_mode="sync")'
    if not hasattr(settings.made, "family"):
        raise SpecError(
            f"task {settings.made.name!r} is no simulated family and cannot be batched; {remedy}"
        )
    if settings.reward_function is not None:
        raise SpecError(
            f"reward: {settings.reward!r} is a function and cannot be compiled; {remedy}, "
            "or take a reward by name"
        )
    if render_mode is not None:
        raise SpecError(f"render_mode: {render_mode!r} is not drawn in batches; {remedy}")
    try:
        import jax  # noqa: F401 - asked for here, where the error can say what to do
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"batches are compiled by the package 'jax', which is not installed; "
            f"pip install 'trimtab[learn]', or {remedy}"
        ) from error


@lru_cache(maxsize=64)
def decisions_of(spec: ControlSpec) -> Mapping[str, Any]:
    """Return `observe` and `apply` for N runs at once, and a choice between two memories."""
    import jax
    import jax.numpy as jnp

    def choose(flag: Any, first: Carry, second: Carry) -> Carry:
        def one(flag: Any, first: Carry, second: Carry) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(flag, a, b), first, second)

        chosen: Carry = jax.vmap(one)(flag, first, second)
        return chosen

    return {
        "observe": jax.jit(jax.vmap(partial(observe, spec, xp=jnp))),
        "apply": jax.jit(jax.vmap(partial(apply, spec, xp=jnp))),
        "choose": jax.jit(choose),
    }
