"""trimtab's own way to spend a budget: a steered run, restarts, forks, and runs stopped early."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.core.protocols import Task
from trimtab.core.references import reference_multipliers
from trimtab.core.spec import window_ends
from trimtab.records.store.rows import UnitRequest
from trimtab.search.methods.starts import generator_for
from trimtab.search.study.plan import Entry, StudySettings, best_of, spent_by
from trimtab.search.study.runs import run_setup
from trimtab.search.study.samplers import propose_choices
from trimtab.search.study.spaces import Space, space_of

_STEERED = ("first", "restart", "fork")
_TURNS = ("reference", "reference", "restart")  # by place, after the first run at place 0
_ROUNDING = 1e-6
_FORK_AT = (0.3, 0.55)  # shares of all steps after which runs may be forked
_SHIFT, _NOISE = 2.0, 0.7  # in places among the moves
_WAYS = 3  # up, down, by chance
_STOP_FROM, _STOP_AFTER_FORK = 0.5, 0.2  # progress before which nothing is stopped
_USUAL_MARGIN = 0.2  # nats; taken until the study's own spread is known
_SPREAD_FROM = 3
_STEP = 0.3  # decades to a neighbour that was not tried yet
_NEAR = 0.05  # decades within which two peaks are the same place
_AGAIN = 0.1  # decades aside, where the best place was tried already
_SMALLEST = 1e-300


class SteeredStrategy:
    """Spends a budget on steered runs, and on plain schedules at the rates that these find.

    The first run starts where it is told to. Then rounds of fixed size, whatever the number of
    workers: the reference schedule at the learning rate that the steered run really used; a steered
    run that starts at the best rate so far, with other static choices if there are any to make;
    then by turns two further peaks of the reference around the best one (`next_decade`) and a
    steered run again. Each is stopped early when the best run of earlier rounds is out of its
    reach; the steps that are saved go to further runs. What is less than a whole run in the end
    goes to forks of the best steered run's snapshots, with other actions. No run begins that could
    not be finished within the budget.

    A tuned reference is what steering has to beat, so a budget buys both: what is returned is never
    worse on validation than either.

    Args:
        task: What is trained.
        seed: Of the first run, and of whatever is drawn.
        settings: Of the study.
    """

    def __init__(self, task: Task, seed: int, settings: StudySettings) -> None:
        self._task, self._seed, self._settings = task, seed, settings
        self._space: Space = space_of(task, settings.start, settings.vary)
        self._is_space_own = getattr(task, "space", None) is not None
        steered = [item for item in task.hyperparameters if item.name in settings.hyperparameters]
        self._rates = tuple(item.name for item in steered if item.kind == "lr")
        spec, _, _ = run_setup(task, settings, {"seed": 0, "choices": {}})
        # Decision k is taken at the k-th of these steps.
        steps = [0, *(int(end) for end in window_ends(spec, task.total_steps))]
        self._progress = [step / task.total_steps for step in steps]
        self._forks = tuple(
            dict.fromkeys(
                min(range(1, len(steps) - 1), key=lambda k: abs(self._progress[k] - share))
                for share in _FORK_AT
            )
            if len(steps) > 2
            else ()
        )

    def propose(self, entries: Sequence[Entry], budget: float) -> list[UnitRequest]:
        """Return the next units; see `trimtab.search.study.plan.Strategy`."""
        if not entries:
            return [self._first()]
        if self._is_enough(entries):
            return []
        left = budget - spent_by(entries) + _ROUNDING
        place, round_ = len(entries), entries[-1].round + 1
        proposed: list[UnitRequest] = []
        taken: list[Mapping[str, Any]] = []
        while len(proposed) < self._settings.round_size:
            number = place + len(proposed)
            request = self._next(entries, taken, number, left)
            if request is None:
                break
            proposed.append(UnitRequest(number, round_, _kind(request), request))
            taken.append(request)
            left -= float(request["cost"])
        return proposed

    def _first(self) -> UnitRequest:
        request = {"seed": self._seed, "choices": {}, "keep": list(self._forks), "cost": 1.0}
        return UnitRequest(0, 0, "first", request)

    def _next(
        self, entries: Sequence[Entry], taken: Sequence[Mapping[str, Any]], place: int, left: float
    ) -> dict[str, Any] | None:
        """Return what is done next with what is left; a fork, if no whole run fits any more."""
        if left < 1.0:
            return self._fork(entries, taken, place, left)
        is_reference = _TURNS[place % len(_TURNS)] == "reference"
        reference = self._reference(entries, taken, place) if is_reference else None
        return reference or self._restart(entries, taken, place)

    def _restart(
        self, entries: Sequence[Entry], taken: Sequence[Mapping[str, Any]], place: int
    ) -> dict[str, Any]:
        """Return a steered run at the best rate so far, with static choices of its own."""
        begun = [entry for entry in entries if entry.kind in ("first", "restart")]
        rates = self._best_rates(entries)
        is_free = any(item.name not in self._rates for item in self._space.parameters)
        choices = self._sampled(begun, taken) if is_free or not rates else {}
        return {
            "seed": self._new_seed(place),
            "choices": choices | self._allowed(rates),
            "keep": list(self._forks),
            "stop": self._stop_rule(entries),
            "cost": 1.0,
        }

    def _reference(
        self, entries: Sequence[Entry], taken: Sequence[Mapping[str, Any]], place: int
    ) -> dict[str, Any] | None:
        """Return the reference schedule at another peak, beside the best run's other choices."""
        found = self._used_rates(best_of([entry for entry in entries if entry.kind in _STEERED]))
        best = best_of(entries)
        if not found or best is None:
            return None
        others = self._without_rates(best.request["choices"])
        rate = next(iter(found))

        def decade(choices: Mapping[str, Any]) -> float:
            return round(math.log10(float(choices[rate]) / found[rate]), 6)

        tried = [
            (decade(entry.request["choices"]), entry.loss)
            for entry in entries
            if entry.kind == "reference" and self._without_rates(entry.request["choices"]) == others
        ]
        under_way = [decade(one["choices"]) for one in taken if not one.get("steered", True)]
        factor = 10.0 ** next_decade(tried, under_way)
        peaks = {name: value * factor for name, value in found.items()}
        return {
            "seed": self._new_seed(place),
            "choices": others | self._allowed(peaks),
            "steered": False,
            "keep": [],
            "stop": self._stop_rule(entries),
            "cost": 1.0,
        }

    def _new_seed(self, place: int) -> int:
        return int(generator_for("tune", self._seed, place).integers(2**31))

    def _without_rates(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in choices.items() if name not in self._rates}

    def _allowed(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Return learning rates within the hyperparameters' bounds, and the task's own space."""
        offered = {item.name: item for item in self._task.hyperparameters}
        kept = {
            name: min(max(value, offered[name].low), offered[name].high)
            for name, value in rates.items()
        }
        return kept | self._space.within(kept) if self._is_space_own else kept

    def _best_rates(self, entries: Sequence[Entry]) -> dict[str, float]:
        """Return the rates of the best run: the peak of a reference, what a steered one used."""
        best = best_of(entries)
        if best is None or best.kind != "reference":
            return self._used_rates(best)
        return {name: float(best.request["choices"][name]) for name in self._rates}

    def _sampled(
        self, begun: Sequence[Entry], taken: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        restarts = sum(_kind(one) == "restart" for one in taken)
        return propose_choices(
            self._space,
            [(self._full_choices(entry.request["choices"]), entry.loss) for entry in begun],
            sampler=self._settings.sampler,
            seed=self._seed,
            number=len(begun) + restarts,
        )

    def _full_choices(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """Return the choices of a run, those that were left at their start included."""
        usual = {item.name: item.default for item in self._task.hyperparameters}
        usual |= dict(self._settings.start)
        for item in self._space.parameters:
            if item.options and item.name not in usual:
                usual[item.name] = item.options[0]
        return self._space.within(usual | dict(choices))

    def _used_rates(self, best: Entry | None) -> dict[str, float]:
        """Return the learning rates that the best run really used: the peaks of its schedule.

        The reference's own rise and fall is taken out, and the middle one of the upper half of
        what is left stands for the run.
        """
        if best is None:
            return {}
        shape = reference_multipliers(self._settings.reference, self._task.total_steps)
        found: dict[str, float] = {}
        for item in self._task.hyperparameters:
            values = np.asarray(best.outcome.get("schedule", {}).get(item.name, ()), float)
            if item.name not in self._rates or len(values) == 0:
                continue
            peaks = np.sort(values / np.maximum(shape[: len(values)], 0.05))
            found[item.name] = float(np.median(peaks[len(peaks) // 2 :]))
        return {name: value for name, value in found.items() if value > 0}

    def _fork(
        self, entries: Sequence[Entry], taken: Sequence[Mapping[str, Any]], place: int, left: float
    ) -> dict[str, Any] | None:
        """Return a fork of the best run that was not tried yet and fits into what is left."""
        parent = best_of([entry for entry in entries if entry.kind in _STEERED])
        if parent is None:
            return None
        points = parent.outcome.get("forks", ())  # none, if the task's runs cannot be kept
        before = [one["fork"] for one in (*(e.request for e in entries), *taken) if "fork" in one]
        own = parent.request.get("fork")
        first = -1 if own is None else int(own["decision"])
        for decision, way in [(d, w) for w in range(_WAYS) for d in points]:
            cost = 1.0 - self._progress[decision]
            fork = {"place": parent.place, "decision": decision, **self._way(way, place)}
            ways = [(o["place"], o["decision"], o["way"]) for o in before]
            if decision <= first or cost > left or (parent.place, decision, way) in ways:
                continue
            return {
                "seed": parent.request["seed"],
                "choices": dict(parent.request["choices"]),
                "fork": fork,
                "keep": [one for one in self._forks if one > decision],
                "stop": self._stop_rule(entries, self._progress[decision]),
                "cost": cost,
            }
        return None

    def _way(self, way: int, place: int) -> dict[str, Any]:
        if way < 2:
            return {"way": way, "shift": _SHIFT if way == 0 else -_SHIFT}
        seed = int(generator_for("tune-fork", self._seed, place).integers(2**31))
        return {"way": way, "noise": _NOISE, "seed": seed}

    def _stop_rule(self, entries: Sequence[Entry], forked_at: float = 0.0) -> dict[str, Any] | None:
        best = best_of(entries)
        path = [] if best is None else best.outcome.get("path", [])
        if len(path) < 2 or path[-1][0] < 1.0 - _ROUNDING:
            return None
        return {
            "progress": [point[0] for point in path],
            "potential": [point[1] for point in path],
            "margin": self._margin(entries),
            "since": max(_STOP_FROM, forked_at + _STOP_AFTER_FORK),
        }

    def _margin(self, entries: Sequence[Entry]) -> float:
        """Return how far behind, in nats, a run's hoped-for end may be: the study's own spread."""
        ends = [_end(entry) for entry in entries if _end(entry) is not None]
        known = [end for end in ends if end is not None]
        if len(known) < _SPREAD_FROM:
            return _USUAL_MARGIN
        return max(_USUAL_MARGIN, 0.5 * statistics.stdev(known))

    def _is_enough(self, entries: Sequence[Entry]) -> bool:
        worth = self._settings.stop_when_gain_below
        if worth is None:
            return False
        losses = [e.loss for e in entries if e.is_candidate and not e.outcome.get("stopped")]
        gain = expected_gain(losses)
        return gain is not None and gain < worth


def _kind(request: Mapping[str, Any]) -> str:
    if "fork" in request:
        return "fork"
    return "restart" if request.get("steered", True) else "reference"


def _end(entry: Entry) -> float | None:
    path = entry.outcome.get("path") or []
    is_whole = entry.is_candidate and not entry.outcome.get("stopped")
    return float(path[-1][1]) if path and is_whole else None


def expected_gain(losses: Sequence[float]) -> float | None:
    """Return how much one more run is expected to gain on the best; None with under 3 runs.

    The expected improvement of a normal law with the runs' own mean and spread, in the unit of
    the loss (Jones, Schonlau and Welch, 1998, eq. 15).

    >>> round(expected_gain([1.0, 1.0, 1.0]), 6), expected_gain([1.0, 2.0]) is None
    (0.0, True)
    """
    if len(losses) < _SPREAD_FROM:
        return None
    mean, spread = statistics.fmean(losses), statistics.stdev(losses)
    if spread <= 0:
        return 0.0
    z = (min(losses) - mean) / spread
    law = statistics.NormalDist()
    return spread * (z * law.cdf(z) + law.pdf(z)) if math.isfinite(z) else 0.0


def next_decade(tried: Sequence[tuple[float, float]], taken: Sequence[float] = ()) -> float:
    """Return where to look next, in decades from the found rate.

    First the found rate itself; then 0.3 decades to either side of the best place, until it has a
    neighbour there; then the lowest point of the parabola through the best place and its
    neighbours, in the log of the loss; a tenth of a decade aside where that was tried already.

    Args:
        tried: Decades from the found rate, and the loss there; infinite for a run that was lost.
        taken: Decades of runs that are under way, whose losses are not known yet.

    >>> next_decade([]), next_decade([(0.0, 2.0)]), next_decade([(0.0, 2.0)], [0.3])
    (0.0, 0.3, -0.3)
    """
    if not tried:
        return 0.0 if not taken else _aside(0.0, list(taken))
    losses: dict[float, float] = {}
    for place, loss in tried:
        losses[place] = min(loss, losses.get(place, np.inf))
    best = min(losses, key=lambda place: (losses[place], abs(place)))
    known = [*losses, *taken]
    above = [place for place in known if place > best + _NEAR]
    below = [place for place in known if place < best - _NEAR]
    if not above:
        return best + _STEP
    if not below:
        return best - _STEP
    above = [place for place in above if place in losses]
    below = [place for place in below if place in losses]
    lowest = best
    if above and below:
        lowest = _lowest_point([max(below), best, min(above)], losses)
    return _aside(lowest, known)


def _lowest_point(places: Sequence[float], losses: dict[float, float]) -> float:
    """Return the lowest point of the parabola through three places, the middle one lowest."""
    values = np.array([losses[place] for place in places])
    if not np.all(np.isfinite(values)):
        return places[1]
    curve = np.polyfit(places, np.log(np.maximum(values, _SMALLEST)), 2)
    if not curve[0] > 0:
        return places[1]
    return float(np.clip(-curve[1] / (2 * curve[0]), places[0], places[2]))


def _aside(place: float, known: Sequence[float]) -> float:
    """Return a place, or the nearest one by its side that was not tried yet."""
    for distance in range(2 * len(known) + 2):
        for sign in (1, -1):
            at = place + sign * distance * _AGAIN
            if all(abs(at - other) >= _NEAR for other in known):
                return at
    return place
