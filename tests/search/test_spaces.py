"""Spaces of static choices: conditions kept, converted, and sampled within bounds."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tiny_task import TinyTask
from trimtab.core.errors import SpecError, UnknownNameError
from trimtab.core.protocols import Task
from trimtab.search.spaces import (
    Parameter,
    Space,
    from_configspace,
    space_of,
    to_configspace,
)
from trimtab.search.static_choices import propose_choices

VARIED = ("batch_size", "momentum", "weight_decay")
SPACE = Space(
    (
        Parameter("optimizer", options=("sgd", "adam")),
        Parameter("lr", 1e-4, 1e-1, is_log=True),
        Parameter("momentum", 0.5, 0.99, parent="optimizer", parent_options=("sgd",)),
        Parameter("rank", 2, 64, is_log=True, is_whole=True),
    )
)


def check(choices: dict[str, Any]) -> None:
    assert choices["optimizer"] in ("sgd", "adam")
    assert 1e-4 <= choices["lr"] <= 1e-1
    assert ("momentum" in choices) == (choices["optimizer"] == "sgd")
    assert choices["rank"] == int(choices["rank"])
    assert 2 <= choices["rank"] <= 64


@pytest.mark.parametrize("sampler", ["random", "optuna", "hyperopt"])
def test_proposals_keep_bounds_and_conditions_and_repeat(sampler: str) -> None:
    if sampler != "random":
        pytest.importorskip(sampler)
    known: list[tuple[dict[str, Any], float]] = []
    for number in range(6):
        asked = {"sampler": sampler, "seed": 3, "number": number}
        choices = propose_choices(SPACE, known, **asked)
        check(choices)
        assert propose_choices(SPACE, known, **asked) == choices
        known.append((choices, abs(choices["lr"] - 0.01)))
    assert len({repr(choices) for choices, _ in known}) == 6
    with pytest.raises(UnknownNameError, match="unknown sampler 'tpe'"):
        propose_choices(SPACE, [], sampler="tpe", seed=0, number=0)


def test_a_sampler_learns_from_what_is_known() -> None:
    pytest.importorskip("optuna")
    space = Space((Parameter("lr", 1e-4, 1e-1, is_log=True),))
    grid = [1e-4 * 10 ** (n / 5) for n in range(15)]
    known = [({"lr": rate}, 0.0 if 0.005 < rate < 0.02 else 1.0) for rate in grid]
    asked = [
        propose_choices(space, known, sampler="optuna", seed=0, number=n)["lr"] for n in range(10)
    ]
    assert sum(0.003 < rate < 0.03 for rate in asked) >= 7


def test_configspace_and_back() -> None:
    pytest.importorskip("ConfigSpace")
    made = to_configspace(SPACE, seed=0)
    again = {item.name: item for item in from_configspace(made).parameters}
    for item in SPACE.parameters:
        assert set(again[item.name].options) == set(item.options)
        assert again[item.name].parent == item.parent
        assert again[item.name].parent_options == item.parent_options
        assert again[item.name].is_whole == item.is_whole
        assert again[item.name].is_log == item.is_log
        if not item.options:
            assert (again[item.name].low, again[item.name].high) == (item.low, item.high)


def test_a_task_says_what_may_be_chosen() -> None:
    usual = space_of(TinyTask(), {})
    assert [item.name for item in usual.parameters] == ["lr"]
    assert (usual.parameters[0].low, usual.parameters[0].high) == pytest.approx((0.01, 1.0))
    more = space_of(TinyTask(), {}, ("momentum",))
    assert [item.name for item in more.parameters] == ["lr", "momentum"]
    with pytest.raises(UnknownNameError, match="unknown hyperparameter 'sheep'"):
        space_of(TinyTask(), {}, ("sheep",))
    assert space_of(TinyTask(space=SPACE), {}) is SPACE
    offered = space_of(TinyTask(choices={"rank": (4, 8)}), {"lr": 1.0})
    assert offered.parameters[-1].options == (4, 8)
    assert offered.parameters[0].high == pytest.approx(10.0)


def test_no_choice_makes_a_run_longer(quadratic: Task) -> None:
    parameters = {item.name: item for item in space_of(quadratic, {}, VARIED).parameters}
    assert parameters["batch_size"].high == 32
    for name in ("momentum", "weight_decay"):
        item = {one.name: one for one in quadratic.hyperparameters}[name]
        assert item.low <= parameters[name].low < parameters[name].high <= item.high


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: Parameter("x", 2.0, 1.0), "low=2.0 and high=1.0 are no range"),
        (lambda: Parameter("x", 0.0, 1.0, is_log=True), "on a log scale"),
        (lambda: Space((Parameter("x"), Parameter("x"))), "x is there twice"),
        (lambda: Space((Parameter("x", parent="y"),)), "depends on 'y', which does not come"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(made: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        made()
