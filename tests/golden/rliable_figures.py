"""Write ``rliable_figures.json``: what the published rliable makes of fixed scores.

Run in an environment of its own, since rliable brings plotting libraries that nothing here needs:

    python -m venv /tmp/rliable && /tmp/rliable/bin/pip install rliable==1.2.0
    /tmp/rliable/bin/python tests/golden/rliable_figures.py
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rliable import library, metrics

RUNS, TASKS, REPETITIONS = 12, 5, 20_000
LEVELS = [0.1, 0.5, 1.0, 1.5, 2.0, 4.0]


def main() -> None:
    """Write the file beside this one; losses are handed over as scores with the sign turned."""
    generator = np.random.default_rng(20210831)
    first = np.round(generator.lognormal(0.0, 0.6, (RUNS, TASKS)), 6)
    second = np.round(generator.lognormal(0.3, 0.8, (RUNS - 3, TASKS)), 6)
    second[:4, 0] = first[:4, 0]  # ties
    np.random.seed(0)  # noqa: NPY002 - rliable draws from it

    def iqm(scores: np.ndarray) -> np.ndarray:
        return np.array([metrics.aggregate_iqm(scores)])

    def over(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        return np.array([metrics.probability_of_improvement(mine, theirs)])

    _, within = library.get_interval_estimates({"iqm": -first}, iqm, reps=REPETITIONS)
    _, across = library.get_interval_estimates(
        {"iqm": -first}, iqm, reps=REPETITIONS, task_bootstrap=True
    )
    _, improvement = library.get_interval_estimates(
        {"over": [-first, -second]}, over, reps=REPETITIONS // 10
    )
    below = library.score_distributions(-first, [-level for level in LEVELS])
    found = {
        "rliable": version("rliable"),
        "first": first.tolist(),
        "second": second.tolist(),
        "levels": LEVELS,
        "iqm": -float(metrics.aggregate_iqm(-first)),
        "iqm_of_one_task": [-float(metrics.aggregate_iqm(-first[:, [m]])) for m in range(TASKS)],
        "improvement": float(metrics.probability_of_improvement(-first, -second)),
        "profile_below": [float(share) for share in below],
        "iqm_interval_over_runs": sorted(-float(end) for end in within["iqm"][:, 0]),
        "iqm_interval_over_tasks_and_runs": sorted(-float(end) for end in across["iqm"][:, 0]),
        "improvement_interval": [float(end) for end in improvement["over"][:, 0]],
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
