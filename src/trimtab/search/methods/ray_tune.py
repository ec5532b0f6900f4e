"""Ray Tune's schedulers over one process that trains.

Ray starts an actor for each trial and moves trials between actors. Here the trials are only
messengers: one actor, the stable, trains all of them in turn, so that a comparison's method uses
one core, nothing is compiled twice, and weights never leave the process that made them.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.schedulers import pb2 as bandits
from ray.tune.search import Searcher

from trimtab.core.registry import make_task
from trimtab.search.methods.base import Assignment, DecisionSchedule, Outcome, SingleRun, select
from trimtab.search.methods.starts import Start, StartDistribution, generator_for
from trimtab.search.methods.trial import Checkpoint, Trial

_KEPT_CHECKPOINTS = 4  # of each member; a population copies only from its latest
_ASHA_REDUCTION = 4
_PERTURBATIONS = 5  # a run
_ROUNDING = 1e-6  # whole runs


class _Stable:
    """Trains every trial of one search, by key."""

    def __init__(
        self,
        reference: tuple[str, str | None],
        windows: DecisionSchedule,
        starts: StartDistribution,
        seed: int,
    ) -> None:
        name, variant = reference
        self._task = make_task(name, variant=variant, default_member=0)
        self._windows, self._distribution, self._seed = windows, starts, seed
        self._trials: dict[str, Trial] = {}
        self._starts: dict[str, Start] = {}
        self._done: dict[str, SingleRun] = {}
        self._checkpoints: dict[str, dict[int, Checkpoint]] = {}
        self._tokens = 0

    def begin(self, key: str, place: int, values: dict[str, float]) -> None:
        """Begin a trial, unless it is there already."""
        if key in self._trials or key in self._done:
            return
        seed = int(generator_for("search", self._seed, place).integers(2**31))
        self._starts[key] = self._distribution.start(values)
        self._trials[key] = Trial(self._task, seed=seed, windows=self._windows)

    def follow(self, key: str, values: dict[str, float], *, is_member: bool) -> dict[str, Any]:
        """Train a trial to the end of its next window; a lost member waits to be replaced."""
        trial = self._trials[key]
        items = {item.name: item for item in self._distribution.items}
        # Ray's factors of 0.8 and 1.2 do not stop at a range's end.
        values = {
            name: min(max(v, items[name].low), items[name].high) for name, v in values.items()
        }
        rate = self._distribution.rate
        if rate in values:  # a learning rate has no bounds of its own before it has a start
            values[rate] = max(values[rate], 1e-30)
        if trial.lost:
            trial.skip()
        else:
            trial.follow(values, rate=rate)
        over = trial.steps >= self._task.total_steps or (trial.lost and not is_member)
        return {"steps": trial.steps, "score": trial.score, "done": over}

    def keep(self, key: str) -> int:
        """Keep a checkpoint of a trial and return its token."""
        self._tokens += 1
        kept = self._checkpoints.setdefault(key, {})
        kept[self._tokens] = self._trials[key].keep()
        for token in sorted(kept)[:-_KEPT_CHECKPOINTS]:
            del kept[token]
        return self._tokens

    def take(self, key: str, owner: str, token: int) -> None:
        """Let a trial go on from a checkpoint; its own latest one changes nothing."""
        own = self._checkpoints.get(key, {})
        if owner == key and own and token == max(own):
            return
        checkpoint = self._checkpoints[owner][token]
        self._trials[key].take(checkpoint)

    def finish(self, key: str) -> None:
        """Test a trial's best weights and let it go."""
        if key in self._trials:
            self._done[key] = self._trials.pop(key).result(self._starts[key])
            self._checkpoints.pop(key, None)

    def spent(self) -> float:
        """Return the charge of all trials in whole runs."""
        running = sum(trial.spent for trial in self._trials.values())
        return float(running + sum(run.spent for run in self._done.values()))

    def rows(self) -> list[SingleRun]:
        """Return every trial, in the order in which they began."""
        for key in list(self._trials):
            self.finish(key)
        return [self._done[key] for key in self._starts]


