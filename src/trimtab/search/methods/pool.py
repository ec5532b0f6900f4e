"""Methods that choose from the task's pool of reference runs: chance and a grid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from trimtab.search.methods.base import Assignment, Method, Outcome, SingleRun, select
from trimtab.search.methods.starts import Range, generator_for


def _random(assignment: Assignment) -> Outcome:
    """Return the best of n runs drawn from the pool without replacement, by the seed."""
    pool = assignment.context.pool
    generator = generator_for("random", assignment.seed)
    drawn = generator.permutation(len(pool))[: assignment.budget]
    return select(assignment.task, [pool[place] for place in drawn])


def grid_levels(budget: int, dimensions: int) -> list[int]:
    """Return how many points each dimension of a grid gets, the first one most.

    The product is the largest that a budget allows with levels as even as can be.

    >>> grid_levels(8, 1), grid_levels(8, 2), grid_levels(3, 2)
    ([8], [4, 2], [3, 1])
    """
    if dimensions == 1:
        return [budget]
    last = int(budget ** (1 / dimensions) + 1e-9)
    return [*grid_levels(budget // last, dimensions - 1), last]


def nearest_runs(
    pool: Sequence[SingleRun], ranges: dict[str, Range], levels: Sequence[int]
) -> list[int]:
    """Return, for each point of a grid, the place of the pool's nearest run, none twice.

    Points lie in the middle of equal cells of the ranges, on the log scale where a range is one.
    """
    have = np.array([[ranges[name].share_of(run.start[name]) for name in ranges] for run in pool])
    axes = [(np.arange(count) + 0.5) / count for count in levels]
    left = set(range(len(pool)))
    chosen = []
    for point in product(*axes):
        order = sorted(left)
        distance = ((have[order] - np.array(point)) ** 2).sum(axis=1)
        chosen.append(order[int(np.argmin(distance))])
        left.discard(chosen[-1])
    return chosen


def _grid(assignment: Assignment) -> Outcome:
    """Return the best of the pool's runs that lie nearest to a grid."""
    pool, ranges = assignment.context.pool, assignment.starts.ranges()
    rate = assignment.starts.rate
    ordered = {rate: ranges[rate]} | ranges
    levels = grid_levels(assignment.budget, len(ordered))
    return select(assignment.task, [pool[place] for place in nearest_runs(pool, ordered, levels)])


RANDOM = Method(
    "random",
    "the best of n reference runs from random starts",
    _random,
    most=None,
    uses_start=False,
    needs="pool",
)
GRID = Method(
    "grid",
    "the best of n reference runs on a grid of starts",
    _grid,
    most=None,
    uses_start=False,
    needs="pool",
)
