"""The columns of the table of trainers: what is claimed of one, and how it is shown.

Each takes a function that trains a tiny model with the real package, seen by a `Probe`, and
returns the run's summary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.trainers.probe import (
    BEST,
    DECISIONS,
    FAULT_AT,
    STEPS,
    STOP_AT,
    InterruptedRun,
    Probe,
    are_equal,
    weights,
)

Train = Callable[[Probe], Any]


def steered(train: Train) -> None:
    """The optimiser uses the rates of the record, and other ones than without a policy."""
    probe, plain = Probe(), Probe(policy=None)
    summary, unsteered = train(probe), train(plain)
    recorded = [row["lr"] for row in summary.schedule]
    assert summary.finished
    assert len(recorded) == len(probe.rates) == len(plain.rates) == STEPS
    reference = [row["lr"] for row in unsteered.schedule]
    assert any(
        abs(one - other) > 0.1 * other for one, other in zip(recorded, reference, strict=True)
    )
    for group in range(len(probe.rates[0])):
        # Groups keep the ratio of their peaks.
        ratio = plain.rates[1][group] / reference[1]
        used = [rates[group] for rates in probe.rates]
        assert used == pytest.approx([ratio * rate for rate in recorded], rel=1e-6)
    assert not are_equal(weights(probe.model), weights(plain.model))


def rescued(train: Train) -> None:
    """Weights that are not numbers take the run back to its best ones, and it goes on."""
    probe = Probe(fault_at=FAULT_AT)
    summary = train(probe)
    assert summary.finished
    assert summary.rollbacks == 1
    assert summary.spent_steps == STEPS
    before = [one for one in probe.validated if math.isfinite(one[0])]
    assert probe.after_fault is not None
    assert any(are_equal(probe.after_fault, kept) for _, kept in before)
    assert all(one.isfinite().all() for one in weights(probe.model).values())


def resumed(train: Train) -> None:
    """A run that is interrupted and gone on with ends as if nothing had been."""
    whole, first = Probe(), Probe(stop_at=STOP_AT)
    summary = train(whole)
    with pytest.raises(InterruptedRun):
        train(first)
    second = Probe(saved=first.saved)
    after = train(second)
    assert second.passes == whole.passes  # none of them for the second time
    assert after.schedule == summary.schedule
    assert are_equal(weights(second.model), weights(whole.model))


def validated(train: Train) -> None:
    """The validation runs before the first step and after each window."""
    probe = Probe()
    summary = train(probe)
    assert len(summary.decisions) == DECISIONS
    assert len(probe.validated) == DECISIONS + 1


def kept_best(train: Train) -> None:
    """The weights of the best validation are there in the end."""
    probe = Probe(rigged=True)
    summary = train(probe)
    losses = [loss for loss, _ in probe.validated]
    assert losses.index(min(losses)) == BEST
    assert summary.best["loss"] == pytest.approx(losses[BEST])
    assert are_equal(weights(probe.model), probe.validated[BEST][1])
    assert not are_equal(weights(probe.model), probe.validated[-1][1])


CLAIMS: dict[str, Callable[[Train], None]] = {
    "steered": steered,
    "rescued": rescued,
    "resumed": resumed,
    "validated": validated,
    "kept best": kept_best,
}

# What other people's packages say of each other is theirs; a warning of ours fails a test.
WARNINGS = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error::trimtab.core.errors.TrimtabWarning"),
]
