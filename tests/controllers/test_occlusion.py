"""What moved the policy: every feature in one group, and figures equal to a direct computation."""

from __future__ import annotations

import numpy as np
import pytest

from tests import tiny_task
from trimtab.controllers.learned import LearnedController
from trimtab.controllers.occlusion import GROUPS, explain, places_of
from trimtab.core.features import (
    GLOBAL_FEATURES,
    TOKEN_FEATURES,
    WIDE_FEATURES,
    observation_table,
)
from trimtab.core.spec import MOVES
from trimtab.defaults import controller_for
from trimtab.tasks.run import RunSettings, run_task


def observed(seed: int, names: tuple[str, ...]):
    """Steer a run; return the policy, the spec, and each decision's observation and action."""
    task = tiny_task.TinyTask()
    items = [item for item in task.hyperparameters if item.name in names]
    spec, controller = controller_for("trimtab-1", items, decisions=12)
    made = run_task(task, controller, spec, RunSettings(seed=seed)).decisions
    return controller, spec, made


def test_every_feature_belongs_to_one_group():
    grouped = [name for group in GROUPS.values() for name in group]
    assert sorted(grouped) == sorted(
        name for name, *_ in (*GLOBAL_FEATURES, *TOKEN_FEATURES, *WIDE_FEATURES)
    )


def range_names(names):
    return {f"{name}.range_{what}" for name in names for what in ("above", "below", "width")}


@pytest.mark.parametrize("names", [("lr",), ("lr", "momentum")])
def test_places_are_those_of_the_table(names):
    _, spec, _ = observed(0, names)
    table = observation_table(spec)
    found = sorted(table[at]["name"] for at in places_of("noise", spec))
    assert found == ["step_noise", "val_noise"]
    stands = {table[at]["name"] for at in places_of("where the value stands", spec)}
    wanted = ("offset", "effective", "to_high", "to_low")
    assert stands - range_names(names) == {f"{name}.{what}" for name in names for what in wanted}


@pytest.mark.parametrize(("seed", "names"), [(0, ("lr",)), (1, ("lr",)), (2, ("lr", "momentum"))])
def test_occlusion_equals_a_direct_computation(seed, names):
    controller, spec, made = observed(seed, names)
    found = explain(controller, spec, [item.observation for item in made])

    def answers(hide: list[int]) -> np.ndarray:
        """Ask a fresh policy, which keeps its own memory, decision by decision."""
        fresh = LearnedController(controller.policy)
        fresh.reset(seed=0)
        places = []
        for item in made:
            seen = item.observation.copy()
            seen[hide] = 0.0
            places.append(fresh.act(seen)[:-1])
        return np.interp(np.array(places), np.arange(len(MOVES)), MOVES) * spec.move_units

    whole = answers([])
    assert np.allclose([each.move for each in found], whole, atol=1e-5)
    assert np.allclose([each.probabilities.sum(-1) for each in found], 1.0)
    for group in GROUPS:
        direct = whole - answers(places_of(group, spec))
        assert np.allclose([each.effects[group] for each in found], direct, atol=1e-5)
    largest = max(abs(each.effects[g]).max() for each in found for g in GROUPS)
    assert largest > 0.1


def test_the_policys_own_memory_is_left_alone():
    controller, spec, made = observed(0, ("lr",))
    before = controller.state_dict()
    explain(controller, spec, [item.observation for item in made])
    assert controller.state_dict() == before
