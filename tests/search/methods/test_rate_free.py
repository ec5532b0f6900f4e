"""Optimisers and rules that find their own rate, by the real packages."""

from __future__ import annotations

import importlib.util
import inspect

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.search.methods.clusters import Clusters  # noqa: E402 - after what it needs
from trimtab.core.hyperparameters import hyperparameter  # noqa: E402
from trimtab.search.methods.base import DecisionSchedule, find_method  # noqa: E402
from trimtab.search.methods.line_searches import _AsNetwork, _Batches, _Steps  # noqa: E402
from trimtab.search.methods.trial import Trial  # noqa: E402

TOLD_NOTHING = [
    "prodigy",
    "prodigy-linear",
    "prodigy-plus-schedule-free",
    "d-adaptation",
    "adamg",
    "mechanic",
    "gen-optim",
    "dog",
]


def method_of(name):
    found = find_method(name)
    for package in found.requires:
        pytest.importorskip(package)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", TOLD_NOTHING)
def test_what_is_told_no_start_ends_alike_from_any(assign, name):
    method = method_of(name)
    low, high, other = (
        method.run(assign(seed, task=Clusters(), scale=scale)).result
        for seed, scale in ((0, 0.01), (0, 100.0), (1, 1.0))
    )
    assert not method.uses_start
    assert (low.validation, low.test) == (high.validation, high.test)
    assert low.validation != other.validation
    assert np.isnan(low.start_scale)
    assert 0.9 < low.spent <= 1 + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", TOLD_NOTHING)
def test_it_learns_something_and_says_nothing(assign, name, capfd):
    """A guess comes to 1.10 nats; the margin is that of gen-optim, which begins at 1e-4."""
    found = [
        method_of(name).run(assign(seed, task=Clusters())).result.validation for seed in (0, 1)
    ]
    assert np.mean(found) < 1.1
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_polling_mends_a_start_that_is_far_too_low(assign):
    polling, reference = method_of("efficient-polling-lr-scheduler"), find_method("reference")
    for seed in (0, 1):
        asked = assign(seed, task=Clusters(), scale=0.01)
        mended, plain = (method.run(asked).result for method in (polling, reference))
        assert mended.validation < plain.validation
        assert mended.steps < plain.steps  # what is polled is paid for
        assert 0.9 < mended.spent < 1.2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "beta1"), [("adamg", 0.95), ("prodigy", 0.9), ("mechanic", 0.9)])
def test_its_own_first_beta_holds_where_the_task_steers_one(assign, name, beta1, monkeypatch):
    seen = []

    class Steered(Clusters):
        def __init__(self):
            super().__init__()
            self.hyperparameters += (hyperparameter("beta1", 0.9),)

        def start(self, **given):
            run = super().start(**given)
            seen.append(run.optimizer)
            return run

    method_of(name).run(assign(0, task=Steered()))
    assert {group["betas"][0] for group in seen[0].param_groups} == {beta1}


def test_their_requirements_are_the_extra_for_rivals():
    import tomllib
    from pathlib import Path

    project = Path(__file__).parents[3] / "pyproject.toml"
    extra = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {"prodigyopt", "prodigy-plus-schedule-free", "pytorch-optimizer", "mechanic-pytorch"}
    named |= {"gen-optim", "efficient-polling-lr-scheduler", "dog-optimizer", "scipy"}
    assert named <= {line.partition(">")[0] for line in extra["rivals"]}


@pytest.mark.parametrize("name", ["gen-optim", "efficient-polling-lr-scheduler"])
def test_a_task_without_a_loss_to_measure_is_refused(quadratic, name):
    assert "none of PyTorch's" in find_method(name).refuses(quadratic)


# What lies under the rules that measure losses, without the packages.


def begun():
    trial = Trial(Clusters(), seed=0, windows=DecisionSchedule())
    return trial, _Batches(trial.run)


def test_a_loss_is_that_of_the_stepped_batch_and_what_is_measured_is_counted():
    trial, batches = begun()
    losses = []

    def take(step):
        with torch.no_grad():
            losses.append((batches.loss, float(batches.latest())))
        optimizer.step()

    optimizer = trial.run.optimizer
    _Steps(optimizer, 1e-3, take)
    trial.train({"lr": np.full(5, 1.0)}, 5)
    assert len(losses) == 5
    assert all(first == pytest.approx(again) for first, again in losses)
    assert batches.forward == 5 * 8
    before = trial.spent
    trial.pay(80.0)
    assert trial.spent > before


def test_rates_are_kept_between_steps_whatever_the_run_sets():
    trial, _ = begun()
    optimizer, rates = trial.run.optimizer, []

    def take(step):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.5 * rates[-1]

    _Steps(optimizer, 1e-3, take)
    trial.train({"lr": np.full(3, 1.0)}, 3)
    assert rates == pytest.approx([1e-3, 5e-4, 2.5e-4])


def test_a_network_for_gen_gives_one_batch_again_and_again():
    trial, batches = begun()
    network = _AsNetwork(trial.run.model.parameters, batches)
    with torch.no_grad():
        batch = next(network)
        first, again = (float(network(**batch.to("cuda")).loss) for _ in range(2))
        other = float(network(**next(network).to("cuda")).loss)
    assert first == again != other
    assert batches.forward == 3 * 8


def test_every_method_that_needs_a_package_says_so():
    for name in TOLD_NOTHING:
        method = find_method(name)
        missing = [one for one in method.requires if importlib.util.find_spec(one) is None]
        assert method.missing() == missing
        assert "optimizer" in inspect.signature(Clusters().start).parameters
        expected = f"{missing[0]}" if missing else None
        reason = method.reason_against(Clusters())
        assert (reason is None) == (expected is None)
