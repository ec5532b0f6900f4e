"""Random runs of decisions, for the tests of the core."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from trimtab.core.carry import Carry, begin
from trimtab.core.control import Values, apply, n_discrete_actions, observe
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.spec import ControlSpec

EIGHT = (
    "lr",
    "weight_decay",
    "momentum",
    "dropout",
    "clip",
    "batch_size",
    "ema_decay",
    "label_smoothing",
)
TOTAL_STEPS = 200
REFERENCE = [min(1.0, (s + 1) / 10) * (1 - s / TOTAL_STEPS) for s in range(TOTAL_STEPS)]


def spec_of(width: int = 1, **fields: Any) -> ControlSpec:
    """Return a spec that steers the first ``width`` of `EIGHT`."""
    items = tuple(hyperparameter(name) for name in EIGHT[:width])
    return ControlSpec(hyperparameters=items, **fields)


def random_action(spec: ControlSpec, generator: np.random.Generator) -> np.ndarray:
    """Return an action that is drawn uniformly and restores in every fifth decision."""
    width = len(spec.hyperparameters)
    if spec.actions == "discrete":
        return np.asarray(generator.integers(n_discrete_actions(spec)))
    if spec.actions == "continuous":
        return generator.uniform(-1.0, 1.0, width + 1).astype(np.float32)
    return np.append(generator.integers(0, 7, width), int(generator.random() < 0.2))


def random_metrics(generator: np.random.Generator, decision: int, faults: float = 0.0) -> Metrics:
    """Return the metrics of a window; with ``faults``, values go missing or become infinite."""

    def seen(value: float) -> float:
        drawn = generator.random()
        return math.nan if drawn < faults else math.inf if drawn < 1.5 * faults else value

    loss = 2.3 * math.exp(-0.1 * decision)
    return Metrics(
        train_loss=seen(loss * generator.uniform(0.7, 1.3)),
        train_loss_first=seen(loss * generator.uniform(0.9, 1.5)),
        train_loss_change=seen(generator.normal(0.0, 0.2)),
        train_loss_std=seen(generator.uniform(0.01, 0.5)),
        val_loss=seen(loss * generator.uniform(0.5, 2.0)),
        reward_loss=seen(loss * generator.uniform(0.5, 2.0)),
        reference_loss=seen(loss),
        grad_norm=seen(10 ** generator.uniform(-2.0, 2.0)),
        grad_cosine=seen(generator.uniform(-1.0, 1.0)),
        update_ratio=seen(10 ** generator.uniform(-4.0, -1.0)),
        steps=10.0,
        charge=seen(320.0),
        finite=float(generator.random() >= faults),
        alignment=math.sin(7.0 * decision),
        alignment_mean=math.nan if decision % 5 == 0 else math.cos(3.0 * decision),
        distance_ratio=10.0 ** (decision % 7 - 3) * (-1.0) ** decision,
        straightness=1.0 / (1.0 + decision),
    )


@dataclass
class Episode:
    """Everything that a run of decisions gave, decision by decision."""

    spec: ControlSpec
    carries: list[Carry] = field(default_factory=list)
    observations: list[Any] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    values: list[Values] = field(default_factory=list)
    reasons: list[Any] = field(default_factory=list)


def run_episode(
    spec: ControlSpec,
    actions: list[Any],
    metrics: list[Metrics],
    *,
    xp: Any = np,
    guarded: bool = True,
    budget: float = 6400.0,
    observed: Any = None,
    applied: Any = None,
) -> Episode:
    """Return what one run gives: ``metrics[0]`` before step 1, then an action and metrics in turn.

    ``observed`` and ``applied`` stand in for `observe` and `apply`, where these are compiled.
    """
    observed = observed or (lambda carry, seen: observe(spec, carry, seen, xp))
    applied = applied or (lambda carry, action: apply(spec, carry, action, xp))
    carry = begin(spec, TOTAL_STEPS, reference=REFERENCE, guarded=guarded, budget=budget)
    episode = Episode(spec)

    def see(seen: Metrics) -> None:
        nonlocal carry
        carry, observation, earned = observed(carry, seen)
        episode.carries.append(carry)
        episode.observations.append(observation)
        episode.rewards.append(float(earned))

    see(metrics[0])
    for action, seen in zip(actions, metrics[1:], strict=True):
        carry, values, reason = applied(carry, action)
        episode.carries.append(carry)
        episode.values.append(values)
        episode.reasons.append(reason)
        see(seen)
    return episode


def drawn_episode(
    spec: ControlSpec, seed: int, *, decisions: int = 20, faults: float = 0.0, **options: Any
) -> Episode:
    """Return a run of random actions and metrics; the initial validation loss is always known."""
    generator = np.random.default_rng(seed)
    actions = [random_action(spec, generator) for _ in range(decisions)]
    metrics = [random_metrics(generator, k, faults) for k in range(decisions + 1)]
    metrics[0] = metrics[0]._replace(val_loss=2.3, finite=1.0)
    return run_episode(spec, actions, metrics, **options)


ANY_FLOAT = st.floats(width=32) | st.sampled_from([0.0, math.nan, math.inf, -math.inf, 1e-30, 3e38])
ANY_METRICS = st.builds(
    Metrics,
    *[ANY_FLOAT] * 12,
    st.sampled_from([0.0, 1.0]),
    *[ANY_FLOAT] * (len(Metrics._fields) - 13),
)
"""Metrics of any value whatever."""

WIDTHS = st.sampled_from([1, 2, 8])
