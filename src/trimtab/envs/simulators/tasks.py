"""Simulated families as tasks: one member of a family, run by run.

Member n of a family is one fixed task: its shape bucket is n modulo the number of buckets, and
its properties are drawn from a key that holds n. A run's seed moves initialisation and data order.
The quadratic needs NumPy only; the others are compiled by JAX when they are first trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, cached_property, lru_cache, partial
from typing import Any, cast

import numpy as np

from trimtab.core.errors import MissingDependencyError, SpecError, unknown_name
from trimtab.core.hyperparameters import Hyperparameter
from trimtab.core.metrics import FORWARD_CHARGE, Metrics
from trimtab.envs.simulators.family import SPLITS, Family, FamilyOptions, put_back

VARIANTS: Mapping[str, int] = {"tiny": 40, "small": 100, "default": 200}
"""Size of a task -> optimiser steps of a whole run."""

QUADRATIC = "simulated/quadratic"
_TASK_WORD, _RUN_WORD = 0x7461736B, 0x72756E73  # "task", "runs": their keys never meet


def _key(word: int, number: int) -> np.ndarray:
    return np.array([(word + (number >> 32)) & 0xFFFFFFFF, number & 0xFFFFFFFF], np.uint32)


def task_key(member: int) -> np.ndarray:
    """Return the (2,) uint32 key of a family's member, raw as ``jax.random`` takes it."""
    return _key(_TASK_WORD, member)


def run_key(seed: int) -> np.ndarray:
    """Return the (2,) uint32 key of a run's initialisation and data order."""
    return _key(_RUN_WORD, seed)


def bucket_of(member: int, n_buckets: int) -> int:
    """Return the shape bucket that a member of a family belongs to."""
    return member % n_buckets


@cache
def compiled_family(name: str, names: tuple[str, ...] | None = None) -> Family:
    """Return a family to be traced by JAX.

    Args:
        name: Such as ``"simulated/mlp"``.
        names: Hyperparameters that are steered, which leaves the others at rest and saves their
            time; None: all.

    Raises:
        MissingDependencyError: JAX is not installed.
        UnknownNameError: There is no such family or hyperparameter.
    """
    if name == QUADRATIC:
        from trimtab.envs.simulators.families.quadratic import Quadratics

        return cast(Family, Quadratics("jax"))
    try:
        from trimtab.envs.simulators.families.registry import make_family

        if names is None:
            return make_family(name)
        # All families want the learning rate, and want it first.
        rest = tuple(item for item in names if item != "lr")
        return make_family(name, FamilyOptions(hyperparameters=("lr", *rest)))
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{name} needs the package {error.name!r}, which is not installed; "
            "pip install 'trimtab[learn]', or choose simulated/quadratic, which needs NumPy only"
        ) from error


def _family(name: str, names: tuple[str, ...] | None = None) -> Family:
    """Return a family to be run one run at a time: the quadratic without JAX."""
    if name == QUADRATIC:
        from trimtab.envs.simulators.families.quadratic import Quadratics

        return cast(Family, Quadratics())
    return compiled_family(name, names)


@cache
def _functions(name: str, names: tuple[str, ...] | None, bucket: int) -> Mapping[str, Any]:
    """Return a family's functions for one shape bucket, compiled unless they are NumPy's."""
    family = _family(name, names)

    def draw(key: Any) -> Any:
        return family.draw(bucket, key)

    def start(bank: Any, draw: Any, key: Any) -> Any:
        return family.start(bucket, bank, draw, key)

    def advance(bank: Any, *arguments: Any) -> Any:
        return family.advance(bucket, bank, *arguments)

    def evaluate(bank: Any, draw: Any, state: Any) -> Any:
        return {split: family.evaluate(bucket, bank, draw, state, split) for split in SPLITS}

    given: dict[str, Any] = {"draw": draw, "start": start, "advance": advance, "evaluate": evaluate}
    if name != QUADRATIC:
        import jax

        given = {name: jax.jit(function) for name, function in given.items()}
    return given


@lru_cache(maxsize=256)
def _tuned_lr(name: str, member: int, total_steps: int) -> float:
    from trimtab.envs.simulators.tuning import DECADES, SEEDS, best_rate, grid_losses

    family = _family(name, ("lr",))
    bucket, key = bucket_of(member, family.n_variants), task_key(member)
    usual = float(family.default_lr(_functions(name, None, bucket)["draw"](key)))
    rates = [usual * 10.0**decade for decade in DECADES]
    run_keys = np.stack([run_key(seed) for seed in SEEDS])
    return best_rate(rates, grid_losses(family, bucket, key, run_keys, rates, total_steps))


