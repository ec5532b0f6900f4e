"""The callback for a Lightning Trainer, against Lightning alone and loops written by hand."""

from __future__ import annotations

import csv
import logging
import math
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.adapters.tiny_training import Net, Still, are_equal, examples, weights
from trimtab.core.errors import AdapterError, MetricError, SpecError, TrimtabWarning

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from torchmetrics import Accuracy, MeanMetric

from trimtab.adapters.lightning import TrimtabCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [
    pytest.mark.framework,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
VALIDATION = examples(32, seed=1)
STEPS_AN_EPOCH = 12


class Module(LightningModule):
    """Optimised by Lightning, with AdamW in two groups and a schedule."""

    def __init__(self, *, dropout: float = 0.1, lr: float = 1e-2, schedule: str = "step") -> None:
        super().__init__()
        self.net, self.lr, self.schedule = Net(dropout), lr, schedule

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.net(**batch)["loss"]

    def validation_step(self, batch: Any, index: int) -> None:
        outputs = self.net(**batch)
        hits = (outputs["logits"].argmax(1) == batch["labels"]).float()
        self.log("val_loss", outputs["loss"])
        self.log_dict({"accuracy": hits.mean()})

    def configure_optimizers(self) -> Any:
        optimizer = adamw(self.net, self.lr)
        if self.schedule == "none":
            return optimizer
        if self.schedule == "plateau":
            scheduler: Any = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            config = {"scheduler": scheduler, "monitor": "val_loss"}
        elif self.schedule == "epoch":
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            config = {"scheduler": scheduler, "interval": "epoch"}
        else:
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 36)
            config = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": config}


