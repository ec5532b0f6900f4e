"""``Hyperparam-v0`` many times over: simulated runs, compiled and batched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from trimtab.core.carry import Carry, begin
from trimtab.core.errors import SpecError
from trimtab.core.metrics import FORWARD_CHARGE, Metrics
from trimtab.core.spec import window_ends
from trimtab.envs.batched_runs import BatchedRuns, decisions_of, require_batchable
from trimtab.envs.settings import (
    Begin,
    EnvOptions,
    EnvSettings,
    action_space,
    observation_space,
)


class HyperparamVectorEnv(VectorEnv[np.ndarray, Any, np.ndarray]):
    """N environments of `trimtab.envs.hyperparam_env.HyperparamEnv`, stepped together under JAX.

    Options, spaces, rewards and starts are those of the single environment, and environment i
    after ``reset(seed=s)`` is the single one after ``reset(seed=s + i)``: the same draws, and the
    same numbers up to the rounding of float32. Only tasks of simulated families can be batched,
    and rewards by name; everything else works with
    ``gymnasium.make_vec(..., vectorization_mode="sync")``.

    An environment whose episode is over is reset by the next step, which ignores its action and
    returns reward 0 for it (`AutoresetMode.NEXT_STEP`); or, with ``SAME_STEP``, by the step that
    ends it: that returns the first observation of the next episode, and puts what it would have
    returned into ``final_obs`` and ``final_info``, as Gymnasium's own vector environments do. Info
    holds ``step``, ``decision``, ``start_scale`` and ``restored``, one entry an environment.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **options: Unpack[EnvOptions],
    ) -> None:
        """Check all options; nothing is compiled before `reset`.

        Args:
            num_envs: N.
            render_mode: None: there are no pictures.
            autoreset_mode: ``NEXT_STEP`` or ``SAME_STEP``. ``gymnasium.make_vec`` hands it on as a
                keyword, and not in ``vector_kwargs``.
            options: Those of the single environment, by name.

        Raises:
            SpecError: An option is out of range, two contradict each other, or the task or the
                reward cannot be batched.
            UnknownNameError: A task, reward, reference or hyperparameter is not known.
            MissingDependencyError: JAX is not installed.
        """
        if isinstance(num_envs, bool) or num_envs < 1:
            raise SpecError(f"num_envs: {num_envs!r} is below 1; ask for at least one")
        self.settings = EnvSettings(**options)
        require_batchable(self.settings, render_mode)
        mode = _mode_of(autoreset_mode)
        self._resets_at_once = mode == AutoresetMode.SAME_STEP
        self.metadata = {"render_modes": [], "autoreset_mode": mode}
        self.render_mode = None
        self.num_envs = num_envs
        spec = self.settings.spec
        self.single_observation_space = observation_space(spec)
        self.single_action_space = action_space(spec)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        total_steps = self.settings.made.total_steps
        self._ends = window_ends(spec, total_steps)
        self._steered = tuple(sorted(item.name for item in spec.hyperparameters))
        multipliers = self.settings.multipliers if "lr" in self._steered else np.ones(total_steps)
        self._schedule = np.asarray(multipliers, np.float32)
        self._batches: dict[int, BatchedRuns] = {}
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._begins: list[Begin | None] = [None] * num_envs
        self._allocate()

    def _allocate(self) -> None:
        n, width = self.num_envs, len(self.settings.spec.hyperparameters)
        self._carry: Carry | None = None
        self._observation = np.zeros(self.observation_space.shape or (), np.float32)
        self._starts = np.zeros((n, width))
        self._rates = np.zeros(n)  # the task's usual learning rate, where it is not steered
        self._examples = np.zeros(n, np.float32)
        self._done = np.zeros(n, np.int64)  # steps
        self._keep = np.zeros(n, bool)
        self._over = np.ones(n, bool)
        self._reference_lost = np.zeros(n, bool)

    # What Gymnasium calls.

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin all runs; return (N, n) float32 observations, and info.

        Args:
            seed: Environment i takes ``seed + i``; or one seed (or None) for each.
            options: ``member`` and ``start_scale`` as in the single environment, for all; and
                ``reset_mask``, (N,) bool, for a reset of some environments only.

        Raises:
            SpecError: The number of seeds or an option is not allowed.
            UnknownNameError: There is no such option.
        """
        options = dict(options or {})
        mask = self._mask(options.pop("reset_mask", None))
        seeds = [own if set_ else None for own, set_ in zip(self._seeds(seed), mask, strict=True)]
        for env, own in enumerate(seeds):
            if own is not None or self._generators[env] is None:
                self._generators[env] = seeding.np_random(own)[0]
        if isinstance(seed, int):
            super().reset(seed=seed)
        fresh = self._begin(mask, options)
        self._observation = np.where(mask[:, None], fresh, self._observation)
        return self._observation.copy(), self._info(np.zeros(self.num_envs, bool))

    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Apply actions and train the next windows; finished environments are reset.

        Returns:
            (N, n) float32 observations, (N,) float64 rewards, (N,) bool terminations and
            truncations, and info.

        Raises:
            ResetNeeded: `reset` was never called.
            SpecError: The actions are not those of N environments.
        """
        if self._carry is None:
            raise ResetNeeded("no episode has begun; call reset() first")
        active = ~self._over
        programs = decisions_of(self.settings.spec)
        asked = self._checked(actions)
        applied, values, _ = programs["apply"](self._carry, asked)
        restored = np.asarray(values.restore) > 0
        metrics = self._train(applied, np.asarray(values.offset), restored & active, active)
        seen, observation, reward = programs["observe"](applied, metrics)
        self._carry = programs["choose"](active, seen, self._carry)
        self._keep = np.where(active, np.asarray(seen.is_best) > 0, self._keep)
        terminated = active & (np.asarray(seen.terminated) > 0)
        truncated = active & ~terminated & (self._done >= self.settings.made.total_steps)
        observation = np.array(observation, np.float32)
        reward = np.where(active, np.asarray(reward, np.float64), 0.0)
        if not active.all():
            fresh = self._begin(~active, None)
            observation[~active] = fresh[~active]
        self._over = terminated | truncated
        info = self._info(restored & active)
        if self._resets_at_once and self._over.any():
            info = self._reset_ended(observation, info)
        self._observation = observation.copy()
        return observation, reward, terminated, truncated, info

    def evaluate(self, split: str = "test") -> dict[str, np.ndarray]:
        """Return (N,) ``loss`` and ``accuracy`` of the best-on-validation weights on a split.

        Runs that are over keep their weights until a step resets them, which is the one that ended
        them with ``SAME_STEP``.

        Raises:
            ResetNeeded: `reset` was never called.
            UnknownNameError: There is no such split.
        """
        if self._carry is None:
            raise ResetNeeded("no episode has begun; call reset() first")
        found = np.full((2, self.num_envs), np.nan, np.float32)
        for batch in self._batches.values():
            envs = batch.envs
            if len(envs):
                found[:, envs] = batch.evaluate(self._keep[envs], split)
        return {"loss": found[0], "accuracy": found[1]}

    # Inside.

    def _seeds(self, seed: Any) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + env for env in range(self.num_envs)]
        seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise SpecError(
                f"seed: {len(seeds)} seeds for {self.num_envs} environments; give one for each"
            )
        return seeds

    def _mask(self, mask: Any) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, bool)
        given = np.asarray(mask)
        if given.shape != (self.num_envs,) or given.dtype != bool or not given.any():
            raise SpecError(
                f"reset_mask: {mask!r} is not a boolean for each of {self.num_envs} environments "
                "with one set at least"
            )
        if self._carry is None and not given.all():
            raise ResetNeeded("no episode has begun; reset all environments first")
        return given

    def _checked(self, actions: Any) -> np.ndarray:
        asked = np.asarray(actions)
        if asked.shape != self.action_space.shape:
            raise SpecError(
                f"actions of shape {asked.shape}; {self.settings.spec.actions} actions of "
                f"{self.num_envs} environments have shape {self.action_space.shape}"
            )
        if self.settings.spec.actions == "continuous":
            return asked.astype(np.float32)
        if not self.action_space.contains(asked.astype(self.action_space.dtype)):
            raise SpecError(f"actions {asked.tolist()} are not all in {self.single_action_space}")
        return asked.astype(np.int32)

    def _begin(self, fresh: np.ndarray, options: Mapping[str, Any] | None) -> np.ndarray:
        """Begin the runs of the environments that are set; return everyone's observation."""
        family: Any = self.settings.made
        buckets: dict[int, dict[int, int]] = {}
        for env in np.flatnonzero(fresh).tolist():
            generator = self._generators[env]
            assert generator is not None, "reset() makes it"
            drawn = self.settings.begin(generator, options)
            self._begins[env] = drawn
            task: Any = self.settings.task_of(drawn)
            buckets.setdefault(task.bucket, {})[env] = task.index
        validation, selection = np.zeros((2, self.num_envs), np.float32)
        for bucket, members in buckets.items():
            for other in self._batches.values():
                for env in members:
                    other.leave(env)
            if bucket not in self._batches:
                self._batches[bucket] = BatchedRuns(family.family, self._steered, bucket)
            batch, envs = self._batches[bucket], np.array(list(members))
            losses = batch.begin(members, {env: self._seed_of(env) for env in members})
            validation[envs], selection[envs] = losses.validation, losses.selection
            self._examples[envs], self._rates[envs] = losses.examples, losses.default_lr
        return self._first_observation(fresh, validation, selection)

    def _reset_ended(self, observation: np.ndarray, info: dict[str, Any]) -> dict[str, Any]:
        """Reset what is over and put its first observation in place; return the step's info."""
        ended = self._over.copy()
        last = observation.copy()
        observation[ended] = self._begin(ended, None)[ended]
        restored = info["restored"] & ~ended
        found: dict[str, Any] = {}
        for env in np.flatnonzero(ended).tolist():
            own = {name: column[env].item() for name, column in info.items() if name[0] != "_"}
            found = self._add_info(found, {"final_obs": last[env], "final_info": own}, env)
        return self._info(restored) | found

    def _seed_of(self, env: int) -> int:
        drawn = self._begins[env]
        assert drawn is not None, "_begin() draws it"
        return drawn.seed

    def _first_observation(
        self, fresh: np.ndarray, validation: np.ndarray, selection: np.ndarray
    ) -> np.ndarray:
        carries = [self._fresh_carry(env) if set_ else None for env, set_ in enumerate(fresh)]
        some = next(carry for carry in carries if carry is not None)
        filled = [carry or some for carry in carries]
        stacked = Carry(*(np.stack(values) for values in zip(*filled, strict=True)))
        nan = np.full(self.num_envs, np.nan, np.float32)
        blank = Metrics(*(np.full(self.num_envs, value, np.float32) for value in Metrics()))
        metrics = blank._replace(
            val_loss=validation,
            reward_loss=nan if self.settings.reward_split == "validation" else selection,
            charge=np.float32(FORWARD_CHARGE) * self._examples,
        )
        programs = decisions_of(self.settings.spec)
        carry, observation, _ = programs["observe"](stacked, metrics)
        old = carry if self._carry is None else self._carry
        self._carry = programs["choose"](fresh, carry, old)
        # The state at hand is the best already; nothing has to be kept before the first window.
        self._keep &= ~fresh
        self._done[fresh] = 0
        self._reference_lost &= ~fresh
        self._over &= ~fresh
        return np.array(observation, np.float32)

    def _fresh_carry(self, env: int) -> Carry:
        family: Any = self.settings.made
        drawn = self._begins[env]
        assert drawn is not None, "_begin() draws it"
        first, *rest = family.hyperparameters
        spec = self.settings.start_spec(drawn, [first.starting_at(float(self._rates[env])), *rest])
        self._starts[env] = [item.default for item in spec.hyperparameters]
        validations = FORWARD_CHARGE * (len(self._ends) + 1)
        budget = family.total_steps * family.batch_size + validations * float(self._examples[env])
        return begin(spec, family.total_steps, reference=self.settings.multipliers, budget=budget)

    def _train(
        self, carry: Carry, offset: np.ndarray, restore: np.ndarray, active: np.ndarray
    ) -> Metrics:
        """Train everyone's next window; return metrics of (N,) float32 arrays."""
        decisions = np.asarray(carry.decision).astype(np.int64)
        index = np.minimum(decisions, len(self._ends)) - 1
        steps = np.where(active, self._ends[index] - self._done, 0)
        values = self._values(self._starts, offset)
        gathered = np.full((len(Metrics._fields), self.num_envs), np.nan, np.float32)
        for batch, envs in self._training(steps):
            given = self._columns(batch, values, envs)
            window = (given, self._schedule, self._done[envs], steps[envs])
            gathered[:, envs] = batch.window(self._keep[envs], restore[envs], *window)
        metrics = Metrics(*gathered)
        taken = np.where(metrics.finite < 1, np.clip(metrics.steps, 1, steps), steps)
        self._done += np.where(active, taken, 0).astype(np.int64)
        metrics = metrics._replace(
            steps=taken.astype(np.float32),
            charge=metrics.charge + np.float32(FORWARD_CHARGE) * self._examples,
        )
        if self.settings.reward_split == "validation":
            metrics = metrics._replace(reward_loss=np.full_like(metrics.val_loss, np.nan))
        if self.settings.spec.reward == "relative":
            metrics = metrics._replace(reference_loss=self._reference_losses(decisions, active))
        return metrics

    def _training(self, steps: np.ndarray) -> Iterator[tuple[BatchedRuns, np.ndarray]]:
        """Yield the batches in which a run has steps to do, with their environments."""
        for batch in self._batches.values():
            envs = batch.envs
            if len(envs) and steps[envs].any():
                yield batch, envs

    def _reference_losses(self, decisions: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Train the reference runs' next window; return (N,) float32, nan where one is lost."""
        inside = active & (decisions <= len(self._ends))
        index = np.minimum(decisions, len(self._ends)) - 1
        begun = np.where(index > 0, self._ends[index - 1], 0)
        steps = np.where(inside & ~self._reference_lost, self._ends[index] - begun, 0)
        values = self._values(self._starts, np.zeros_like(self._starts, np.float32))
        losses = np.full(self.num_envs, np.nan, np.float32)
        for batch, envs in self._training(steps):
            given = self._columns(batch, values, envs)
            metrics = batch.reference_window(given, self._schedule, begun[envs], steps[envs])
            by_split = metrics.reward_loss
            if self.settings.reward_split == "validation":
                by_split = metrics.val_loss
            losses[envs] = np.where(steps[envs] > 0, by_split, np.nan)
            lost = (steps[envs] > 0) & (metrics.finite < 1)
            self._reference_lost[envs] |= lost
            losses[envs[lost]] = np.nan
        return losses

    def _values(self, starts: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Return (N, H) values at offsets from their starts, reference excluded."""
        from trimtab.envs.simulators.batch import values_at

        items = self.settings.spec.hyperparameters
        values = values_at(starts.astype(np.float32), offset, items, np)
        low = [item.low if item.kind != "lr" else 0.0 for item in items]
        high = [item.high if item.kind != "lr" else np.inf for item in items]
        clipped: np.ndarray = np.clip(values, low, high)
        return clipped

    def _columns(self, batch: BatchedRuns, values: np.ndarray, envs: np.ndarray) -> np.ndarray:
        """Return (n, H') values in the batch's order; what is not steered is at its default."""
        names = [item.name for item in self.settings.spec.hyperparameters]
        columns = [
            values[envs, names.index(item.name)]
            if item.name in names
            else np.full(len(envs), item.default)
            for item in batch.hyperparameters
        ]
        if "lr" not in names:
            columns[0] = self._rates[envs]
        return np.stack(columns, axis=-1)

    def _info(self, restored: np.ndarray) -> dict[str, Any]:
        assert self._carry is not None, "reset() comes first"
        scale = [0.0 if drawn is None else drawn.factor for drawn in self._begins]
        everyone = np.ones(self.num_envs, bool)
        columns = {
            "step": self._done.copy(),
            "decision": np.asarray(self._carry.decision).astype(np.int64),
            "start_scale": np.array(scale),
            "restored": restored,
        }
        return columns | {f"_{name}": everyone.copy() for name in columns}


def _mode_of(given: Any) -> AutoresetMode:
    """Return when environments that are over are reset."""
    known = {mode.value: mode for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)}
    mode = known.get(getattr(given, "value", given))
    if mode is None:
        raise SpecError(
            f"autoreset_mode: {given!r} is none of {', '.join(known)}; choose one, or make the "
            'environments with vectorization_mode="sync"'
        )
    return mode
