"""A run of a small synthetic PyTorch model: reproducible, restorable, and never in the way."""

from __future__ import annotations

import dataclasses
import gc
import math
import weakref
from collections.abc import Mapping

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from trimtab.core.errors import SpecError, UnknownNameError
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.protocols import TrainingRun
from trimtab.defaults import controller_for
from trimtab.tasks.data.batches import ShuffledBatches
from trimtab.tasks.run import RunSettings, run_task
from trimtab.tasks.torch.run import TorchRun, TorchSetup, decay_groups

DEFAULTS = {"lr": 1e-2, "weight_decay": 1e-2, "beta1": 0.9, "dropout": 0.2, "clip": 1.0}
SIZES = {"train": 60, "validation": 20, "selection": 20, "test": 20}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x)
        return out


def make_run(seed: int = 0, *, spoil: bool = False, **overrides: object) -> TorchRun:
    generator = torch.Generator().manual_seed(99)
    data = {
        name: (torch.randn(n, 8, generator=generator), torch.arange(n) % 3)
        for name, n in SIZES.items()
    }
    if spoil:
        data["train"][0][:] = math.nan
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Network()

    def loss(model: nn.Module, rows: np.ndarray, values: Mapping[str, float]) -> torch.Tensor:
        x, y = data["train"]
        smoothing = values.get("label_smoothing", 0.0)
        return nn.functional.cross_entropy(model(x[rows]), y[rows], label_smoothing=smoothing)

    def evaluate(model: nn.Module, split: str) -> dict[str, float]:
        x, y = data[split]
        torch.rand(3)  # an evaluation that draws, such as one with random crops
        return {"loss": nn.functional.cross_entropy(model(x), y).item(), "examples": len(y)}

    batches = ShuffledBatches(SIZES["train"], 8, seed=seed)
    fields = {"defaults": DEFAULTS, "seed": seed} | overrides
    return TorchRun(TorchSetup(model, loss, batches, evaluate, **fields))  # type: ignore[arg-type]