class SimulatedTask:
    """One member of a simulated family; a `trimtab.core.protocols.Task`.

    Attributes:
        family: Name of the family, such as ``"simulated/quadratic"``.
        index: Which member.
        name: ``FAMILY@INDEX``.
        variant: ``"tiny"``, ``"small"`` or ``"default"``: how long a run is.
        total_steps: Optimiser steps of one run.
        monitor: ``"loss"``.
        mode: ``"min"``.
        kind: ``"simulated"``.
        metric: What is reported first.
        licence: Of data and weights.
        batch_size: Training examples of a step where the batch size is not steered.

    Raises:
        UnknownNameError: There is no such family or variant.
        SpecError: The member is not a whole number of at least 0.
    """

    monitor = "loss"
    mode = "min"
    kind = "simulated"
    metric = "loss"
    licence = "none: synthetic data, or small data sets that ship with scikit-learn"
    batch_size = 32.0

    def __init__(self, family: str, member: int = 0, variant: str | None = None) -> None:
        variant = "default" if variant is None else variant
        if variant not in VARIANTS:
            raise unknown_name("variant", variant, VARIANTS)
        if type(member) is not int or member < 0:
            raise SpecError(
                f"member: {member!r} is not a whole number from 0; write {family}@17 for member 17"
            )
        self.family, self.index, self.variant = family, member, variant
        self.name = f"{family}@{self.index}"
        self.total_steps = VARIANTS[variant]

    def member(self, index: int) -> SimulatedTask:
        """Return another member of the same family and length."""
        return SimulatedTask(self.family, index, self.variant)

    def drawn(self, number: int, shapes: int | None = None) -> SimulatedTask:
        """Return the member that a drawn number stands for, among the first shape buckets.

        Args:
            number: At least 0.
            shapes: How many buckets to draw from; None: one, since each is compiled apart and has
                pretrained networks of its own.

        Raises:
            SpecError: The family has not that many.
        """
        available = _family(self.family).n_variants
        shapes = 1 if shapes is None else shapes
        if not 1 <= shapes <= available:
            raise SpecError(
                f"shapes: {shapes!r} is outside 1..{available} of {self.family}; "
                "choose one of these"
            )
        return self.member(number - number % available + number % available % shapes)

    @property
    def bucket(self) -> int:
        """Shape bucket of the member."""
        return bucket_of(self.index, _family(self.family).n_variants)

    @cached_property
    def draw(self) -> Any:
        """The task's hidden properties."""
        return _functions(self.family, None, self.bucket)["draw"](task_key(self.index))

    @cached_property
    def hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """What can be steered; the learning rate starts at the family's usual one."""
        first, *rest = _family(self.family).hyperparameters
        usual = float(_family(self.family).default_lr(self.draw))
        return (first.starting_at(usual), *rest)

    @property
    def tuned_lr(self) -> float:
        """The best learning rate of the reference schedule; seconds when first asked for.

        A grid of 32 points around the usual rate, 3 seeds that nothing else uses, chosen on
        validation; the last few tasks' rates are remembered.
        """
        return _tuned_lr(self.family, self.index, self.total_steps)

    def describe(self) -> dict[str, Any]:
        """Return what a list of tasks shows, as JSON-able data."""
        return {
            "name": self.family,
            "kind": self.kind,
            "metric": self.metric,
            "licence": self.licence,
            "variant": self.variant,
            "variants": list(VARIANTS),
            "seconds": 0.1,
            "total_steps": self.total_steps,
            "batch_size": self.batch_size,
            "hyperparameters": [item.to_dict() for item in _family(self.family).hyperparameters],
        }

    def start(self, *, seed: int) -> SimulatedRun:
        """Return a fresh run; the seed moves initialisation and data order only."""
        return SimulatedRun(self, int(seed))


