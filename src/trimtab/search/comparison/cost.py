"""What one steered run costs and saves against each method, and when meta-training is paid back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_STEERED = "trimtab"
_SEARCHES = ("random", "hyperopt", "optuna", "grid", "asha", "pbt", "pb2")
_SPELLED = {"random": "random search", "grid": "grid search", "hyperopt": "Hyperopt"}
_EQUAL = 1.1  # one run of a search may be charged a little more than a steered one


def cost_answer(figures: Mapping[str, Any], training_seconds: float | None) -> dict[str, Any]:
    """Return what one steered run costs and saves, as plain data; empty without steered runs.

    ``steered`` holds ``runs``, ``examples`` and ``seconds`` of one steered run,
    ``training_seconds`` what its policy took to train, ``methods`` the rows of `cost_rows`,
    ``sentence`` the answer in one sentence.

    Args:
        figures: As `trimtab.search.comparison.figures.comparison_figures` gives them.
        training_seconds: Of the policy; None if its file does not say.
    """
    if figures["regret"].get(_STEERED) is None:
        return {}
    rows = cost_rows(figures, training_seconds)
    steered = {
        "runs": figures["spent"][_STEERED],
        "examples": figures["examples"].get(_STEERED),
        "seconds": figures["seconds"][_STEERED],
    }
    return {
        "steered": steered,
        "training_seconds": training_seconds,
        "methods": rows,
        "sentence": cost_sentence(steered, rows, training_seconds),
    }


def cost_rows(
    figures: Mapping[str, Any], training_seconds: float | None = None
) -> list[dict[str, Any]]:
    """Return a row a method: what it takes to end as well as one steered run, and the difference.

    Equal quality is equal regret (interquartile mean) on the tasks that the method was run on,
    linear in the log of the charge between the budgets that were run. ``reaches`` is ``"yes"``;
    ``"beyond"`` where no budget that was run is as good, so that ``runs`` is what was tried and
    the truth is more; or ``"below"`` where the smallest is at least as good, so that the truth is
    at most that, and so is what is saved. ``saved_*`` is the method's cost less the steered run's,
    below 0 where the method costs less, and None where it has one budget and does not get there;
    ``paid_back_after`` is the number of steered runs whose saved seconds make up for the
    meta-training: at most so many where no budget got there; None where nothing is known to be
    saved, and where the seconds are not known.
    """
    by_method: dict[str, list[str]] = {}
    for label in figures["methods"]:
        name = label.partition(":")[0]
        beside = figures["steered"].get(label)
        if name != _STEERED and figures["regret"].get(label) is not None and beside is not None:
            by_method.setdefault(name, []).append(label)
    return [
        _row(figures, name, sorted(labels, key=figures["spent"].__getitem__), training_seconds)
        for name, labels in by_method.items()
    ]


def _row(
    figures: Mapping[str, Any], name: str, labels: Sequence[str], training_seconds: float | None
) -> dict[str, Any]:
    beside = figures["steered"][labels[0]]
    goal = float(beside["regret"])
    regrets = np.minimum.accumulate([figures["regret"][label]["value"] for label in labels])
    reaches, place = _place(regrets, goal)
    found: dict[str, Any] = {"method": name, "reaches": reaches}
    for field, source in (("runs", "spent"), ("examples", "examples"), ("seconds", "seconds")):
        have = [figures[source].get(label) for label in labels]
        mine = beside[source]
        known = mine is not None and all(value is not None and value > 0 for value in have)
        value = _between(have, place) if known else None
        found[field] = value
        found[f"saved_{field}"] = None if value is None else value - float(mine)
    if len(labels) == 1 and reaches == "beyond":  # no budget of it could be tried that is larger
        found |= {"saved_runs": None, "saved_examples": None, "saved_seconds": None}
    saved = found["saved_seconds"]
    found["paid_back_after"] = None
    if training_seconds is not None and reaches != "below" and saved is not None and saved > 0:
        found["paid_back_after"] = math.ceil(training_seconds / saved)
    return found


def _place(regrets: np.ndarray, goal: float) -> tuple[str, float]:
    """Return whether a falling curve reaches a goal, and at which place between its points."""
    if regrets[0] <= goal:
        return "below", 0.0
    if regrets[-1] > goal:
        return "beyond", float(len(regrets) - 1)
    after = int(np.argmax(regrets <= goal))
    above, below = float(regrets[after - 1]), float(regrets[after])
    return "yes", after - 1 + (above - goal) / (above - below)


def _between(values: Sequence[float], place: float) -> float:
    """Return the value at a place between positive values, linear in their logs."""
    logs = np.log(np.asarray(values, float))
    return float(np.exp(np.interp(place, np.arange(len(logs)), logs)))


def cost_sentence(
    steered: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], training_seconds: float | None
) -> str:
    """Return the cost answer in one sentence, drawn from the rows.

    The rival named is random search where it was compared, else the first search. A sentence is
    given for a loss just as for a win.

    Args:
        steered: ``runs``, ``examples`` and ``seconds`` of one steered run.
        rows: Of `cost_rows`.
        training_seconds: Of the policy.
    """
    first = f"One steered run costs {steered['runs']:.2f} whole runs{_in_brackets(steered)}"
    searches = [row for row in rows if row["method"] in _SEARCHES]
    if not searches:
        return f"{first}; no search was compared with it."
    row = min(searches, key=lambda one: _SEARCHES.index(one["method"]))
    name = _SPELLED.get(row["method"], row["method"])
    nothing = "so nothing is saved"
    if training_seconds is not None:
        nothing += " and the policy's meta-training never pays for itself at this quality"
    if row["reaches"] == "below":
        told = f"{first}; {name} ends as well with {row['runs']:.1f}"
        if row["runs"] <= steered["runs"] * _EQUAL:
            return f"{told}, {nothing}."
        return (
            f"{told}, the least that was run, so at most {row['saved_runs']:.1f}"
            f"{_in_brackets(row, 'saved_')} are saved; a smaller budget of it would tell."
        )
    many = "more than " if row["reaches"] == "beyond" else ""
    told = f"{first}; {name} needs {many}{row['runs']:.1f} to end as well"
    if row["saved_runs"] is None or row["saved_runs"] <= 0:
        return f"{told}, {nothing}."
    least = "at least " if many else ""
    told += f", so {least}{row['saved_runs']:.1f}{_in_brackets(row, 'saved_')} are saved"
    count = row["paid_back_after"]
    if training_seconds is None or count is None:
        return f"{told}."
    return (
        f"{told}, and the policy's {training_seconds / 60:.0f} minutes of meta-training are paid "
        f"back after {'at most ' if many else ''}{count:,} such run{'s' * (count != 1)}."
    )


def _in_brackets(found: Mapping[str, Any], prefix: str = "") -> str:
    parts = []
    if (examples := found[f"{prefix}examples"]) is not None:
        parts.append(f"{float(f'{examples:.2g}'):,.0f} examples")
    if (seconds := found[f"{prefix}seconds"]) is not None:
        parts.append(f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s")
    return f" ({', '.join(parts)})" if parts else ""
