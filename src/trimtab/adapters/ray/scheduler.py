"""A scheduler for Ray Tune in the place of its ``PopulationBasedTraining``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler
from ray.tune.search import sample
from ray.tune.utils.util import SafeFallbackEncoder

from trimtab.adapters.ray.checkpoints import TakenCheckpoints, is_there, number_after
from trimtab.adapters.ray.member import Member, MemberSettings, SearchRange, kind_of
from trimtab.core.errors import SpecError
from trimtab.core.notices import tell

DECISIONS_FILE = "trimtab_decisions.jsonl"
"""In the experiment's folder: one JSON object a line for each decision of each member."""

_WIDE = 10.0  # from this ratio of the bounds on, a positive range is taken on a log scale
_KEPT = "trimtab_member"  # attribute of a trial; Ray keeps it with the trial's own state


class TrimtabScheduler(PopulationBasedTraining):  # type: ignore[misc]
    """Steers the learning rate of each member of a population, and replaces the worst members.

    It stands where ``PopulationBasedTraining`` stood, with a trainable that reports a checkpoint
    and begins from ``tune.get_checkpoint()``:

    .. code-block:: python

        scheduler = TrimtabScheduler(
            metric="val_loss",
            mode="min",
            perturbation_interval=5,
            max_t=100,
            hyperparam_bounds={"lr": [1e-5, 1e-1]},
        )
        tuner = tune.Tuner(train, tune_config=tune.TuneConfig(scheduler=scheduler, num_samples=4))

    Every member has a policy of its own, which moves its learning rate from window to window on a
    reference schedule. Members in the lowest quantile take the weights and the policy's memory of
    one of the highest, with the learning rate moved by one of ``perturbation_factors``; all other
    hyperparameters change only then, as in population-based training.

    Where it differs from population-based training in Ray:

    * no value leaves its range, whatever the factors (there: a range is only drawn from);
    * with ``synch=True``, the default, equal seeds give equal decisions (there: the global random
      generator);
    * what it knows of a member is kept in Ray's own state of the trial, so that after
      ``Tuner.restore`` it goes on as if nothing had happened (there: it begins anew);
    * a member whose metric is not a finite number is replaced (there: it goes on).

    A trial's start is ``config[name]`` or, where it is missing, drawn within the range. Policies
    begin far below the start where the run is long enough, and come up to it in short windows.

    Args:
        time_attr: Key of the time in a report; a count that rises by 1 with each report.
        metric: Key of the watched metric, best on validation; None to take the tuner's.
        mode: ``"min"`` or ``"max"``; None to take the tuner's.
        perturbation_interval: Units of time between decisions.
        max_t: Units of time of a whole trial; None to take them from the experiment's
            ``stop={time_attr: ...}``.
        hyperparam_mutations: Name -> ``tune.uniform``, ``tune.loguniform``, ``tune.randint`` and
            the like, or a list of choices.
        hyperparam_bounds: Name -> ``[low, high]``, in the place of or beside the mutations.
        kinds: Name -> kind, where the name does not say it; the kind ``lr`` is steered.
        quantile_fraction: Share of the population that is replaced, and that replaces.
        resample_probability: Chance that a hyperparameter that is not steered is drawn anew.
        perturbation_factors: By which values are moved when a member is replaced.
        log_config: Whether Ray's own ``pbt_policy_*.txt`` are written, which
            ``PopulationBasedTrainingReplay`` reads.
        require_attrs: Whether a report without time or metric is an error.
        synch: Whether members wait for each other before a decision.
        seed: Of everything that is drawn.
        policy: Name or path of a policy, or None for the reference alone.
        reference: Name of the schedule that learning rates follow; ``"constant"`` where the
            trainable has a schedule of its own.

    Raises:
        SpecError: A range or number is not allowed, or none is of kind ``lr``.
    """

    def __init__(
        self,
        time_attr: str = "training_iteration",
        metric: str | None = None,
        mode: str | None = None,
        perturbation_interval: float = 1.0,
        *,
        max_t: int | None = None,
        hyperparam_mutations: Mapping[str, Any] | None = None,
        hyperparam_bounds: Mapping[str, Sequence[float]] | None = None,
        kinds: Mapping[str, str] | None = None,
        quantile_fraction: float = 0.25,
        resample_probability: float = 0.25,
        perturbation_factors: Sequence[float] = (1.2, 0.8),
        log_config: bool = True,
        require_attrs: bool = True,
        synch: bool = True,
        seed: int = 0,
        policy: Any = "trimtab-1",
        reference: str = "warmup-linear",
    ) -> None:
        ranges = _ranges_of(hyperparam_mutations or {}, hyperparam_bounds or {}, kinds or {})
        self._shared = {
            "ranges": ranges,
            "total": None if max_t is None else int(max_t),
            "interval": float(perturbation_interval),
            "policy": policy,
            "reference": reference,
            "seed": seed,
            "factors": tuple(float(factor) for factor in perturbation_factors),
            "resample": resample_probability,
        }
        # Says what is wrong before Ray is asked for anything.
        MemberSettings(**self._shared | ({"total": sys.maxsize} if max_t is None else {}))
        super().__init__(
            time_attr=time_attr,
            metric=metric,
            mode=mode,
            perturbation_interval=perturbation_interval,
            hyperparam_mutations={item.name: _domain_of(item) for item in ranges},
            quantile_fraction=quantile_fraction,
            resample_probability=resample_probability,
            perturbation_factors=tuple(perturbation_factors),
            log_config=log_config,
            require_attrs=require_attrs,
            synch=synch,
        )
        self._members: dict[Trial, Member] = {}
        self._left: set[Trial] = set()
        self._taken = TakenCheckpoints()

    # What Ray calls.

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Take a trial into the population, as it was if it has been in one before."""
        total = self._total_of(trial)
        settings = MemberSettings(**self._shared | {"total": total}, mode=self._mode or "min")
        kept = trial.__dict__.get(_KEPT)
        if kept:
            member = Member.from_state(settings, kept)
        else:
            names = {item.name for item in settings.ranges}
            given = {name: value for name, value in trial.config.items() if name in names}
            member = Member(settings, len(self._members), given)
        self._members[trial] = member
        self._left.discard(trial)  # it may be here again after an error
        trial.set_config({**trial.config, **member.values})
        super().on_trial_add(tune_controller, trial)
        state = self._trial_state[trial]
        state.last_result = trial.last_result or None
        state.last_score = -member.loss if math.isfinite(member.loss) else -math.inf
        self._keep(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Take in a report; decide when a window has ended, and all members' if they wait."""
        missing = [key for key in (self._time_attr, self._metric) if key not in result]
        if missing:
            return self._without(missing, result)
        member, state = self._members[trial], self._trial_state[trial]
        if result[self._time_attr] < member.boundary:
            return str(TrialScheduler.CONTINUE)
        member.report(float(result[self._metric]))
        state.last_train_time, state.last_result = result[self._time_attr], result
        state.last_score = -member.loss if math.isfinite(member.loss) else -math.inf
        if not self._synch:
            self._decide(tune_controller, [trial])
        elif not self._decide_if_complete(tune_controller):
            self._keep(tune_controller, trial)
            return str(TrialScheduler.PAUSE)
        if trial.status == Trial.PAUSED:
            return str(TrialScheduler.NOOP)
        others = [one for one in tune_controller.get_trials() if one is not trial]
        is_awaited = any(one.status in (Trial.PENDING, Trial.PAUSED) for one in others)
        return str(TrialScheduler.PAUSE if is_awaited else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: Any) -> None:
        """Let a trial go; the others no longer wait for it."""
        del result
        self._leave(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Let a trial go; the others no longer wait for it."""
        self._leave(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Let a trial go that failed for good; the others no longer wait for it."""
        if trial.status != Trial.ERROR:  # Ray ends one first if it is going to add it again
            self._leave(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the trial that is furthest behind, of those that wait for no decision."""
        ready = [
            trial
            for trial in tune_controller.get_trials()
            if trial.status in (Trial.PENDING, Trial.PAUSED) and not self._members[trial].waiting
        ]
        return min(
            ready,
            key=lambda trial: (self._members[trial].boundary, self._members[trial].number),
            default=None,
        )

    def debug_string(self) -> str:
        """Return one line for Ray's status table."""
        made = sum(len(member.log) for member in self._members.values())
        return f"{type(self).__name__}: {made} decisions, {self._num_perturbations} changes"

    # What it does.

    def _without(self, missing: Sequence[str], result: Mapping[str, Any]) -> str:
        text = (
            f"{', '.join(missing)} not in a report with {', '.join(sorted(result))}; "
            "report it, or name another time_attr or metric"
        )
        if self._require_attrs:
            raise SpecError(text)
        tell(text)
        return str(TrialScheduler.CONTINUE)

    def _total_of(self, trial: Trial) -> int:
        """Return the units of time of a whole trial."""
        total = self._shared["total"]
        if total is None and self._time_attr not in trial.stopping_criterion:
            names = ", ".join(map(repr, trial.stopping_criterion)) or "nothing"
            raise SpecError(
                f"max_t: None, and stop names no {self._time_attr!r} (it names {names}); give "
                f"max_t, or stop={{{self._time_attr!r}: ...}}"
            )
        return int(trial.stopping_criterion[self._time_attr] if total is None else total)

    def _active(self) -> list[Trial]:
        """Return the trials that still take part, in the population's order."""
        active = [t for t in self._members if not t.is_finished() and t not in self._left]
        return sorted(active, key=lambda trial: self._members[trial].number)

    def _leave(self, tune_controller: Any, trial: Trial) -> None:
        self._left.add(trial)
        self._trial_state[trial].last_checkpoint = None
        if self._synch:
            self._decide_if_complete(tune_controller)

    def _decide_if_complete(self, tune_controller: Any) -> bool:
        """Decide for all members if all of them wait; return whether that was so."""
        members = self._members
        active = self._active()
        expected = [t for t in active if members[t].waiting or members[t].boundary < math.inf]
        if not expected or not all(members[trial].waiting for trial in expected):
            return False
        self._decide(tune_controller, expected)
        return True

    def _decide(self, tune_controller: Any, trials: Sequence[Trial]) -> None:
        """Decide for members whose windows have ended."""
        for trial in trials:
            self._save(tune_controller, trial)
        sources = self._sources(trials)
        before = {trial: dict(self._members[trial].values) for trial in trials}
        for trial in trials:
            if trial not in sources:
                self._members[trial].decide()
                if self._members[trial].is_best:
                    checkpoint = self._trial_state[trial].last_checkpoint
                    self._members[trial].best_path = checkpoint.path if checkpoint else ""
        for trial, source in sources.items():
            self._members[trial].follow(self._members[source])
        for trial in trials:
            source = sources.get(trial, trial)
            member = self._members[trial]
            if source is not trial or member.wants_best or member.values != before[trial]:
                self._go_on_from(tune_controller, trial, source)
            self._keep(tune_controller, trial)
            self._write(trial)
        self._taken.release(self._active())

    def _sources(self, trials: Iterable[Trial]) -> dict[Trial, Trial]:
        """Return whose place the worst of some trials take, by trial."""
        members = self._members
        told = [t for t in self._active() if members[t].log or members[t].waiting]
        ranked = sorted(told, key=lambda t: (_rank(members[t].loss), members[t].number))
        count = min(math.ceil(len(ranked) * self._quantile_fraction), len(ranked) // 2)
        state = self._trial_state
        # In step, a leader's latest report counts; otherwise what it did at its own last decision.
        leaders = [
            t
            for t in ranked[:count]
            if is_there(state[t].last_checkpoint)
            and math.isfinite(members[t].loss)
            and (self._synch or members[t].can_be_followed)
        ]
        sources: dict[Trial, Trial] = {}
        for trial in trials:
            member = members[trial]
            is_lost = not math.isfinite(member.loss)
            is_last = trial in ranked[len(ranked) - count :] and member.may_follow
            better = [t for t in leaders if _rank(members[t].loss) < _rank(member.loss)]
            if better and (is_lost or is_last):
                draw = member.settings.generator(member.number, len(member.log))
                sources[trial] = better[int(draw.integers(len(better)))]
        return sources

    def _save(self, tune_controller: Any, trial: Trial) -> None:
        """Note the checkpoint of a trial's weights as they are now."""
        state = self._trial_state[trial]
        if trial.status != Trial.RUNNING:
            latest = trial.latest_checkpoint_result
            state.last_checkpoint = trial.checkpoint
            state.last_result = latest.metrics if latest else state.last_result
            return
        future = tune_controller._schedule_trial_save(trial, result=state.last_result)
        saved = future.resolve() if future else None
        state.last_checkpoint = saved.checkpoint if saved else None
        if saved and saved.checkpoint:
            state.last_result = saved.metrics
            number_after(trial, saved.checkpoint)
        self._num_checkpoints += 1

    def _go_on_from(self, tune_controller: Any, trial: Trial, source: Trial) -> None:
        """Start a trial again with its member's values, from a checkpoint of the source."""
        state = self._trial_state[source]
        latest = state.last_checkpoint
        if latest is None:
            tell(
                f"trial {trial.trial_id} reports no checkpoint, so its values cannot be changed; "
                "pass checkpoint= to tune.report()"
            )
            return
        if source is not trial:
            self._taken.hold(source, latest, state.last_result)
        self._end_save(trial)
        if source is trial and self._members[trial].wants_best:
            state.last_checkpoint = self._best(trial) or latest
        try:
            self._exploit(tune_controller, trial, source)
        finally:
            state.last_checkpoint = latest

    def _end_save(self, trial: Trial) -> None:
        """Do what Ray does at the end of a save, for a trial that is going to be paused before.

        If Ray paused a trial that it takes for saving, it would keep a STOP in mind, and carry that
        out at the end of the trial's next save.
        """
        trial.temporary_state.saving_to = None
        state = self._trial_state[trial]
        if trial.status == Trial.RUNNING and state.last_checkpoint is not None:
            self._taken.register(trial, state.last_checkpoint, state.last_result)

    def _best(self, trial: Trial) -> Any:
        """Return the checkpoint of a member's best weights, or None if Ray has deleted it."""
        path = self._members[trial].best_path
        best = tune.Checkpoint(path, filesystem=trial.storage.storage_filesystem) if path else None
        return best if is_there(best) else None

    def _get_new_config(
        self, trial: Trial, trial_to_clone: Trial
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the configuration of a trial that goes on from another's weights, or its own."""
        member = self._members[trial]
        config = {**trial_to_clone.config, **member.values}
        return config, dict.fromkeys(member.values, "trimtab")

    def _log_config_on_step(
        self, trial_state: Any, new_state: Any, trial: Trial, trial_to_clone: Trial, new_config: Any
    ) -> None:
        """Write what `PopulationBasedTrainingReplay` reads; Ray's own copies a file onto itself."""
        if trial is not trial_to_clone:
            super()._log_config_on_step(trial_state, new_state, trial, trial_to_clone, new_config)
            return
        tag, time = trial_state.orig_tag, trial.last_result.get("training_iteration", 0)
        line = json.dumps([tag, tag, time, time, trial.config, new_config], cls=SafeFallbackEncoder)
        folder = Path(trial.local_experiment_path)
        for name in ("pbt_global.txt", f"pbt_policy_{trial.trial_id}.txt"):
            with (folder / name).open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def _keep(self, tune_controller: Any, trial: Trial) -> None:
        """Put the member where Ray keeps the trial; both are always of the same moment."""
        trial.__dict__[_KEPT] = self._members[trial].state_dict()
        trial.invalidate_json_state()
        mark = getattr(tune_controller, "_mark_trial_to_checkpoint", None)
        if mark is not None:
            mark(trial)

    def _write(self, trial: Trial) -> None:
        folder = trial.local_experiment_path
        if folder and self._members[trial].log:
            row = {"trial": trial.trial_id, **self._members[trial].log[-1]}
            with (Path(folder) / DECISIONS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def read_decisions(experiment: str | Path) -> list[dict[str, Any]]:
    """Return the decisions of an experiment's folder, by time and member.

    A row has ``trial``, ``member``, ``time``, ``loss`` (lower is better), ``values``, ``source``
    (whose weights go on) and ``why``. What was decided again after a restore is there once.

    Raises:
        FileNotFoundError: Nothing was decided there.
    """
    text = (Path(experiment) / DECISIONS_FILE).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    latest = {(row["time"], row["member"]): row for row in rows}
    return [latest[key] for key in sorted(latest)]


def _rank(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def _ranges_of(
    mutations: Mapping[str, Any], bounds: Mapping[str, Sequence[float]], kinds: Mapping[str, str]
) -> tuple[SearchRange, ...]:
    """Return the ranges that a scheduler was given, in Ray's domains, lists or pairs of bounds.

    Args:
        mutations: Name -> domain or list of choices.
        bounds: Name -> ``[low, high]``.
        kinds: Name -> kind, where the name does not say it.

    Raises:
        SpecError: Something has no bounds that could be kept, or is given twice.
    """
    twice = sorted(set(mutations) & set(bounds))
    if twice:
        raise SpecError(f"{twice[0]} is in hyperparam_mutations and in hyperparam_bounds; keep one")
    found: list[SearchRange] = []
    for name, given in mutations.items():
        found.append(_range_of(name, kinds.get(name, kind_of(name)), given))
    for name, pair in bounds.items():
        if len(pair) != 2:
            raise SpecError(f"{name}: {list(pair)!r} is no pair of bounds; give [low, high]")
        low, high = float(pair[0]), float(pair[1])
        kind = kinds.get(name, kind_of(name))
        is_log = low > 0 and (kind == "lr" or high >= _WIDE * low)
        found.append(SearchRange(name, kind, low, high, is_log))
    return tuple(found)


def _range_of(name: str, kind: str, given: Any) -> SearchRange:
    if isinstance(given, sample.Categorical):
        given = given.categories
    if isinstance(given, list | tuple):
        if not given or kind == "lr":
            raise SpecError(
                f"{name}: {list(given)!r} cannot be steered; give a range such as "
                "tune.loguniform(1e-5, 1e-1)"
            )
        return SearchRange(name, kind, choices=tuple(given))
    if isinstance(given, sample.Float | sample.Integer):
        sampler = given.get_sampler()
        sampler = getattr(sampler, "sampler", sampler)  # a quantised one wraps another
        is_integer = isinstance(given, sample.Integer)
        high = float(given.upper) - (1.0 if is_integer else 0.0)  # integers end before it
        is_log = type(sampler).__name__.endswith("LogUniform")
        return SearchRange(name, kind, float(given.lower), high, is_log, is_integer)
    raise SpecError(
        f"{name}: {given!r} has no bounds that could be kept; give tune.uniform(), "
        "tune.loguniform(), tune.randint(), a list of choices, or hyperparam_bounds"
    )


def _domain_of(item: SearchRange) -> Any:
    """Return what Ray itself is told of a range; it names it and never draws from it."""
    return list(item.choices) if item.choices else tune.uniform(item.low, item.high)
