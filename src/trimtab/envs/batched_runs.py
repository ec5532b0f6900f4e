"""Simulated runs of one network shape, side by side in compiled programs; and their decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from trimtab.core.carry import Carry
from trimtab.core.control import apply, observe
from trimtab.core.errors import MissingDependencyError, SpecError
from trimtab.core.metrics import Metrics
from trimtab.core.spec import ControlSpec
from trimtab.envs.settings import EnvSettings
from trimtab.envs.simulators.tasks import compiled_family, run_key, task_key


class Losses(NamedTuple):
    """What a run begins with; (n,) float32 each.

    Attributes:
        validation: Validation loss before step 1.
        selection: The same on the selection split.
        examples: Validation samples.
        default_lr: Usual learning rate of the task.
    """

    validation: np.ndarray
    selection: np.ndarray
    examples: np.ndarray
    default_lr: np.ndarray


class _Runs(NamedTuple):
    draw: Any
    state: Any
    best: Any
    reference: Any


class _Programs(NamedTuple):
    bank: Any
    blank: Callable[..., Any]
    begin: Callable[..., Any]
    window: Callable[..., Any]
    reference: Callable[..., Any]
    evaluate: Callable[..., Any]


def _chosen(flag: Any, first: Any, second: Any) -> Any:
    """Return leaves of ``first`` where the (n,) flag is set, else of ``second``."""
    import jax
    import jax.numpy as jnp

    def choose(one: Any, other: Any) -> Any:
        return jnp.where(flag.reshape(flag.shape + (1,) * (one.ndim - 1)), one, other)

    return jax.tree.map(choose, first, second)


@lru_cache(maxsize=64)
def _programs(name: str, steered: tuple[str, ...], bucket: int) -> _Programs:
    """Return the compiled programs of one shape bucket, where only ``steered`` may move."""
    import jax

    from trimtab.envs.simulators.batch import advance_many, evaluate_many
    from trimtab.envs.simulators.family import put_back

    family = compiled_family(name, steered)

    def losses(bank: Any, draws: Any, states: Any) -> tuple[Any, Any]:
        return tuple(  # type: ignore[return-value]
            evaluate_many(family, bucket, bank, draws, states, split)[0]
            for split in ("validation", "selection")
        )

    def begin(bank: Any, old: Any, fresh: Any, task_keys: Any, run_keys: Any) -> Any:
        def one(task_key: Any, run_key: Any) -> Any:
            draw = family.draw(bucket, task_key)
            return draw, family.start(bucket, bank, draw, run_key), family.default_lr(draw)

        draws, states, default_lr = jax.vmap(one)(task_keys, run_keys)
        runs = _chosen(fresh, _Runs(draws, states, states, states), old)
        validation, selection = losses(bank, draws, states)
        return runs, Losses(validation, selection, draws.n_validation, default_lr)

    def train(bank: Any, draw: Any, state: Any, *window: Any) -> Any:
        state, metrics = advance_many(family, bucket, bank, draw, state, *window)
        validation, selection = losses(bank, draw, state)
        return state, metrics._replace(val_loss=validation, reward_loss=selection)

    def window(bank: Any, runs: _Runs, keep: Any, restore: Any, *given: Any) -> Any:
        best = _chosen(keep, runs.state, runs.best)
        state = _chosen(restore, put_back(best, runs.state), runs.state)
        state, metrics = train(bank, runs.draw, state, *given)
        return runs._replace(state=state, best=best), metrics

    def reference(bank: Any, runs: _Runs, *given: Any) -> Any:
        state, metrics = train(bank, runs.draw, runs.reference, *given)
        return runs._replace(reference=state), metrics

    def evaluate(bank: Any, runs: _Runs, keep: Any, split: str) -> Any:
        best = _chosen(keep, runs.state, runs.best)
        return evaluate_many(family, bucket, bank, runs.draw, best, split)

    return _Programs(
        bank=family.bank(bucket),
        blank=partial(_blank_runs, family, bucket),
        begin=jax.jit(begin),
        window=jax.jit(window),
        reference=jax.jit(reference),
        evaluate=jax.jit(evaluate, static_argnames="split"),
    )


def _blank_runs(family: Any, bucket: int, bank: Any, size: int) -> Any:
    """Return runs of which all numbers are zero, so that one program begins any of them."""
    import jax

    def one(key: Any) -> Any:
        draw = family.draw(bucket, key)
        state = family.start(bucket, bank, draw, key)
        return _Runs(draw, state, state, state)

    keys = jax.ShapeDtypeStruct((size, 2), np.uint32)
    shapes = jax.eval_shape(jax.vmap(one), keys)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


class BatchedRuns:
    """Rows of runs of one shape bucket; rows may begin and be given up at different times.

    Args:
        name: Of the family.
        steered: Names of the hyperparameters that may move, sorted.
        bucket: Shape bucket.
    """

    def __init__(self, name: str, steered: tuple[str, ...], bucket: int) -> None:
        self._programs = _programs(name, steered, bucket)
        self.hyperparameters = compiled_family(name, steered).hyperparameters
        self._runs: _Runs | None = None
        self._rows: dict[int, int] = {}  # env -> row
        self._size = 0

    @property
    def envs(self) -> np.ndarray:
        """The environments that have a run here, in the order of their rows."""
        return np.array(sorted(self._rows, key=self._rows.__getitem__), np.int64)

    @property
    def _places(self) -> list[int]:
        """The rows of `envs`."""
        return sorted(self._rows.values())

    def leave(self, env: int) -> None:
        """Give up an environment's run, if it is here."""
        self._rows.pop(env, None)

    def begin(self, members: Mapping[int, int], seeds: Mapping[int, int]) -> Losses:
        """Begin runs and return what they begin with, in the order of ``members``.

        Args:
            members: Environment -> member of the family.
            seeds: Environment -> seed of initialisation and data order.
        """
        for env in members:
            self.leave(env)
        self._grow_to(len(self._rows) + len(members))
        free = iter(sorted(set(range(self._size)) - set(self._rows.values())))
        rows = np.array([next(free) for _ in members], np.int64)
        self._rows.update(zip(members, rows.tolist(), strict=True))
        task_keys, run_keys = (np.zeros((self._size, 2), np.uint32) for _ in range(2))
        fresh = np.zeros(self._size, bool)
        for env, row in zip(members, rows, strict=True):
            task_keys[row], run_keys[row] = task_key(members[env]), run_key(seeds[env])
            fresh[row] = True
        self._runs, found = self._programs.begin(
            self._programs.bank, self._runs, fresh, task_keys, run_keys
        )
        return Losses(*(np.asarray(value, np.float32)[rows] for value in found))

    def window(
        self,
        keep: np.ndarray,
        restore: np.ndarray,
        values: np.ndarray,
        schedule: np.ndarray,
        first: np.ndarray,
        steps: np.ndarray,
    ) -> Metrics:
        """Train a window of every run; see `trimtab.envs.simulators.family.Family.advance`.

        All arguments have one entry an environment of `envs`, in that order.

        Args:
            keep: (n,) bool, whether the weights at hand are the best so far.
            restore: (n,) bool, whether to put the best weights back first.
            values: (n, H) float32, in the order of `hyperparameters`.
            schedule: (T,) float32, multiplier of the learning rate.
            first: (n,) steps done.
            steps: (n,) steps of the window; 0 leaves a run as it is.

        Returns:
            Metrics of (n,) float32 arrays, validation and selection loss included.
        """
        runs, metrics = self._programs.window(
            self._programs.bank,
            self._runs,
            self._spread(keep),
            self._spread(restore),
            *self._given(values, schedule, first, steps),
        )
        self._runs = runs
        return self._gathered(metrics)

    def reference_window(
        self, values: np.ndarray, schedule: np.ndarray, first: np.ndarray, steps: np.ndarray
    ) -> Metrics:
        """Train a window of every run's reference run, which nobody steers; see `window`."""
        self._runs, metrics = self._programs.reference(
            self._programs.bank, self._runs, *self._given(values, schedule, first, steps)
        )
        return self._gathered(metrics)

    def evaluate(self, keep: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (n,) losses and accuracies of the best weights on a split."""
        found = self._programs.evaluate(
            self._programs.bank, self._runs, self._spread(keep), split=split
        )
        loss, accuracy = (np.asarray(value, np.float32)[self._places] for value in found)
        return loss, accuracy

    def _given(
        self, values: np.ndarray, schedule: np.ndarray, first: np.ndarray, steps: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        schedules = np.broadcast_to(schedule, (self._size, len(schedule)))
        return (
            self._spread(values.astype(np.float32)),
            schedules,
            self._spread(first.astype(np.int32)),
            self._spread(steps.astype(np.int32)),
        )

    def _spread(self, values: np.ndarray) -> np.ndarray:
        """Return values of `envs` at their rows; idle rows hold zero."""
        spread = np.zeros((self._size, *values.shape[1:]), values.dtype)
        spread[self._places] = values
        return spread

    def _gathered(self, metrics: Metrics) -> Metrics:
        return Metrics(
            *(
                np.broadcast_to(np.asarray(value, np.float32), (self._size,))[self._places]
                for value in metrics
            )
        )

    def _grow_to(self, count: int) -> None:
        """Grow to a power of two, so that few sizes are ever compiled."""
        if count <= self._size:
            return
        import jax

        size = 1 << (count - 1).bit_length()
        blank = self._programs.blank(self._programs.bank, size)
        if self._runs is not None:

            def widened(wide: np.ndarray, leaf: Any) -> np.ndarray:
                wide[: self._size] = leaf
                return wide

            blank = jax.tree.map(widened, blank, self._runs)
        self._runs, self._size = blank, size


def require_batchable(settings: EnvSettings, render_mode: str | None) -> None:
    """Raise unless the task and the reward can be compiled and run in batches.

    Raises:
        SpecError: The task is no simulated family, the reward is a function, or pictures are
            wanted.
        MissingDependencyError: JAX is not installed.
    """
    remedy = 'use gymnasium.make_vec(..., vectorization_mode="sync")'
    if not hasattr(settings.made, "family"):
        raise SpecError(
            f"task {settings.made.name!r} is no simulated family and cannot be batched; {remedy}"
        )
    if settings.reward_function is not None:
        raise SpecError(
            f"reward: {settings.reward!r} is a function and cannot be compiled; {remedy}, "
            "or take a reward by name"
        )
    if render_mode is not None:
        raise SpecError(f"render_mode: {render_mode!r} is not drawn in batches; {remedy}")
    try:
        import jax  # noqa: F401 - asked for here, where the error can say what to do
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"batches are compiled by the package 'jax', which is not installed; "
            f"pip install 'trimtab[learn]', or {remedy}"
        ) from error


@lru_cache(maxsize=64)
def decisions_of(spec: ControlSpec) -> Mapping[str, Any]:
    """Return `observe` and `apply` for N runs at once, and a choice between two memories."""
    import jax
    import jax.numpy as jnp

    def choose(flag: Any, first: Carry, second: Carry) -> Carry:
        def one(flag: Any, first: Carry, second: Carry) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(flag, a, b), first, second)

        chosen: Carry = jax.vmap(one)(flag, first, second)
        return chosen

    return {
        "observe": jax.jit(jax.vmap(partial(observe, spec, xp=jnp))),
        "apply": jax.jit(jax.vmap(partial(apply, spec, xp=jnp))),
        "choose": jax.jit(choose),
    }