def weights(run: TorchRun) -> list[torch.Tensor]:
    return [item.detach().clone() for item in run.model.state_dict().values()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def lr(value: float, steps: int) -> dict[str, np.ndarray]:
    return {"lr": np.full(steps, value)}


OF_THE_WAY = ("alignment_mean", "distance_ratio", "straightness")


def fields(metrics: Metrics) -> np.ndarray:
    return np.array(metrics, np.float64)


def test_a_finished_run_lets_go_of_its_weights_at_once() -> None:
    run = make_run()
    gc.collect()
    gc.disable()
    try:
        run.advance(lr(1e-2, 3), 3)
        run.restore(run.snapshot())
        weight = weakref.ref(run.model.layers[0].weight)
        moments = weakref.ref(next(iter(run.optimizer.state.values()))["exp_avg"])
        del run
        assert weight() is None
        assert moments() is None
    finally:
        gc.enable()


def test_it_is_a_training_run() -> None:
    assert isinstance(make_run(), TrainingRun)


def test_the_same_seed_gives_the_same_bits_and_another_gives_others() -> None:
    one, two, other = make_run(3), make_run(3), make_run(4)
    torch.manual_seed(0)
    first = one.advance({}, 5)
    torch.manual_seed(1)  # what the caller draws does not matter
    second = two.advance({}, 5)

    np.testing.assert_array_equal(fields(first), fields(second))
    assert same(weights(one), weights(two))
    assert other.advance({}, 5).train_loss != first.train_loss


def test_runs_in_one_process_do_not_disturb_each_other_or_the_caller() -> None:
    alone = make_run(3)
    alone.advance({}, 4)
    before = torch.get_rng_state()
    one, two = make_run(3), make_run(4)
    for _ in range(2):
        one.advance({}, 2)
        two.advance({}, 2)

    assert same(weights(alone), weights(one))
    assert torch.equal(before, torch.get_rng_state())


def test_metrics_report_losses_charge_and_both_splits() -> None:
    run = make_run()
    run.measure_selection = True
    metrics = run.advance(lr(1e-2, 3), 3)

    assert metrics.val_loss == run.evaluate("validation")["loss"] == run.measured["loss"]
    assert metrics.reward_loss == run.evaluate("selection")["loss"]
    assert metrics.charge == pytest.approx(3 * 8 + 20 / 3)
    assert (metrics.steps, metrics.finite) == (3.0, 1.0)
    assert np.isfinite([metrics.grad_norm, metrics.grad_cosine, metrics.update_ratio]).all()


def test_the_selection_split_is_evaluated_only_when_it_is_asked_for() -> None:
    seen: list[str] = []
    run = make_run()
    usual = run.setup.evaluate

    def evaluate(model: nn.Module, split: str) -> dict[str, float]:
        seen.append(split)
        return usual(model, split)

    quiet = TorchRun(dataclasses.replace(run.setup, evaluate=evaluate))
    assert math.isnan(quiet.advance({}, 2).reward_loss)
    assert seen == ["validation"]


def test_without_a_selection_split_the_reward_loss_is_not_measured() -> None:
    run = make_run(splits=("train", "validation", "test"))
    run.measure_selection = True

    assert math.isnan(run.advance({}, 1).reward_loss)
    with pytest.raises(UnknownNameError, match="unknown split 'selection'"):
        run.evaluate("selection")


def test_a_restored_run_goes_on_bit_for_bit() -> None:
    """Two runs with the same data order ahead, one of which took a detour and came back."""
    straight, detour = make_run(), make_run()
    straight.advance({}, 4)
    detour.advance({}, 4)
    kept = detour.snapshot()
    straight.advance(lr(0.0, 6), 6)
    # A rate of zero still moves Adam's state and BatchNorm, so both runs are put back.
    straight.restore(kept)
    detour.advance(lr(5.0, 6), 6)
    assert not same(weights(straight), weights(detour))
    detour.restore(kept)
    assert same(weights(straight), weights(detour))

    one, other = straight.advance(lr(1e-2, 4), 4), detour.advance(lr(1e-2, 4), 4)
    assert other.alignment == one.alignment  # the rest tells of the way so far, detour included
    one = one._replace(**{name: getattr(other, name) for name in OF_THE_WAY})
    np.testing.assert_array_equal(fields(one), fields(other))
    assert same(weights(straight), weights(detour))


def test_a_snapshot_can_be_restored_again_and_again() -> None:
    run = make_run()
    run.advance({}, 3)
    kept, before = run.snapshot(), weights(run)
    moments = [state["exp_avg"].clone() for state in run.optimizer.state.values()]
    for _ in range(2):
        run.restore(kept)
        assert same(weights(run), before)
        assert same([state["exp_avg"] for state in run.optimizer.state.values()], moments)
        run.advance(lr(0.5, 3), 3)
    assert not same(weights(run), before)


def test_a_snapshot_before_the_first_step_clears_the_optimiser() -> None:
    run, fresh = make_run(), make_run()
    kept = run.snapshot()
    run.advance({}, 3)
    run.restore(kept)

    assert same(weights(run), weights(fresh))
    assert not run.optimizer.state


def test_the_order_of_data_goes_on_after_restore() -> None:
    run = make_run(defaults=DEFAULTS | {"dropout": 0.0})
    kept = run.snapshot()
    first = run.advance(lr(0.0, 1), 1).train_loss
    run.restore(kept)

    assert run.advance(lr(0.0, 1), 1).train_loss != first


def test_a_batch_of_nan_ends_the_window_without_raising() -> None:
    run = make_run(spoil=True)
    before = [item.clone() for item in run.model.parameters()]
    metrics = run.advance(lr(1e-2, 5), 5)

    assert (metrics.finite, metrics.steps, metrics.charge) == (0.0, 1.0, 8.0)
    assert math.isnan(metrics.train_loss)
    assert math.isnan(metrics.val_loss)
    assert same(before, list(run.model.parameters()))


class Spoilt:
    """A training task of sixty steps in which two batches are not finite."""

    name, total_steps, monitor, mode = "own/spoilt", 60, "loss", "min"
    hyperparameters = (hyperparameter("lr", 1e-2),)

    def __init__(self, *bad: int) -> None:
        self._bad, self.started = bad, []

    def start(self, *, seed: int) -> TorchRun:
        usual = make_run(seed).setup
        drawn = list(zip(range(61), usual.batches, strict=False))
        batches = (indices for _, indices in drawn)
        spoilt = {id(indices) for at, indices in drawn if at in self._bad}

        def loss(model: nn.Module, rows: np.ndarray, values: Mapping[str, float]) -> torch.Tensor:
            return usual.loss(model, rows, values) * (math.nan if id(rows) in spoilt else 1.0)

        run = TorchRun(dataclasses.replace(usual, loss=loss, batches=batches))
        self.started.append(run)
        return run


@pytest.mark.filterwarnings("ignore:step .* loss not finite")
def test_a_guarded_run_leaves_a_bad_batch_out_and_names_its_rows() -> None:
    task = Spoilt(17, 40)
    spec, controller = controller_for("random", list(task.hyperparameters), decisions=10)
    result = run_task(task, controller, spec)
    assert (result.spent_steps, result.diverged) == (60, False)
    assert [(event["step"], event["treatment"]) for event in result.events] == [
        (17, "skip"),
        (40, "skip"),
    ]
    (first, _) = result.events
    assert len(first["batch"]) == 8
    assert first["where"].startswith("gradient of")
    assert len(first["losses"]) >= 1
    assert not any(d.restored and d.step in (18, 41) for d in result.decisions)


@pytest.mark.parametrize("policy", [None, "watched"])
def test_a_run_that_is_not_guarded_ends_at_its_first_bad_batch(policy: str | None) -> None:
    task = Spoilt(17)
    spec, controller = controller_for(policy and "random", list(task.hyperparameters), decisions=10)
    result = run_task(task, controller, spec, RunSettings(watch_only=policy is not None))
    assert (result.spent_steps, result.diverged, result.events) == (18, True, [])


@pytest.mark.filterwarnings("ignore:step .* loss not finite")
def test_the_reference_run_of_an_environment_is_not_guarded_and_its_episodes_are() -> None:
    task = Spoilt(17)
    env = gymnasium.make(
        "Hyperparam-v0", task=task, reward="relative", decisions=10, disable_env_checker=True
    )
    env.reset(seed=0)
    assert sorted(run.skips_bad_batches for run in task.started) == [False, True]
    over = False
    while not over:
        *_, terminated, truncated, _ = env.step(0)
        over = terminated or truncated
    assert [event["step"] for event in env.unwrapped.episode.session.summary.events] == [17]


def test_an_exploding_rate_is_reported_and_recovers() -> None:
    run = make_run(defaults={"lr": 1e-2})
    kept, before = run.snapshot(), run.evaluate("validation")
    metrics = run.advance(lr(1e38, 20), 20)
    assert metrics.finite == 0.0
    run.restore(kept)

    assert run.evaluate("validation") == before
    assert run.advance(lr(1e-2, 5), 5).finite == 1.0


def test_weights_ruined_by_the_last_step_count_as_diverged() -> None:
    metrics = make_run(defaults={"lr": 1e-2}).advance(lr(math.inf, 1), 1)

    assert math.isfinite(metrics.train_loss)
    assert metrics.finite == 0.0


def test_evaluation_leaves_random_state_batchnorm_and_modes_alone() -> None:
    run = make_run()
    run.advance({}, 2)
    run.model.layers[3].eval()  # a layer that its owner froze
    modes = [module.training for module in run.model.modules()]
    state, before = torch.get_rng_state(), weights(run)
    results = [run.evaluate(split) for split in SIZES for _ in range(2)]

    assert torch.equal(state, torch.get_rng_state())
    assert same(before, weights(run))
    assert modes == [module.training for module in run.model.modules()]
    assert results[0::2] == results[1::2]


def test_evaluation_does_not_change_what_training_draws() -> None:
    quiet, asked = make_run(), make_run()
    quiet.advance({}, 2)
    asked.advance({}, 2)
    asked.evaluate("test")
    quiet.advance({}, 2)
    asked.advance({}, 2)

    assert same(weights(quiet), weights(asked))


@pytest.mark.parametrize(
    "name", ["lr", "weight_decay", "beta1", "dropout", "clip", "label_smoothing"]
)
def test_every_hyperparameter_acts(name: str) -> None:
    usual = {"lr": 1e-2, "weight_decay": 1e-2, "beta1": 0.9, "dropout": 0.2} | {
        "clip": 1.0,
        "label_smoothing": 0.0,
    }
    other = {"lr": 1e-3, "weight_decay": 0.9, "beta1": 0.5, "dropout": 0.6} | {
        "clip": 1e-9,
        "label_smoothing": 0.3,
    }
    default, steered = make_run(defaults=usual), make_run(defaults=usual)
    default.advance({}, 3)
    steered.advance({name: np.full(3, other[name])}, 3)

    assert not same(weights(default), weights(steered))


def test_a_value_that_is_no_longer_given_returns_to_its_default() -> None:
    run = make_run()
    run.advance({"dropout": np.array([0.7]), "weight_decay": np.array([0.5])}, 1)
    run.advance({}, 1)

    assert run.model.layers[3].p == DEFAULTS["dropout"]
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [1e-2, 0.0]


def test_groups_keep_their_ratio_of_learning_rates() -> None:
    model = Network()
    groups = [
        {"params": list(model.layers[0].parameters()), "lr_ratio": 0.1},
        {"params": list(model.layers[4].parameters())},
    ]
    setup = make_run().setup
    run = TorchRun(TorchSetup(model, setup.loss, setup.batches, setup.evaluate, DEFAULTS, groups))
    run.advance(lr(0.3, 1), 1)

    assert [group["lr"] for group in run.optimizer.param_groups] == [0.3 * 0.1, 0.3]


def test_momentum_and_own_actuators_act() -> None:
    seen: list[float] = []
    run = make_run(
        defaults={"lr": 1e-2, "momentum": 0.5, "frozen_depth": 0.0},
        optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0),
        actuators={"frozen_depth": seen.append},
    )
    run.advance({"momentum": np.array([0.1, 0.2]), "frozen_depth": np.array([0.0, 1.0])}, 2)

    assert run.optimizer.param_groups[0]["momentum"] == 0.2
    assert seen == [0.0, 1.0]


