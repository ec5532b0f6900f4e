"""Spaces of static choices: conditions kept, converted, and sampled within bounds."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tiny_task import TinyTask
from trimtab.core.errors import SpecError, UnknownNameError
from trimtab.core.protocols import Task
from trimtab.core.static_choice import StaticChoice
from trimtab.search.study.samplers import propose_choices
from trimtab.search.study.spaces import Space, from_configspace, space_of
from trimtab.search.study.tune import tune

VARIED = ("batch_size", "momentum", "weight_decay")
SPACE = Space(
    (
        StaticChoice("optimizer", options=("sgd", "adam")),
        StaticChoice("lr", 1e-4, 1e-1, is_log=True),
        StaticChoice("momentum", 0.5, 0.99, parent="optimizer", parent_options=("sgd",)),
        StaticChoice("rank", 2, 64, is_log=True, is_whole=True),
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
    space = Space((StaticChoice("lr", 1e-4, 1e-1, is_log=True),))
    grid = [1e-4 * 10 ** (n / 5) for n in range(15)]
    known = [({"lr": rate}, 0.0 if 0.005 < rate < 0.02 else 1.0) for rate in grid]
    asked = [
        propose_choices(space, known, sampler="optuna", seed=0, number=n)["lr"] for n in range(10)
    ]
    assert sum(0.003 < rate < 0.03 for rate in asked) >= 7


def configured() -> Any:
    """Return SPACE as ConfigSpace has it; the parent comes after what depends on it."""
    space = pytest.importorskip("ConfigSpace")
    made = space.ConfigurationSpace(seed=0)
    momentum = space.Float("momentum", (0.5, 0.99))
    optimizer = space.Categorical("optimizer", ["sgd", "adam"])
    rate = space.Float("lr", (1e-4, 1e-1), log=True)
    made.add(momentum, optimizer, rate, space.Integer("rank", (2, 64), log=True))
    made.add(space.InCondition(momentum, optimizer, ["sgd"]))
    return made


def test_a_configspace_is_taken_whole() -> None:
    again = {item.name: item for item in from_configspace(configured()).parameters}
    assert list(again).index("optimizer") < list(again).index("momentum")
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
    with pytest.raises(UnknownNameError, match="unknown hyperparameter or choice 'sheep'"):
        space_of(TinyTask(), {}, ("sheep",))
    assert space_of(TinyTask(space=SPACE), {}) is SPACE
    offered = space_of(TinyTask(choices={"rank": (4, 8)}), {"lr": 1.0})
    assert offered.parameters[-1].options == (4, 8)
    assert offered.parameters[0].high == pytest.approx(10.0)


class Offering(TinyTask):
    offers = (
        StaticChoice("optimizer", options=("adamw", "sgd")),
        StaticChoice(
            "nesterov", options=(False, True), parent="optimizer", parent_options=("sgd",)
        ),
        StaticChoice("rank", options=(8, 4)),
    )


def test_what_a_task_offers_is_varied_where_it_is_asked_for() -> None:
    def names(*vary: str) -> list[str]:
        return [item.name for item in space_of(Offering(), {}, vary).parameters]

    assert names() == ["lr"]
    assert names("rank") == ["lr", "rank"]
    assert names("optimizer") == ["lr", "optimizer", "nesterov"]
    with pytest.raises(UnknownNameError, match=r"unknown hyperparameter or choice 'ranks'.*'rank'"):
        names("ranks")
    with pytest.raises(SpecError, match="nesterov depends on 'optimizer'"):
        names("nesterov")
    space = space_of(Offering(), {}, ("optimizer",))
    drawn = [propose_choices(space, [], sampler="random", seed=0, number=n) for n in range(20)]
    assert all(("nesterov" in one) == (one["optimizer"] == "sgd") for one in drawn)
    assert {one["optimizer"] for one in drawn} == {"adamw", "sgd"}


def test_a_study_varies_a_task_s_own_configspace() -> None:
    class Configured(TinyTask):
        def start(self, *, seed: int, optimizer: str = "sgd", rank: int = 2) -> Any:
            started.append((optimizer, rank))
            return super().start(seed=seed)

    started: list[tuple[str, int]] = []
    task = Configured(space=configured())
    result = tune(task, budget=8, policy="trimtab-0", sampler="random", seed=0)
    restarts = [row["choices"] for row in result.runs if row["kind"] == "restart"]
    assert restarts
    for choices in restarts:
        check(choices)
        assert (choices["optimizer"], choices["rank"]) in started


def test_no_choice_makes_a_run_longer(quadratic: Task) -> None:
    parameters = {item.name: item for item in space_of(quadratic, {}, VARIED).parameters}
    assert parameters["batch_size"].high == 32
    for name in ("momentum", "weight_decay"):
        item = {one.name: one for one in quadratic.hyperparameters}[name]
        assert item.low <= parameters[name].low < parameters[name].high <= item.high


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: StaticChoice("x", 2.0, 1.0), "low=2.0 and high=1.0 are no range"),
        (lambda: StaticChoice("x", 0.0, 1.0, is_log=True), "on a log scale"),
        (lambda: Space((StaticChoice("x"), StaticChoice("x"))), "x is there twice"),
        (lambda: Space((StaticChoice("x", parent="y"),)), "depends on 'y', which does not come"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(made: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        made()