class Manual(Module):
    """Steps its optimiser itself."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.net(**batch)["loss"])
        optimizer.step()
        self.lr_schedulers().step()


class Pair(LightningModule):
    """Trains two networks, each with its own optimiser."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second = Net(0.0), Net(0.0)

    def training_step(self, batch: Any, index: int) -> None:
        nets = (self.first, self.second)
        for net, optimizer in zip(nets, self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(net(**batch)["loss"])
            optimizer.step()

    def validation_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.second(**batch)["loss"]

    def configure_optimizers(self) -> Any:
        return adamw(self.first, 1e-2), adamw(self.second, 1e-2)


def adamw(net: nn.Module, lr: float) -> torch.optim.Optimizer:
    named = dict(net.named_parameters())
    groups = [
        {"params": [w for name, w in named.items() if "bias" not in name], "weight_decay": 0.1},
        {"params": [w for name, w in named.items() if "bias" in name], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr)


def fit(
    module: Any,
    callbacks: list[Any],
    *,
    data: Any = None,
    resume: Path | None = None,
    shuffle: bool = False,
    validation: Any = VALIDATION,
    **settings: Any,
) -> Any:
    seed_everything(3, verbose=False)
    usual = {
        "accelerator": "cpu",
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(callbacks=callbacks, **(usual | settings))
    training = DataLoader(data or examples(48, seed=0), batch_size=4, shuffle=shuffle)
    validating = None if validation is None else DataLoader(validation, batch_size=16)
    trainer.fit(module, training, validating, ckpt_path=resume, weights_only=False)
    return trainer


def by_hand(accumulated: int) -> nn.Module:
    """Train as Lightning does: AdamW, clipping at 0.5, cosine annealing a step."""
    data, net = examples(48, seed=0), Net(dropout=0.0)
    optimizer = adamw(net, 1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 36)
    for batch_index in range(36):
        first = batch_index * 4 % 48
        rows = data[first : first + 4]
        batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        (net(**batch)["loss"] / accumulated).backward()
        if (batch_index + 1) % accumulated == 0:
            nn.utils.clip_grad_norm_([w for g in optimizer.param_groups for w in g["params"]], 0.5)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    return net


@pytest.mark.parametrize("accumulated", [1, 3])
def test_policy_off_is_bit_for_bit_the_loop_written_by_hand(accumulated: int) -> None:
    module, callback = Module(dropout=0.0), TrimtabCallback(policy=None, keep_best=False)
    fit(module, [callback], gradient_clip_val=0.5, accumulate_grad_batches=accumulated)
    assert are_equal(weights(module), weights(by_hand(accumulated)))
    assert callback.summary.spent_steps == 36 // accumulated
    assert callback.summary.finished


@pytest.mark.parametrize("schedule", ["step", "epoch", "plateau", "none"])
def test_policy_off_leaves_a_shuffled_run_untouched(schedule: str) -> None:
    alone, steered = Module(schedule=schedule), Module(schedule=schedule)
    fit(alone, [], shuffle=True)
    callback = TrimtabCallback(policy=None, keep_best=False)
    fit(steered, [callback], shuffle=True)
    assert are_equal(weights(alone), weights(steered))
    assert len(callback.summary.decisions) == 9


@pytest.mark.parametrize("schedule", ["step", "epoch", "plateau"])
def test_schedulers_do_not_compound_with_what_is_written(schedule: str) -> None:
    used: list[float] = []

    class Spy(Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            used.append(optimizer.param_groups[0]["lr"])

    callback = TrimtabCallback(policy="random", decisions=6, keep_best=False)
    trainer = fit(Module(schedule=schedule), [callback, Spy()])
    assert used == pytest.approx([row["lr"] for row in callback.summary.schedule])
    assert used != pytest.approx([used[0]] * 36)
    left = trainer.optimizers[0].param_groups[0]["lr"]
    if schedule == "step":
        assert left == pytest.approx(0.0, abs=1e-12)
    elif schedule == "epoch":
        assert left == pytest.approx(1e-2 * 0.5**3)
    else:
        assert left in [pytest.approx(1e-2 * 0.1**n) for n in range(4)]


def test_manual_optimisation_is_steered_and_off_it_is_untouched() -> None:
    alone, off = Manual(), Manual()
    fit(alone, [])
    callback = TrimtabCallback(policy=None, keep_best=False)
    fit(off, [callback])
    assert are_equal(weights(alone), weights(off))
    steered = TrimtabCallback(policy="random")
    fit(Manual(), [steered])
    assert steered.summary.finished
    assert len({row["lr"] for row in steered.summary.schedule}) > 5


def test_of_several_optimisers_the_one_that_is_said_is_steered() -> None:
    alone, off, steered = Pair(), Pair(), Pair()
    fit(alone, [])
    fit(off, [TrimtabCallback(policy=None, optimizer=1, total_steps=36, keep_best=False)])
    assert are_equal(weights(alone), weights(off))
    callback = TrimtabCallback(policy="random", optimizer=1, total_steps=36, keep_best=False)
    fit(steered, [callback])
    assert are_equal(weights(alone.first), weights(steered.first))
    assert not are_equal(weights(alone.second), weights(steered.second))
    assert callback.summary.finished


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"total_steps": 36}, r"2 optimisers \(0: AdamW, 1: AdamW\); say which"),
        ({"optimizer": 2, "total_steps": 36}, r"optimizer=2: the module has 0: AdamW"),
        ({"optimizer": 1}, r"total_steps=None with 2 optimisers"),
    ],
)
def test_which_optimiser_is_not_guessed(settings: dict[str, Any], said: str) -> None:
    module = Pair()
    before = weights(module)
    with pytest.raises(AdapterError, match=said):
        fit(module, [TrimtabCallback(policy=None, **settings)])
    assert are_equal(before, weights(module))