def test_batch_size_acts_on_the_batches() -> None:
    run = make_run(defaults=DEFAULTS | {"batch_size": 8.0})

    assert run.advance({"batch_size": np.array([4.0, 10.0])}, 2).charge == pytest.approx(
        14 + 20 / 3
    )


def test_decay_groups_spare_biases_and_norms() -> None:
    model = Network()
    model.layers[0].requires_grad_(False)
    decaying, spared = decay_groups(model)

    assert [item.shape for item in decaying["params"]] == [(3, 16)]
    assert [item.shape for item in spared["params"]] == [(16,), (16,), (3,)]


def test_an_epoch_holds_every_example_once() -> None:
    batches = ShuffledBatches(20, 5, seed=0)
    epochs = [np.concatenate([next(batches) for _ in range(4)]) for _ in range(2)]

    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert not np.array_equal(*epochs)


@pytest.mark.parametrize(
    ("values", "steps", "error", "message"),
    [
        ({}, 0, SpecError, "steps: 0 is below 1"),
        ({"lr": np.ones(2)}, 3, SpecError, r"values\['lr'\]: shape \(2,\) is not \(3,\)"),
        ({"lrr": np.ones(3)}, 3, UnknownNameError, "unknown hyperparameter 'lrr'; .* 'lr'"),
    ],
)
def test_wrong_calls_are_refused_before_training(
    values: dict[str, np.ndarray], steps: int, error: type[Exception], message: str
) -> None:
    run = make_run()
    before = weights(run)
    with pytest.raises(error, match=message):
        run.advance(values, steps)
    assert same(before, weights(run))


def test_a_frozen_model_and_an_oversized_batch_are_refused() -> None:
    setup = make_run().setup
    setup.model.requires_grad_(False)
    with pytest.raises(SpecError, match="none of its weights requires a gradient"):
        TorchRun(setup)
    with pytest.raises(SpecError, match=r"batch_size: 9 is not in 1\.\.8"):
        ShuffledBatches(8, 9, seed=0)
