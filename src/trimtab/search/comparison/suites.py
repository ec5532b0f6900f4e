"""Suites: comparisons with a name, made of plans with fixed tasks, methods and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from trimtab.core.errors import unknown_name
from trimtab.search.comparison.plan import Plan
from trimtab.search.methods.base import Rhythm, parse_methods

__all__ = ["SUITES", "Suite", "suite_plans"]

_ONE_RUN = (
    "trimtab,zero,reference,constant,cosine,one-cycle,manual,lr-finder,race,shuffled,"
    "greedy,prodigy,schedule-free,dog"
)
_SEARCHES = (
    "random:1,random:2,random:4,random:8,random:16,grid:4,grid:8,grid:16,"
    "hyperopt:1,hyperopt:2,hyperopt:4,hyperopt:8,hyperopt:16,"
    "optuna:1,optuna:2,optuna:4,optuna:8,optuna:16"
)
_BUDGETS = "trimtab:2,trimtab:4,trimtab:8"
_RAY = "asha:2,asha:4,asha:8,asha:16,pbt:4,pbt:8,pbt:16,pb2:4,pb2:8,pb2:16"
_SIMULATED = ("simulated/quadratic", "simulated/mlp", "simulated/transformer")
_FACTORS = (0.01, 0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Suite:
    """A named comparison.

    Attributes:
        what: One line for a list.
        parts: Tasks, variant, methods, number of seeds and start factors (None: drawn) of each.
    """

    what: str
    parts: tuple[tuple[tuple[str, ...], str | None, str, int, tuple[float, ...] | None], ...]


SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        "fast": Suite(
            "3 simulated tasks and 1 tiny real one; the simulated ones took 3 minutes on 2 cores",
            (
                (_SIMULATED, None, f"{_ONE_RUN},open-loop,{_BUDGETS},{_SEARCHES}", 5, _FACTORS),
                (
                    ("tabular/letters",),
                    "tiny",
                    f"{_ONE_RUN},open-loop,{_BUDGETS},{_SEARCHES}",
                    5,
                    _FACTORS,
                ),
                (_SIMULATED[:1], None, _RAY, 3, None),
            ),
        ),
        "real": Suite(
            "4 real tasks in their small variant, for a night",
            (
                (
                    ("vision/solar-cells", "vision/animals", "text/newsgroups", "tabular/adult"),
                    "small",
                    f"{_ONE_RUN},{_SEARCHES}",
                    3,
                    None,
                ),
                (("tabular/adult",), "small", _RAY, 3, None),
            ),
        ),
    }
)
"""The suites by name."""


def suite_plans(
    name: str, *, rhythm: Rhythm, policy: tuple[str, str], first_seed: int = 0
) -> list[Plan]:
    """Return the plans of a suite.

    Args:
        name: A key of `SUITES`.
        rhythm: When every run is validated.
        policy: File of the policy, and digits that name its content.
        first_seed: The seeds count up from here.

    Raises:
        UnknownNameError: There is no such suite, or one of its methods is not registered.
    """
    if name not in SUITES:
        raise unknown_name("suite", name, SUITES)
    plain = Plan((), (), (), rhythm=rhythm, policy=policy)
    return [
        replace(
            plain,
            tasks=tasks,
            variant=variant,
            methods=parse_methods(methods),
            seeds=tuple(range(first_seed, first_seed + seeds)),
            starts=starts,
        )
        for tasks, variant, methods, seeds, starts in SUITES[name].parts
    ]