def test_weight_decay_is_not_given_to_the_group_without() -> None:
    seen: list[tuple[float, float]] = []

    class Spy(Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            seen.append(tuple(group["weight_decay"] for group in optimizer.param_groups))

    callback = TrimtabCallback(policy="random", hyperparameters=("lr", "weight_decay"))
    fit(Module(), [callback, Spy()])
    assert {other for _, other in seen} == {0.0}
    scheduled = [row["weight_decay"] for row in callback.summary.schedule]
    assert [decayed for decayed, _ in seen] == pytest.approx(scheduled)
    assert len(set(scheduled)) > 2


def test_the_clipping_norm_is_steered_and_given_back() -> None:
    callback = TrimtabCallback(policy="random", hyperparameters=("clip",))
    trainer = fit(Module(), [callback], gradient_clip_val=0.5)
    assert len({row["clip"] for row in callback.summary.schedule}) > 2
    assert trainer.gradient_clip_val == 0.5


def test_the_monitored_learning_rate_is_the_one_that_was_used(tmp_path: Path) -> None:
    callback = TrimtabCallback(policy="random", decisions=6)
    logger = CSVLogger(tmp_path)
    monitor = LearningRateMonitor(logging_interval="step")
    fit(Module(), [monitor, callback], logger=logger, log_every_n_steps=1)
    with Path(logger.log_dir, "metrics.csv").open() as file:
        logged = [row["lr-AdamW/pg1"] for row in csv.DictReader(file)]
    used = [row["lr"] for row in callback.summary.schedule]
    assert [float(rate) for rate in logged if rate] == pytest.approx(used, rel=1e-5)


def test_metrics_that_the_validation_step_logs_can_be_watched() -> None:
    callback = TrimtabCallback(policy=None, monitor="accuracy", mode="max")
    module = Module()
    fit(module, [callback])
    best = callback.summary.best
    net = module.net.eval()
    batch = {key: torch.stack([row[key] for row in VALIDATION]) for key in VALIDATION[0]}
    hits = (net(**batch)["logits"].argmax(1) == batch["labels"]).float().mean()
    assert best["accuracy"] == pytest.approx(float(hits))
    assert "log" not in vars(module)


class Rising(MeanMetric):
    higher_is_better = True


class Falling(MeanMetric):
    higher_is_better = False


class Rated(Module):
    """Logs a metric object under a name that says nothing."""

    def __init__(self, kind: type[MeanMetric]) -> None:
        super().__init__()
        self.hits = kind()

    def validation_step(self, batch: Any, index: int) -> None:
        outputs = self.net(**batch)
        self.hits.update((outputs["logits"].argmax(1) == batch["labels"]).float())
        self.log("loss", outputs["loss"])
        self.log("quality", self.hits)


@pytest.mark.parametrize(("kind", "best"), [(Rising, max), (Falling, min)])
def test_a_metric_object_says_which_way_it_gets_better(
    kind: Any, best: Any, tmp_path: Path
) -> None:
    callback = TrimtabCallback(policy=None, monitor="quality", store=str(tmp_path / "runs.db"))
    fit(Rated(kind), [callback])
    seen = [decision.measured["quality"] for decision in callback.summary.decisions]
    assert callback.summary.best["quality"] == best([*seen, callback.summary.last["quality"]])
    with sqlite3.connect(tmp_path / "runs.db") as connection:
        assert connection.execute("SELECT mode FROM runs").fetchall() == [(best.__name__,)]


def test_a_metric_of_which_nothing_is_known_is_refused_and_a_known_one_is_not() -> None:
    with pytest.raises(SpecError, match="whether 'quality' gets better"):
        fit(Rated(MeanMetric), [TrimtabCallback(policy=None, monitor="quality")])
    with pytest.raises(SpecError, match="whether 'quality' gets better"):
        fit(Module(), [TrimtabCallback(monitor="quality", validate=lambda: {"quality": 1.0})])
    callback = TrimtabCallback(policy=None, monitor="accuracy")
    fit(Module(), [callback])
    seen = [decision.measured["accuracy"] for decision in callback.summary.decisions]
    assert callback.summary.best["accuracy"] == max(seen)


def test_the_policy_reads_the_loss_whatever_is_kept() -> None:
    summaries = []
    for monitor in ("loss", "accuracy"):
        callback = TrimtabCallback(monitor=monitor)
        fit(Module(lr=0.3), [callback])
        summaries.append(callback.summary)
    by_loss, by_accuracy = summaries
    assert by_loss.schedule == by_accuracy.schedule
    seen = [one.measured["accuracy"] for one in by_accuracy.decisions]
    assert by_accuracy.best["accuracy"] == max([*seen, by_accuracy.last["accuracy"]])


class Clears(Manual):
    """Clears its gradients between the backward pass and the step."""

    def training_step(self, batch: Any, index: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(self.net(**batch)["loss"])
        optimizer.zero_grad()
        optimizer.step()


class StepsInside(Manual):
    """Steps PyTorch's optimiser, which Lightning does not see, beside its own."""

    def training_step(self, batch: Any, index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.net(**batch)["loss"])
        optimizer.optimizer.step()
        optimizer.step()


class OfAnother(Module):
    """Hands over the optimiser of another network."""

    def configure_optimizers(self) -> Any:
        return adamw(Net(0.0), 1e-2)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Clears, "no weight of the optimiser has a gradient"),
        (StepsInside, "AdamW was stepped elsewhere"),
        (OfAnother, "none of the 4 weights of AdamW is in the model OfAnother"),
    ],
)
def test_a_loop_that_would_train_unsteered_is_an_error(kind: Any, said: str) -> None:
    with pytest.raises(AdapterError, match=said):
        fit(kind(), [TrimtabCallback(policy=Still(), decisions=6)])


