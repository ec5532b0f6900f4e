"""Methods by Ray Tune: ASHA and population-based training. Ray is loaded when one is run."""

from __future__ import annotations

from trimtab.search.methods.base import Assignment, Method, Outcome


def _by_ray(name: str, what: str, *, least: int, requires: tuple[str, ...] = ("ray",)) -> Method:
    def run(assignment: Assignment) -> Outcome:
        from trimtab.search.methods.ray_tune import run_by_ray

        return run_by_ray(name, assignment)

    return Method(
        name, what, run, least=least, most=None, uses_start=False, requires=requires, alone=True
    )


ASHA = _by_ray("asha", "Ray Tune's asynchronous successive halving of random starts", least=2)
PBT = _by_ray("pbt", "Ray Tune's population-based training", least=4)
PB2 = _by_ray("pb2", "Ray Tune's population-based bandits", least=4, requires=("ray", "sklearn"))
