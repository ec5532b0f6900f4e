"""Proposing static choices by a sampler of Optuna's or Hyperopt's, or by chance; never by state.

Every proposal is made anew from what is known, so that whoever goes on with a study, in whatever
process, gets the same one.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.core.errors import MissingDependencyError, unknown_name
from trimtab.core.notices import tell
from trimtab.core.static_choice import StaticChoice
from trimtab.search.methods.starts import Range, generator_for
from trimtab.search.study.spaces import Space

SAMPLERS: tuple[str, ...] = ("optuna", "hyperopt", "random")
_STARTUP = 2  # proposals by chance before a sampler's model speaks


def usual_sampler() -> str:
    """Return the sampler of a new study: Optuna's where it is installed, else chance."""
    if importlib.util.find_spec("optuna") is not None:
        return "optuna"
    tell(
        "Optuna is not installed, so static choices are drawn by chance; "
        "pip install 'trimtab[search]' lets it propose them"
    )
    return "random"


def propose_choices(
    space: Space,
    known: Sequence[tuple[Mapping[str, Any], float]],
    *,
    sampler: str,
    seed: int,
    number: int,
) -> dict[str, Any]:
    """Return the next choices.

    Args:
        space: What is chosen.
        known: Choices that were tried, with their losses; infinite for a failure.
        sampler: One of `SAMPLERS`.
        seed: Of the study.
        number: Which proposal this is; each draws from a stream of its own.

    Raises:
        MissingDependencyError: The sampler's package is not installed.
        UnknownNameError: There is no such sampler.
    """
    if sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    drawn = int(generator_for("choices", seed, number).integers(2**31))
    if sampler == "random":
        return _by_chance(space, drawn)
    if importlib.util.find_spec(sampler) is None:
        raise MissingDependencyError(
            f"the study's static choices are proposed by {sampler}, which is not installed; "
            "pip install 'trimtab[rivals]'"
        )
    propose = _optuna if sampler == "optuna" else _hyperopt
    return propose(space, [pair for pair in known if math.isfinite(pair[1])], drawn)


class _Chance:
    """Suggests by chance, in the words of an Optuna trial."""

    def __init__(self, seed: int) -> None:
        self._generator = generator_for("chance", seed)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        del name
        return Range(low, high, log).at(float(self._generator.uniform()))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        return round(self.suggest_float(name, low, high, log=log))

    def suggest_categorical(self, name: str, options: Sequence[Any]) -> Any:
        del name
        return options[int(self._generator.integers(len(options)))]


def _by_chance(space: Space, seed: int) -> dict[str, Any]:
    return space.suggest(_Chance(seed))


def _optuna(
    space: Space, known: Sequence[tuple[Mapping[str, Any], float]], seed: int
) -> dict[str, Any]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    for choices, loss in known:
        study.add_trial(
            optuna.trial.create_trial(
                params=dict(choices), distributions=space.distributions(choices), value=loss
            )
        )
    return space.suggest(study.ask())


def _hyperopt(
    space: Space, known: Sequence[tuple[Mapping[str, Any], float]], seed: int
) -> dict[str, Any]:
    import hyperopt
    import numpy as np

    found: list[dict[str, Any]] = []

    def objective(sample: Mapping[str, Any]) -> float:
        found.append(_flat(sample))
        return known[len(found) - 1][1] if len(found) <= len(known) else 0.0

    def suggest(new_ids: Any, domain: Any, trials: Any, seed: Any) -> Any:
        return hyperopt.tpe.suggest(new_ids, domain, trials, seed, n_startup_jobs=_STARTUP)

    # What is known is told as trials that are already chosen; the one after them is the proposal.
    hyperopt.fmin(
        objective,
        _hyperopt_level(space, "", None),
        algo=suggest,
        max_evals=len(known) + 1,
        trials=_told_trials(space, [choices for choices, _ in known]),
        rstate=np.random.default_rng(seed),
        show_progressbar=False,
        verbose=False,
        return_argmin=False,
    )
    return space.within(found[-1])


def _told_trials(space: Space, known: Sequence[Mapping[str, Any]]) -> Any:
    """Return Hyperopt's trials of choices that are known, to be evaluated first."""
    import hyperopt
    from hyperopt.fmin import generate_trials_to_calculate

    if not known:
        return hyperopt.Trials()
    points = [_hyperopt_point(space, choices) for choices in known]
    trials = generate_trials_to_calculate(points)
    labels = {label for point in points for label in point} | set(_labels(space))
    for trial in trials._dynamic_trials:
        for label in labels:  # it expects every label of every trial, without a value where none is
            for part in ("idxs", "vals"):
                trial["misc"][part].setdefault(label, [])
    trials.refresh()
    return trials


def _label(item: StaticChoice, option: Any) -> str:
    """Return what Hyperopt calls a choice under an option of its parent, if it has one."""
    return f"{item.name}|{item.parent}={option}" if item.parent else item.name


def _hyperopt_level(space: Space, parent: str, option: Any) -> dict[str, Any]:
    """Return Hyperopt's space of the choices that depend on an option; at the top on none.

    A choice with dependants is ``{name: option, dependant: ...}`` in Hyperopt's sample.
    """
    from hyperopt import hp

    found: dict[str, Any] = {}
    for item in space.parameters:
        if item.parent != parent or (parent and option not in item.parent_options):
            continue
        label = _label(item, option)
        if item.options:
            inner = [
                {item.name: one, **_hyperopt_level(space, item.name, one)} for one in item.options
            ]
            found[item.name] = hp.choice(label, inner)
        elif item.is_log:
            low, high = math.log(item.low), math.log(item.high)
            made = hp.qloguniform if item.is_whole else hp.loguniform
            found[item.name] = made(label, low, high, *([1] if item.is_whole else []))
        else:
            made = hp.quniform if item.is_whole else hp.uniform
            found[item.name] = made(label, item.low, item.high, *([1] if item.is_whole else []))
    return found


def _labels(space: Space) -> list[str]:
    """Return every label that Hyperopt's space has."""
    parameters = space.parameters
    return [_label(one, option) for one in parameters for option in (one.parent_options or ("",))]


def _hyperopt_point(space: Space, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return choices under Hyperopt's labels, options by their place."""
    point: dict[str, Any] = {}
    for item in space.parameters:
        if item.name in choices:
            value = choices[item.name]
            place = item.options.index(value) if item.options else value
            point[_label(item, choices.get(item.parent))] = place
    return point


def _flat(sample: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in sample.items():
        if isinstance(value, Mapping):
            flat |= _flat(value)
        else:
            flat[name] = value
    return flat