@pytest.mark.filterwarnings("ignore:step 12. loss not finite")
@pytest.mark.parametrize("kind", [Module, Manual])
def test_a_nan_batch_is_skipped_and_reported(kind: Any) -> None:
    module, callback = kind(), TrimtabCallback(policy=Still(), decisions=6)
    fit(module, [callback], data=examples(144, seed=0, nan_at=50), max_epochs=1)
    assert all(torch.isfinite(weight).all() for weight in weights(module))
    summary = callback.summary
    assert (summary.rollbacks, summary.finished, summary.diverged) == (0, True, False)
    (event,) = callback.events
    assert (event.step, event.treatment) == (12, "skip")


class Breaks(Callback):
    """Makes a weight not finite before a batch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                next(pl_module.parameters()).view(-1)[0] = math.nan


@pytest.mark.parametrize("kind", [Module, Manual])
def test_a_weight_that_is_not_finite_is_rolled_back_and_reported(kind: Any) -> None:
    module, callback = kind(), TrimtabCallback(policy=Still(), decisions=6)
    fit(module, [callback, Breaks(12)], data=examples(144, seed=0), max_epochs=1)
    assert all(torch.isfinite(weight).all() for weight in weights(module))
    summary = callback.summary
    assert (summary.rollbacks, summary.finished, summary.diverged) == (1, True, False)
    assert [decision.step for decision in summary.decisions if decision.restored] == [13]


@pytest.mark.parametrize("kind", [Module, Manual])
@pytest.mark.parametrize("seed", range(5))
def test_the_guard_policy_leaves_lightnings_own_bits(kind: Any, seed: int) -> None:
    ended = []
    for callbacks in ([], [TrimtabCallback(policy="guard", decisions=6)]):
        torch.manual_seed(seed)
        module = kind()
        fit(module, callbacks, data=examples(144, seed=seed), max_epochs=1)
        ended.append([*weights(module), torch.get_rng_state()])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*ended, strict=True))
    assert callbacks[0].events == []


@pytest.mark.filterwarnings("ignore::trimtab.core.errors.TrimtabWarning")
@pytest.mark.parametrize("kind", [Module, Manual])
def test_the_guard_policy_mends_a_fit(kind: Any) -> None:
    module, callback = kind(), TrimtabCallback(policy="guard", decisions=6)
    data = examples(144, seed=0, nan_at=50)
    fit(module, [callback, Breaks(20)], data=data, max_epochs=1)
    assert all(torch.isfinite(weight).all() for weight in weights(module))
    skipped, restored = callback.events
    assert (skipped.step, skipped.treatment) == (12, "skip")
    assert (restored.step, restored.fault) == (20, "weights not finite")
    assert restored.restored is not None
    assert not callback.summary.diverged


def test_an_exploding_learning_rate_is_rolled_back_and_the_run_finished() -> None:
    batch = {key: torch.stack([row[key] for row in VALIDATION]) for key in VALIDATION[0]}
    module = Module(lr=30.0)
    before = float(module.net.eval()(**batch)["loss"])
    callback = TrimtabCallback(policy=Still(), decisions=12)
    fit(module.train(), [callback])
    assert callback.summary.rollbacks >= 1
    assert callback.summary.finished
    assert float(module.net.eval()(**batch)["loss"]) <= before


# Killed and resumed.


class Killer(Callback):
    """Ends the process without a word, in the middle of a window."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 41:
            os.kill(os.getpid(), signal.SIGKILL)


