"""GreedyLR: a rule that raises and lowers the learning rate, by Transformers' own scheduler."""

from __future__ import annotations

import numpy as np

from trimtab.search.methods.base import Assignment, Method, Outcome
from trimtab.search.methods.trial import Trial

__all__ = ["GREEDY"]

# As in the scheduler's own example of fine-tuning, at an evaluation every twentieth of the run;
# its smallest rate is there a five-hundredth of the start. The class's default, 1e-3, would lift
# most fine-tuning runs far above where they start.
_PATIENCE, _FACTOR, _MIN_SHARE = 2, 0.9, 1 / 500


def _greedy(assignment: Assignment) -> Outcome:
    import torch
    from transformers import GreedyLR

    law, start = assignment.law, assignment.start
    rate = float(start.values[law.rate])
    # The scheduler only reads and writes the learning rate of the optimiser that it is given.
    holder = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler = GreedyLR(
        holder,
        mode="min",
        patience=_PATIENCE,
        factor=_FACTOR,
        min_lr=_MIN_SHARE * rate,
        max_lr=max(1.0, rate),
        eps=0.0,  # its 1e-8 is a change in absolute terms, and would freeze small rates
    )
    trial = Trial(assignment.task, seed=assignment.seed, rhythm=assignment.rhythm)
    values = dict(start.values)
    flat = np.ones(assignment.task.total_steps)
    while not trial.finished:
        values[law.rate] = float(holder.param_groups[0]["lr"])
        trial.follow(values, flat, rate=law.rate)
        if not trial.lost:
            scheduler.step(trial.loss)
    return Outcome((trial.result(start),), 0)


GREEDY = Method(
    "greedy",
    "GreedyLR: up while validation improves, down while it does not",
    _greedy,
    needs=("torch", "transformers"),
)
