"""How an engine is chosen by its name."""

from __future__ import annotations

from trimtab.core.errors import SpecError, unknown_name
from trimtab.search.engines.base import Engine, Resources
from trimtab.search.engines.local import LocalEngine
from trimtab.search.engines.ray import RayEngine

ENGINES: tuple[str, ...] = ("local", "ray")
"""The names that ``--engine`` takes."""


def make_engine(
    name: str,
    jobs: int,
    *,
    resources: Resources | None = None,
    address: str | None = None,
) -> Engine:
    """Return an engine by its name; workers begin when they are first needed.

    Args:
        name: One of `ENGINES`.
        jobs: Units at a time, at least 1.
        resources: What each unit is given.
        address: Of a running Ray cluster; None for one of its own.

    Raises:
        UnknownNameError: There is no such engine.
        SpecError: ``jobs`` is below 1, or an address was given to the local engine.
        MissingDependencyError: Ray is not installed.
    """
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    if jobs < 1:
        raise SpecError(f"jobs: {jobs!r} is not a whole number from 1; give the runs at a time")
    given = resources or Resources()
    if name == "ray":
        return RayEngine(jobs, resources=given, address=address)
    if address is not None:
        raise SpecError(f"address: {address!r} is for the Ray engine; add --engine ray")
    return LocalEngine(jobs, resources=given)