def resumable(folder: Path) -> list[Any]:
    callback = TrimtabCallback(
        policy="random",
        hyperparameters=("lr", "weight_decay", "dropout", "clip"),
        decisions=9,
        keep_best=False,
    )
    saving = ModelCheckpoint(folder, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
    return [callback, saving]


def long_fit(module: Any, callbacks: list[Any], resume: Path | None = None) -> Any:
    settings = {"enable_checkpointing": True, "max_epochs": 5, "gradient_clip_val": 0.5}
    return fit(module, callbacks, shuffle=True, resume=resume, **settings)


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; "
        "from tests.adapters.lightning import test_lightning as t; "
        "t.long_fit(t.Module(), [*t.resumable(Path(sys.argv[1])), t.Killer()])"
    )
    folder = tmp_path / "killed"
    killed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(folder)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    module, whole = Module(), resumable(tmp_path / "whole")
    long_fit(module, whole)

    other, resumed = Module(), resumable(folder)
    long_fit(other, resumed, resume=folder / "epoch=2.ckpt")
    assert resumed[0].summary.schedule == whole[0].summary.schedule
    assert are_equal(weights(other), weights(module))


# What is refused.


def test_a_fit_without_validation_data_is_refused() -> None:
    with pytest.raises(AdapterError, match="validation_data=None, and the fit has no"):
        fit(Module(), [TrimtabCallback(policy=None)], validation=None)


def test_given_validation_data_are_taken() -> None:
    data = DataLoader(VALIDATION, batch_size=32)
    callback = TrimtabCallback(policy=None, validation_data=data)
    fit(Module(), [callback], validation=None)
    assert callback.summary.finished


def test_a_fit_without_an_end_is_refused() -> None:
    with pytest.raises(AdapterError, match="expects inf steps"):
        fit(Module(schedule="none"), [TrimtabCallback(policy=None)], max_epochs=-1, max_steps=-1)


def test_a_value_that_is_not_logged_is_named() -> None:
    with pytest.raises(MetricError, match="no 'f1'; it has accuracy, loss, val_loss"):
        fit(Module(), [TrimtabCallback(policy=None, monitor="f1")])


