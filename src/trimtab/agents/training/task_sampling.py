"""Which simulated runs an iteration of meta-training is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.agents.training.settings import FamilyShare, LearnSettings
from trimtab.agents.training.starts import Tuned, TunedRates, drawn_decades
from trimtab.core.errors import SpecError
from trimtab.core.hyperparameters import Hyperparameter
from trimtab.core.spec import ControlSpec
from trimtab.envs.simulators.batch import programs
from trimtab.envs.simulators.families.registry import make_family
from trimtab.envs.simulators.family import FamilyOptions
from trimtab.envs.simulators.narrowed import narrowed
from trimtab.envs.simulators.tasks import QUADRATIC, compiled_family

__all__ = [
    "Bucket",
    "Drawn",
    "all_buckets",
    "control_spec",
    "count_properties",
    "draw_iteration",
    "family_of",
]


def family_of(share: FamilyShare, spec_names: Sequence[str]) -> Any:
    """Return the family of a share, offering the hyperparameters that are steered; none: all."""
    options = {"hyperparameters": tuple(spec_names), **share.options}
    options["optimisers"] = tuple(options.get("optimisers", ()))
    options["hyperparameters"] = tuple(options["hyperparameters"]) or None
    if share.name == QUADRATIC:
        return narrowed(compiled_family(share.name), spec_names)
    return make_family(share.name, FamilyOptions(**options))


def control_spec(settings: LearnSettings, items: Sequence[Hyperparameter], k: int) -> ControlSpec:
    """Return the spec for runs of ``k`` decisions over a family's hyperparameters."""
    fields = {name: item for name, item in settings.spec.items() if name != "hyperparameters"}
    return ControlSpec(
        hyperparameters=tuple(items), decisions=k, **{"reward": "best-so-far", **fields}
    )


@dataclass(frozen=True)
class Bucket:
    """One shape bucket; family and programs are made when it is first drawn."""

    share: float
    begin: float
    item: FamilyShare
    names: tuple[str, ...]
    variant: int

    def load(self) -> tuple[Any, Any]:
        """Return the family and its compiled programs."""
        family = family_of(self.item, self.names)
        return family, programs(family, self.variant)


def all_buckets(settings: LearnSettings) -> list[Bucket]:
    """Return the shape buckets of a training.

    Raises:
        SpecError: None is drawn from the start.
    """
    names = tuple(settings.spec["hyperparameters"])
    buckets: list[Bucket] = []
    for item in settings.families:
        variants = item.variants or tuple(range(family_of(item, names).n_variants))
        share = item.share / len(variants)
        buckets += [Bucket(share, item.begin, item, names, variant) for variant in variants]
    if all(bucket.begin > 0 for bucket in buckets):
        raise SpecError("families: none begins at 0; let one be drawn from the start")
    return buckets


def count_properties(bucket: Bucket) -> int:
    """Return how many hidden properties the critic is told of a task."""
    family = family_of(bucket.item, bucket.names)
    draw = family.draw(bucket.variant, jax.random.key(0))
    return int(family.properties(draw).shape[0])


class Drawn(NamedTuple):
    """What one iteration runs.

    Attributes:
        bucket: Programs of its family's variant.
        offered: Hyperparameters of the family.
        spec: With the number of decisions.
        total_steps: Of each run.
        task_keys: (B,) of tasks.
        run_keys: (B,) of initialisation and data order.
        decades: (B,) by which starts are off.
        missing: (B,) 1 where gradient statistics are withheld.
        tuned: Of the tasks, if it is known.
        rng: What else is drawn comes from here.
    """

    bucket: Any
    offered: tuple[Hyperparameter, ...]
    spec: ControlSpec
    total_steps: int
    task_keys: jax.Array
    run_keys: jax.Array
    decades: np.ndarray
    missing: np.ndarray
    tuned: Tuned | None
    rng: np.random.Generator


def draw_iteration(
    settings: LearnSettings, buckets: list[Bucket], iteration: int, tuned: TunedRates
) -> Drawn:
    """Return what an iteration runs; the same for the same settings and iteration."""
    first = iteration - iteration % settings.reuse  # of those that share their tasks
    rng = np.random.default_rng([settings.seed, first])
    progress = first / settings.iterations
    shares = np.array([item.share * (item.begin <= progress) for item in buckets])
    drawn = buckets[rng.choice(len(buckets), p=shares / shares.sum())]
    family, bucket = drawn.load()
    k = int(rng.choice(settings.decisions))
    low, high = np.log(settings.steps_per_decision)
    steps = round(k * float(np.exp(rng.uniform(low, high))))
    items = family.hyperparameters
    if drawn.item.subsets:
        names = drawn.item.subsets[rng.integers(len(drawn.item.subsets))]
        items = tuple(item for item in items if item.name in names)
    spec = control_spec(settings, items, k)
    root = jax.random.key(settings.seed)
    key, own = jax.random.fold_in(root, first), jax.random.fold_in(root, iteration)
    siblings = settings.siblings
    task_keys = jnp.repeat(jax.random.split(key, settings.tasks), siblings, axis=0)
    run_keys = jax.random.split(jax.random.fold_in(own, 1), settings.tasks)
    run_keys = jnp.repeat(run_keys, siblings, axis=0)
    if iteration > first:
        rng = np.random.default_rng([settings.seed, iteration])
    decades, missing = drawn_decades(settings, settings.tasks * siblings, rng)
    offered = family.hyperparameters
    grid_key = jax.random.fold_in(key, 2)
    known = tuned.of(settings, bucket, spec, offered, task_keys, grid_key, steps)
    return Drawn(bucket, offered, spec, steps, task_keys, run_keys, decades, missing, known, rng)