class _Messenger(tune.Trainable):  # type: ignore[misc]
    """A Ray trial: passes on what Ray wants of it to the stable."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin, or begin again as another trial."""
        self._stable = config["stable"]
        self._ranges = config["distribution"].ranges()
        self._is_member = bool(config["is_member"])
        self._values_of(config)
        self._key = str(self.trial_id)
        ray.get(self._stable.begin.remote(self._key, int(config["place"]), self._values))

    def _values_of(self, config: dict[str, Any]) -> None:
        given = {name: float(config[name]) for name in self._ranges}
        if config["in_shares"]:
            given = {
                name: self._ranges[name].at(min(max(share, 0.0), 1.0))
                for name, share in given.items()
            }
        self._values = given

    def step(self) -> dict[str, Any]:
        """Train one window."""
        told = self._stable.follow.remote(self._key, self._values, is_member=self._is_member)
        return dict(ray.get(told))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write where the stable keeps the weights."""
        token = ray.get(self._stable.keep.remote(self._key))
        where = {"owner": self._key, "token": token}
        (Path(checkpoint_dir) / "where.json").write_text(json.dumps(where))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Go on from what was kept."""
        where = json.loads((Path(checkpoint_dir) / "where.json").read_text())
        ray.get(self._stable.take.remote(self._key, where["owner"], where["token"]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another trial in the same process."""
        self._let_go()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """End; a member of a population may be paused only, and is kept."""
        self._let_go()

    def _let_go(self) -> None:
        if not self._is_member:
            ray.get(self._stable.finish.remote(self._key))


class _WithinBudget(Searcher):  # type: ignore[misc]
    """Draws starts at random as long as a whole run can still be paid for."""

    def __init__(self, stable: Any, assignment: Assignment, fixed: dict[str, Any]) -> None:
        super().__init__(metric="score", mode="min")
        self._stable, self._fixed = stable, fixed
        self._starts, self._seed, self._budget = (
            assignment.starts,
            assignment.seed,
            assignment.budget,
        )
        self._drawn = 0

    def suggest(self, trial_id: str) -> Any:
        """Return a start, or that the budget is spent."""
        del trial_id
        if ray.get(self._stable.spent.remote()) + 1.0 > self._budget + _ROUNDING:
            return Searcher.FINISHED
        values = _start_values(self._starts, self._seed, self._drawn)
        self._drawn += 1
        return {**self._fixed, "place": self._drawn - 1, **values}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Learn nothing: the starts are random."""

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing; an interrupted search is begun again."""

    def restore(self, checkpoint_path: str) -> None:
        """Take over nothing."""


def _start_values(starts: StartDistribution, seed: int, place: int) -> dict[str, float]:
    return dict(starts.draw(generator_for("population", seed, place)).values)


def _population(
    assignment: Assignment, fixed: dict[str, Any], *, in_shares: bool
) -> dict[str, Any]:
    """Return the search space that gives each member its own start."""
    ranges, seed = assignment.starts.ranges(), assignment.seed
    starts = [_start_values(assignment.starts, seed, i) for i in range(assignment.budget)]
    if in_shares:
        starts = [{name: ranges[name].share_of(v) for name, v in one.items()} for one in starts]

    def pick(name: str) -> Any:
        return tune.sample_from(lambda spec: starts[spec.config.place][name])

    places = tune.grid_search(list(range(assignment.budget)))
    return {**fixed, "place": places, **{name: pick(name) for name in ranges}}


def _scheduler(name: str, assignment: Assignment) -> TrialScheduler:
    total = assignment.task.total_steps
    asked: dict[str, Any] = {"time_attr": "steps", "metric": "score", "mode": "min"}
    if name == "asha":
        grace = max(1, total // _ASHA_REDUCTION**2)
        return ASHAScheduler(
            max_t=total, grace_period=grace, reduction_factor=_ASHA_REDUCTION, **asked
        )
    asked |= {"perturbation_interval": total // _PERTURBATIONS, "synch": True}
    ranges = assignment.starts.ranges()
    if name == "pb2":
        return bandits.PB2(hyperparam_bounds={key: [0.0, 1.0] for key in ranges}, **asked)
    mutations = {
        key: (tune.loguniform if where.is_log else tune.uniform)(where.low, where.high)
        for key, where in ranges.items()
    }
    return PopulationBasedTraining(hyperparam_mutations=mutations, **asked)


def _begin_ray() -> None:
    """Start Ray on one core of this machine, once a process."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        logging_level="error",
        configure_logging=True,
    )


def run_by_ray(name: str, assignment: Assignment) -> Outcome:
    """Spend a budget by one of Ray Tune's schedulers.

    A population has as many members as the budget has whole runs. Schedulers draw from global
    random generators; these are seeded.

    Args:
        name: ``"asha"``, ``"pbt"`` or ``"pb2"``.
        assignment: What is to be done.
    """
    _begin_ray()
    random.seed(assignment.seed)
    np.random.seed(assignment.seed)  # noqa: NPY002 - Ray's schedulers draw from it
    is_member = name != "asha"
    remote = ray.remote(num_cpus=0)(_Stable)
    stable = remote.remote(
        assignment.reference, assignment.windows, assignment.starts, assignment.seed
    )
    fixed = {
        "stable": stable,
        "distribution": assignment.starts,
        "is_member": is_member,
        "in_shares": name == "pb2",
    }
    settings: dict[str, Any] = {
        "scheduler": _scheduler(name, assignment),
        "reuse_actors": True,
        "max_concurrent_trials": None if is_member else 1,
    }
    if is_member:
        space = _population(assignment, fixed, in_shares=name == "pb2")
    else:
        space = {}
        settings |= {"search_alg": _WithinBudget(stable, assignment, fixed), "num_samples": -1}
    try:
        with tempfile.TemporaryDirectory(prefix="trimtab-ray-") as folder:
            tuner = tune.Tuner(
                tune.with_resources(_Messenger, {"cpu": 1}),
                param_space=space,
                tune_config=tune.TuneConfig(**settings),
                run_config=tune.RunConfig(storage_path=folder, name="search", verbose=0),
            )
            errors = tuner.fit().errors
        if errors:
            raise errors[0]
        rows: list[SingleRun] = ray.get(stable.rows.remote())
    finally:
        ray.kill(stable)
    return select(assignment.task, rows)