class Unfreezing(BaseFinetuning):
    """Lets the first layer join the optimiser when the second epoch begins."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net.body[0])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net.body[0], optimizer, lr=1e-3)


class OneGroup(Module):
    """Trains what is not frozen, in one group."""

    def configure_optimizers(self) -> Any:
        free = [weight for weight in self.parameters() if weight.requires_grad]
        return torch.optim.AdamW(free, lr=1e-2, weight_decay=0.1)


@pytest.mark.parametrize("reference", [None, "cosine"])
def test_a_layer_that_is_unfrozen_is_scheduled_and_steered(reference: Any) -> None:
    module = OneGroup(schedule="none")
    used: list[list[tuple[float, float]]] = []

    class Listening(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if not used and trainer.global_step == 0:
                trainer.optimizers[0].register_step_pre_hook(
                    lambda o, *_: used.append(
                        [(g["lr"], g["weight_decay"]) for g in o.param_groups]
                    )
                )

    steering = TrimtabCallback(
        policy="random",
        reference=reference,
        hyperparameters=("lr", "weight_decay"),
        decisions=8,
        keep_best=False,
    )
    fit(module, [Unfreezing(), steering, Listening()])
    assert [len(step) for step in used] == [1] * 12 + [2] * 24
    for first, second in used[12:]:
        assert second[0] == pytest.approx(0.1 * first[0])
        assert second[1] == pytest.approx(first[1])
    assert len({step[1] for step in used[12:]}) > 2


def goes_on(how: str) -> Any:
    return TrimtabCallback(
        policy="random", hyperparameters=("lr", "weight_decay"), decisions=8, resume=how
    )


def fit_saving(folder: Path, callbacks: list[Any], epochs: int, resume: Any = None) -> Any:
    keep = ModelCheckpoint(folder, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
    settings = {"enable_checkpointing": True, "max_epochs": epochs, "resume": resume}
    return fit(Module(schedule="epoch"), [*callbacks, keep], **settings)


def test_more_epochs_are_refused_with_both_ways_on(tmp_path: Path) -> None:
    fit_saving(tmp_path, [goes_on("same")], 3)
    with pytest.raises(SpecError, match=r"total_steps 36, this run 72.*'extend'.*'fresh'"):
        fit_saving(tmp_path, [goes_on("same")], 6, tmp_path / "epoch=2.ckpt")


def test_a_fit_is_extended_with_its_values(tmp_path: Path) -> None:
    first, longer = goes_on("same"), goes_on("extend")
    fit_saving(tmp_path, [first], 3)
    fit_saving(tmp_path, [longer], 6, tmp_path / "epoch=2.ckpt")
    summary = longer.summary
    assert (summary.spent_steps, summary.finished) == (72, True)
    assert summary.schedule[:36] == first.summary.schedule
    assert summary.schedule[36]["weight_decay"] == first.summary.schedule[-1]["weight_decay"]


@pytest.mark.parametrize("with_state", [True, False])
def test_a_fresh_run_begins_at_a_checkpoint_and_is_resumed_itself(
    tmp_path: Path, with_state: bool
) -> None:
    fit_saving(tmp_path, [goes_on("same")] if with_state else [], 1)
    fresh, again = goes_on("fresh"), goes_on("same")
    fit_saving(tmp_path, [fresh], 3, tmp_path / "epoch=0.ckpt")
    assert (fresh.summary.spent_steps, fresh.summary.finished) == (24, True)
    fit_saving(tmp_path, [again], 3, tmp_path / "epoch=1.ckpt")
    assert again.summary.schedule == fresh.summary.schedule


def test_a_checkpoint_made_without_the_callback_names_the_ways_on(tmp_path: Path) -> None:
    fit_saving(tmp_path, [], 1)
    for how in ("same", "extend"):
        with pytest.raises(AdapterError, match=r"resume='fresh'.*resume='extend'"):
            fit_saving(tmp_path, [goes_on(how)], 3, tmp_path / "epoch=0.ckpt")


def test_a_second_fit_of_a_trainer_is_a_run_over_the_steps_that_are_left() -> None:
    callback, module = TrimtabCallback(policy=None), Module(schedule="none")
    trainer = fit(module, [callback])
    trainer.fit_loop.max_epochs = 5
    data = DataLoader(examples(48, seed=0), batch_size=4)
    trainer.fit(module, data, DataLoader(VALIDATION, batch_size=16))
    assert (callback.summary.spent_steps, callback.summary.finished) == (24, True)


# Other callbacks.


class Normalised(Module):
    """Has batch normalisation, for which weight averaging adds an epoch."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.net.body = nn.Sequential(nn.BatchNorm1d(6), self.net.body)