class SimulatedRun:
    """One run of a simulated task; a `trimtab.core.protocols.TrainingRun`.

    Attributes:
        measured: All values of the latest validation.
    """

    def __init__(self, task: SimulatedTask, seed: int) -> None:
        self._task = task
        self._steps = 0
        functions = _functions(task.family, None, task.bucket)
        self._evaluate = functions["evaluate"]
        self._bank = _family(task.family).bank(task.bucket)
        self._state = functions["start"](self._bank, task.draw, run_key(seed))
        self.measured: dict[str, float] = {}

    def advance(self, values: Mapping[str, np.ndarray], steps: int) -> Metrics:
        """Train ``steps`` steps and validate; see `trimtab.core.protocols.TrainingRun`.

        The learning rate takes a value a step; every other hyperparameter the one of the first
        step, for the whole window. What is not named stays at its default.
        """
        task = self._task
        steered = tuple(sorted(values))
        family = _family(task.family, steered)
        given = np.array(
            [values[h.name][0] if h.name in values else h.default for h in family.hyperparameters],
            np.float32,
        )
        # The schedule holds the learning rate itself, so its factor is 1.
        schedule = np.zeros(max(task.total_steps, self._steps + steps), np.float32)
        schedule[self._steps : self._steps + steps] = (
            values["lr"] if "lr" in values else task.hyperparameters[0].default
        )
        given[0] = 1.0
        first, count = np.int32(self._steps), np.int32(steps)
        with np.errstate(all="ignore"):
            self._state, metrics = _functions(task.family, steered, task.bucket)["advance"](
                self._bank, task.draw, self._state, given, schedule, first, count, count
            )
        metrics = Metrics(*(float(value) for value in metrics))
        self._steps += int(metrics.steps)
        losses = self._losses()
        self.measured = losses["validation"]
        examples = self.measured["examples"]
        return metrics._replace(
            val_loss=self.measured["loss"],
            reward_loss=losses["selection"]["loss"],
            charge=metrics.charge + FORWARD_CHARGE * examples,
        )

    def evaluate(self, split: str) -> dict[str, float]:
        """Return loss, examples and, where there is one, accuracy on a split.

        Raises:
            UnknownNameError: The split is none of validation, selection and test.
        """
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        measured = self._losses()[split]
        if split == "validation":
            self.measured = measured
        return measured

    def _losses(self) -> dict[str, dict[str, float]]:
        with np.errstate(all="ignore"):
            found = self._evaluate(self._bank, self._task.draw, self._state)
        losses = {}
        for split, (loss, accuracy) in found.items():
            examples = float(getattr(self._task.draw, f"n_{split}"))
            losses[split] = {"loss": float(loss), "examples": examples}
            if not np.isnan(accuracy):
                losses[split]["accuracy"] = float(accuracy)
        return losses

    def snapshot(self) -> Any:
        """Return the state of weights and optimiser; nobody changes it in place."""
        return self._state

    def restore(self, snapshot: Any) -> None:
        """Put weights and optimiser back; the order of data goes by the step and goes on."""
        gone = getattr(self._state, "travel", None)
        is_later = gone is not None and gone.path >= snapshot.travel.path  # else a run that goes on
        self._state = put_back(snapshot, self._state) if is_later else snapshot

    def to_plain(self, snapshot: Any) -> list[np.ndarray]:
        """Return a snapshot as NumPy arrays; `from_plain` gives it back in any process."""
        return [np.asarray(leaf) for leaf in _leaves(snapshot)]

    def from_plain(self, plain: Any) -> Any:
        """Return the snapshot that `to_plain` gave as arrays."""
        return _like(self._state, iter(plain))

    def position(self) -> dict[str, Any]:
        """Return where the order of data stands: it goes by the step."""
        return {"steps": self._steps}

    def set_position(self, position: Mapping[str, Any]) -> None:
        """Go on from a position."""
        self._steps = int(position["steps"])


def _leaves(tree: Any) -> Iterator[Any]:
    """Yield the arrays of nested tuples and mappings, in a fixed order."""
    if isinstance(tree, Mapping):
        for name in sorted(tree):
            yield from _leaves(tree[name])
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from _leaves(item)
    elif tree is not None:
        yield tree


def _like(tree: Any, arrays: Iterator[Any]) -> Any:
    """Return nested tuples and mappings of the same structure, holding other arrays."""
    if isinstance(tree, Mapping):
        found = {name: _like(tree[name], arrays) for name in sorted(tree)}
        return {name: found[name] for name in tree}
    if isinstance(tree, tuple | list):
        items = [_like(item, arrays) for item in tree]
        is_named = hasattr(tree, "_fields")
        return type(tree)(*items) if is_named else type(tree)(items)
    return None if tree is None else next(arrays, tree)  # older snapshots lack the last fields


# ``(member=0, variant=None) -> SimulatedTask``, what entry points of ``trimtab.tasks`` point to
quadratic = partial(SimulatedTask, QUADRATIC)
mlp = partial(SimulatedTask, "simulated/mlp")
transformer = partial(SimulatedTask, "simulated/transformer")
cnn = partial(SimulatedTask, "simulated/cnn")
wide = partial(SimulatedTask, "simulated/wide")
