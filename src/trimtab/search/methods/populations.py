"""Methods by Ray Tune: ASHA and population-based training. Ray is loaded when one is run."""

from __future__ import annotations

from collections.abc import Callable

from trimtab.search.methods.base import Assignment, Method, Outcome


def _by_ray(scheduler: str) -> Callable[[Assignment], Outcome]:
    def run(assignment: Assignment) -> Outcome:
        from trimtab.search.methods.ray_tune import run_by_ray

        return run_by_ray(scheduler, assignment)

    return run


ASHA = Method(
    "asha",
    "Ray Tune's asynchronous successive halving of random starts",
    _by_ray("asha"),
    least=2,
    most=None,
    uses_start=False,
    needs=("ray",),
    alone=True,
)
PBT = Method(
    "pbt",
    "Ray Tune's population-based training",
    _by_ray("pbt"),
    least=4,
    most=None,
    uses_start=False,
    needs=("ray",),
    alone=True,
)
PB2 = Method(
    "pb2",
    "Ray Tune's population-based bandits",
    _by_ray("pb2"),
    least=4,
    most=None,
    uses_start=False,
    needs=("ray", "sklearn"),
    alone=True,
)