@pytest.mark.parametrize("kind", [Module, Normalised])
@pytest.mark.parametrize("schedule", ["none", "epoch"])
def test_stochastic_weight_averaging_finishes_as_alone(kind: Any, schedule: str) -> None:
    def averaging() -> Any:
        return StochasticWeightAveraging(1e-2, swa_epoch_start=2, annealing_epochs=2)

    alone, off = kind(schedule=schedule), kind(schedule=schedule)
    fit(alone, [averaging()], max_epochs=4)
    callback = TrimtabCallback(policy=None, keep_best=False)
    fit(off, [callback, averaging()], max_epochs=4)
    assert are_equal(weights(alone), weights(off))
    assert (callback.summary.spent_steps, callback.summary.finished) == (48, True)
    used: list[float] = []

    class Spy(Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            used.append(optimizer.param_groups[0]["lr"])

    steered = TrimtabCallback(policy="random", keep_best=False)
    fit(kind(schedule=schedule), [steered, averaging(), Spy()], max_epochs=4)
    assert [row["lr"] for row in steered.summary.schedule] == pytest.approx(used[:48])


class Averaged(WeightAveraging):
    """Remembers what it leaves."""

    def __init__(self) -> None:
        super().__init__(avg_fn=torch.optim.swa_utils.get_ema_avg_fn(0.98))

    def on_train_end(self, trainer: Any, module: Any) -> None:
        super().on_train_end(trainer, module)
        self.left = weights(module)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_averaged_weights_are_left_in_either_order(first: bool, kind: str) -> None:
    callback, module = TrimtabCallback(policy="random", seed=2), Module(lr=0.1)
    swa = StochasticWeightAveraging(1e-2, swa_epoch_start=1)
    averaging: Any = Averaged() if kind == "ema" else swa
    with pytest.warns(TrimtabWarning, match="leaves its averaged weights"):
        fit(module, [averaging, callback] if first else [callback, averaging])
    left = averaging.left if kind == "ema" else weights(averaging._average_model)
    assert are_equal(weights(module), left)


def test_two_callbacks_steer_two_optimisers_and_are_resumed(tmp_path: Path) -> None:
    def pair(**more: Any) -> list[Any]:
        usual = {"policy": "random", "total_steps": 36, "keep_best": False} | more
        return [TrimtabCallback(optimizer=n, seed=n, **usual) for n in (0, 1)]

    def go(callbacks: list[Any], **settings: Any) -> Any:
        keep = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
        module = Pair()
        fit(module, [*callbacks, keep], enable_checkpointing=True, **settings)
        return module

    first, again = pair(), pair()
    whole = weights(go(first))
    resumed = weights(go(again, resume=tmp_path / "epoch=1.ckpt"))
    assert are_equal(whole, resumed)
    for one, other in zip(first, again, strict=True):
        assert one.summary.schedule == other.summary.schedule
        assert one.summary.finished
    assert first[0].summary.schedule != first[1].summary.schedule


@pytest.mark.parametrize("reference", [None, "cosine"])
def test_steps_are_counted_where_the_accumulation_changes(reference: str | None) -> None:
    callback = TrimtabCallback(policy=None, reference=reference)
    fit(Module(schedule="epoch"), [callback, GradientAccumulationScheduler({0: 4, 2: 1})])
    assert (callback.summary.spent_steps, callback.summary.finished) == (3 + 3 + 12, True)
    rates = [row["lr"] for row in callback.summary.schedule]
    if reference is None:
        assert rates == pytest.approx([1e-2] * 3 + [5e-3] * 3 + [2.5e-3] * 12)
    else:
        assert rates[-1] < 0.02 * 1e-2


class Endless(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(examples(48, seed=0))


def test_data_without_length_are_named_with_what_is_missing() -> None:
    trainer = Trainer(
        callbacks=[TrimtabCallback(policy=None)],
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader(Endless(), batch_size=4)
    with pytest.raises(AdapterError, match=r"Endless\) have no length.*max_steps"):
        trainer.fit(Module(schedule="none"), data, DataLoader(VALIDATION, batch_size=16))


class Gathering(Module):
    """Measures over an epoch, in a metric object and a list, as many modules do."""

    def __init__(self) -> None:
        super().__init__(schedule="none")
        self.accuracy = Accuracy(task="multiclass", num_classes=2)
        self.seen: list[torch.Tensor] = []
        self.calls = 0

    def validation_step(self, batch: Any, index: int) -> torch.Tensor:
        outputs = self.net(**batch)
        self.accuracy.update(outputs["logits"], batch["labels"])
        self.seen.append(outputs["loss"])
        self.calls += 1
        return outputs["loss"]

    def on_validation_epoch_end(self) -> None:
        self.log("gathered", self.accuracy.compute())
        self.log("mean", torch.stack(self.seen).mean())
        self.log("calls", float(self.calls))
        self.accuracy.reset()
        self.seen.clear()


def test_the_validation_of_a_fit_counts_nothing_of_ours(tmp_path: Path) -> None:
    def course(folder: Path, callbacks: list[Any]) -> tuple[Any, ...]:
        class Spy(Callback):
            def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
                seen.append({k: float(v) for k, v in trainer.callback_metrics.items()})

        seen: list[dict[str, float]] = []
        best = ModelCheckpoint(folder, monitor="gathered", mode="max")
        early = EarlyStopping("mean", patience=1, min_delta=0.2)
        settings = {"enable_checkpointing": True, "max_epochs": 6}
        trainer = fit(Gathering(), [*callbacks, Spy(), best, early], **settings)
        return seen, trainer.global_step, float(best.best_model_score or 0)

    plain = course(tmp_path / "plain", [])
    told = course(tmp_path / "told", [TrimtabCallback(policy=None, keep_best=False)])
    assert told == plain
    assert plain[1] < 72
