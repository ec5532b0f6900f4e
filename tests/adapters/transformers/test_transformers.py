"""The callback for a Transformers Trainer, against Trainer alone and loops written by hand."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.adapters.tiny_training import Net, Still, are_equal, examples, weights
from trimtab.core.errors import AdapterError, MetricError, SpecError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from torch.utils.data import SequentialSampler  # noqa: E402

from trimtab.adapters.transformers import TrimtabCallback  # noqa: E402

pytestmark = [
    pytest.mark.framework,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
VALIDATION = examples(32, seed=1)


class InOrder(transformers.Trainer):  # type: ignore[misc]
    """Takes the examples in their order."""

    def _get_train_sampler(self, *args: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def arguments(folder: Path, **settings: Any) -> Any:
    usual = {
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "optim": "adamw_torch",
        "per_device_train_batch_size": 4,
        "max_steps": 24,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "logging_steps": 1,
        "log_level": "error",
        "remove_unused_columns": False,
    }
    return transformers.TrainingArguments(output_dir=str(folder), **(usual | settings))


def train(
    folder: Path,
    callbacks: list[Any],
    data: Any = None,
    model: Any = None,
    kind: Any = InOrder,
    compute_metrics: Any = None,
    **settings: Any,
) -> Any:
    trainer = kind(
        model=model or Net(),
        args=arguments(folder, **settings),
        train_dataset=data or examples(96, seed=0),
        eval_dataset=VALIDATION,
        callbacks=callbacks,
        compute_metrics=compute_metrics,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return trainer


def by_hand(steps: int, accumulated: int) -> nn.Module:
    """Train as Trainer does, with AdamW in two groups, clipping at 1 and linear decay."""
    data, model = examples(96, seed=0), Net(dropout=0.0)
    named = dict(model.named_parameters())
    groups = [
        {"params": [w for name, w in named.items() if "bias" not in name], "weight_decay": 0.1},
        {"params": [w for name, w in named.items() if "bias" in name], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.999), eps=1e-8)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * max(0.0, float(steps - step) / float(max(1, steps)))
        for part in range(accumulated):
            first = (step * accumulated + part) * 4 % 96
            rows = data[first : first + 4]
            batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
            (model(**batch)["loss"] / accumulated).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("accumulated", [1, 2])
def test_policy_off_is_bit_for_bit_the_loop_written_by_hand(
    tmp_path: Path, accumulated: int
) -> None:
    callback = TrimtabCallback(policy=None, validation_data=VALIDATION, keep_best=False)
    settings = {"gradient_accumulation_steps": accumulated, "max_steps": 24 // accumulated}
    trainer = train(tmp_path, [callback], model=Net(dropout=0.0), **settings)
    assert are_equal(weights(trainer.model), weights(by_hand(24 // accumulated, accumulated)))
    assert callback.summary.finished
    assert callback.summary.spent_steps == 24 // accumulated


def test_policy_off_leaves_a_shuffled_run_that_trainer_evaluates_untouched(tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 10, "lr_scheduler_type": "cosine"}
    settings |= {"kind": transformers.Trainer, "per_device_train_batch_size": 12}
    alone = train(tmp_path, [], **settings)
    callback = TrimtabCallback(policy=None, keep_best=False)
    steered = train(tmp_path, [callback], **settings)
    assert are_equal(weights(alone.model), weights(steered.model))
    assert len(callback.summary.decisions) == 6


def test_watching_only_proposes_and_changes_nothing(tmp_path: Path) -> None:
    callback = TrimtabCallback(policy="random", watch_only=True, validation_data=VALIDATION)
    watched = train(tmp_path, [callback])
    assert are_equal(weights(watched.model), weights(train(tmp_path, []).model))
    first = callback.summary.decisions[0]
    assert (
        first.proposed != first.applied
        or len({str(d.proposed) for d in callback.summary.decisions}) > 1
    )


def test_accumulated_losses_are_weighted_as_they_are_trained_on(tmp_path: Path) -> None:
    callback = TrimtabCallback(
        policy=None, validation_data=VALIDATION, keep_best=False, decisions=1
    )
    trainer = train(tmp_path, [callback], gradient_accumulation_steps=3, max_steps=4)
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert callback.summary.last["train_loss"] == pytest.approx(sum(logged) / 4, rel=1e-4)


def test_the_logged_learning_rate_is_the_one_that_was_used(tmp_path: Path) -> None:
    used: list[float] = []

    class Spy(transformers.TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            used.append(kwargs["optimizer"].param_groups[0]["lr"])

    callback = TrimtabCallback(policy="random", validation_data=VALIDATION, decisions=6)
    trainer = train(tmp_path, [callback, Spy()])
    logged = [row["learning_rate"] for row in trainer.state.log_history if "loss" in row]
    assert logged == used
    assert used == pytest.approx([row["lr"] for row in callback.summary.schedule])
    alone = [1e-2 * (24 - step) / 24 for step in range(24)]
    assert used != pytest.approx(alone, rel=0.1)


def test_weight_decay_is_not_given_to_the_group_without(tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []

    class Spy(transformers.TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            decayed, other = kwargs["optimizer"].param_groups
            seen.append((decayed["weight_decay"], other["weight_decay"]))

    callback = TrimtabCallback(
        policy="random", hyperparameters=("lr", "weight_decay"), validation_data=VALIDATION
    )
    train(tmp_path, [callback, Spy()])
    assert {other for _, other in seen} == {0.0}
    assert len({decayed for decayed, _ in seen}) > 2
    scheduled = [row["weight_decay"] for row in callback.summary.schedule]
    assert [decayed for decayed, _ in seen] == pytest.approx(scheduled)


def test_the_clipping_norm_is_steered_and_given_back(tmp_path: Path) -> None:
    callback = TrimtabCallback(
        policy="random", hyperparameters=("clip",), validation_data=VALIDATION
    )
    trainer = train(tmp_path, [callback])
    assert len({row["clip"] for row in callback.summary.schedule}) > 2
    assert trainer.args.max_grad_norm == 1.0


@pytest.mark.filterwarnings("ignore:step 12. loss not finite")
def test_a_nan_batch_is_skipped_and_reported(tmp_path: Path) -> None:
    callback = TrimtabCallback(policy=Still(), validation_data=VALIDATION, decisions=6)
    data = examples(96, seed=0, nan_at=50)  # in the batch of step 13
    trainer = train(tmp_path, [callback], data=data)
    assert all(torch.isfinite(weight).all() for weight in weights(trainer.model))
    summary = callback.summary
    assert (summary.rollbacks, summary.finished, summary.diverged) == (0, True, False)
    (event,) = callback.events
    assert (event.step, event.treatment) == (12, "skip")


class Breaks(transformers.TrainerCallback):
    """Makes a weight not finite after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                next(kwargs["model"].parameters()).view(-1)[0] = math.nan


def test_a_weight_that_is_not_finite_is_rolled_back_and_reported(tmp_path: Path) -> None:
    callback = TrimtabCallback(policy=Still(), validation_data=VALIDATION, decisions=6)
    trainer = train(tmp_path, [callback, Breaks(12)])
    assert all(torch.isfinite(weight).all() for weight in weights(trainer.model))
    summary = callback.summary
    assert (summary.rollbacks, summary.finished, summary.diverged) == (1, True, False)
    restored = [decision for decision in summary.decisions if decision.restored]
    assert [decision.step for decision in restored] == [13]
    assert "rolled back" in restored[0].why()


GUARD = {"policy": "guard", "validation_data": VALIDATION, "decisions": 6}


@pytest.mark.parametrize("seed", range(5))
def test_the_guard_policy_leaves_trainers_own_bits(tmp_path: Path, seed: int) -> None:
    plain = train(tmp_path / "plain", [], seed=seed)
    drawn = torch.get_rng_state()
    callback = TrimtabCallback(**GUARD)
    guarded = train(tmp_path / "guarded", [callback], seed=seed)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert callback.events == []
    for mine, theirs in zip(weights(guarded.model), weights(plain.model), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.filterwarnings("ignore::trimtab.core.errors.TrimtabWarning")
def test_the_guard_policy_mends_a_trainers_run(tmp_path: Path) -> None:
    callback = TrimtabCallback(**GUARD)
    data = examples(96, seed=0, nan_at=50)
    trainer = train(tmp_path, [callback, Breaks(20)], data=data)
    assert all(torch.isfinite(weight).all() for weight in weights(trainer.model))
    skipped, restored = callback.events
    assert (skipped.step, skipped.treatment) == (12, "skip")
    assert (restored.step, restored.fault) == (20, "weights not finite")
    assert restored.restored is not None
    assert not callback.summary.diverged


def test_an_exploding_learning_rate_is_rolled_back_and_the_run_finished(tmp_path: Path) -> None:
    first = Net().eval()
    before = float(first(**collated(VALIDATION))["loss"])
    callback = TrimtabCallback(policy=Still(), validation_data=VALIDATION, decisions=12)
    trainer = train(tmp_path, [callback], learning_rate=30.0, max_steps=48)
    after = float(trainer.model.eval()(**collated(VALIDATION))["loss"])
    assert callback.summary.rollbacks >= 1
    assert callback.summary.finished
    assert after <= before


def collated(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


# Killed and resumed.

SETTINGS: dict[str, Any] = {
    "save_strategy": "steps",
    "save_steps": 5,
    "max_steps": 30,
    "gradient_accumulation_steps": 2,
}


def resumable() -> Any:
    return TrimtabCallback(
        policy="random",
        hyperparameters=("lr", "weight_decay", "dropout", "clip"),
        validation_data=VALIDATION,
        decisions=8,
        keep_best=False,
    )


class Killer(transformers.TrainerCallback):  # type: ignore[misc]
    """Ends the process without a word, in the middle of a window."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 18:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; "
        "from tests.adapters.transformers import test_transformers as t; "
        "t.train(Path(sys.argv[1]), [t.resumable(), t.Killer()], **t.SETTINGS)"
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
    whole = resumable()
    expected = weights(train(tmp_path / "whole", [whole], **SETTINGS).model)

    resumed = resumable()
    transformers.set_seed(99)
    trainer = InOrder(
        model=Net(),
        args=arguments(folder, **SETTINGS),
        train_dataset=examples(96, seed=0),
        callbacks=[resumed],
    )
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-15"))
    assert resumed.summary.schedule == whole.summary.schedule
    assert are_equal(weights(trainer.model), expected)


def test_a_checkpoint_without_state_is_refused_by_name(tmp_path: Path) -> None:
    train(tmp_path, [], **SETTINGS)
    trainer = InOrder(
        model=Net(),
        args=arguments(tmp_path, **SETTINGS),
        train_dataset=examples(96, seed=0),
        callbacks=[resumable()],
    )
    with pytest.raises(AdapterError, match="checkpoint of step 15 holds no state"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-15"))


def resume(folder: Path, checkpoint: Path, callback: Any, **settings: Any) -> Any:
    trainer = InOrder(
        model=Net(),
        args=arguments(folder, **(SETTINGS | settings)),
        train_dataset=examples(96, seed=0),
        eval_dataset=VALIDATION,
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trainer


def goes_on(how: str, **more: Any) -> Any:
    return TrimtabCallback(
        policy="random",
        hyperparameters=("lr", "weight_decay"),
        validation_data=VALIDATION,
        decisions=8,
        resume=how,
        **more,
    )


def test_another_number_of_steps_is_refused_with_both_ways_on(tmp_path: Path) -> None:
    train(tmp_path, [goes_on("same")], **SETTINGS)
    with pytest.raises(SpecError, match=r"total_steps 30, this run 60.*'extend'.*'fresh'"):
        resume(tmp_path, tmp_path / "checkpoint-30", goes_on("same"), max_steps=60)
    with pytest.raises(AdapterError, match="resume: 'on' is none of same, extend, fresh"):
        goes_on("on")


@pytest.mark.parametrize("reference", [None, "cosine"])
@pytest.mark.parametrize("step", [15, 30])
def test_a_run_is_extended_with_its_values_and_its_best(
    tmp_path: Path, step: int, reference: str | None
) -> None:
    first = goes_on("same", reference=reference)
    train(tmp_path, [first], **SETTINGS)
    longer = goes_on("extend", reference=reference)
    trainer = resume(tmp_path, tmp_path / f"checkpoint-{step}", longer, max_steps=60)
    summary = longer.summary
    assert trainer.state.global_step == 60
    assert (summary.spent_steps, summary.finished) == (60, True)
    assert [row["step"] for row in summary.schedule] == list(range(60))
    assert summary.schedule[:step] == first.summary.schedule[:step]
    past, now = first.summary.schedule[step - 1], summary.schedule[step]
    assert now["weight_decay"] == past["weight_decay"] != 0.1
    assert summary.decisions
    assert longer._training.rates.starts == first._training.rates.starts
    logged = {
        row["step"]: row["learning_rate"] for row in trainer.state.log_history if "loss" in row
    }
    used = [row["lr"] for row in summary.schedule[step:]]
    assert [logged[s + 1] for s in range(step, 60)] == pytest.approx(used)


def test_an_extended_run_is_resumed_as_any_other(tmp_path: Path) -> None:
    train(tmp_path, [goes_on("same")], **SETTINGS)
    whole, again = goes_on("extend"), goes_on("same")
    resume(tmp_path, tmp_path / "checkpoint-30", whole, max_steps=60)
    resume(tmp_path, tmp_path / "checkpoint-45", again, max_steps=60)
    assert again.summary.schedule == whole.summary.schedule


@pytest.mark.parametrize("with_state", [True, False])
def test_a_fresh_run_begins_at_a_checkpoint_and_is_resumed_itself(
    tmp_path: Path, with_state: bool
) -> None:
    train(tmp_path, [goes_on("same")] if with_state else [], **SETTINGS)
    fresh = goes_on("fresh")
    resume(tmp_path, tmp_path / "checkpoint-15", fresh)
    assert (fresh.summary.spent_steps, fresh.summary.finished) == (15, True)
    assert fresh.summary.schedule[0]["lr"] <= 1e-2
    again = goes_on("same")
    resume(tmp_path, tmp_path / "checkpoint-20", again)
    assert again.summary.schedule == fresh.summary.schedule


def test_a_checkpoint_without_state_names_the_ways_on(tmp_path: Path) -> None:
    train(tmp_path, [], **SETTINGS)
    for how in ("same", "extend"):
        with pytest.raises(AdapterError, match=r"resume='fresh'.*resume='extend'"):
            resume(tmp_path, tmp_path / "checkpoint-15", goes_on(how))
    with pytest.raises(AdapterError, match="30 of 30 steps are done; announce more"):
        resume(tmp_path, tmp_path / "checkpoint-30", goes_on("fresh"))


def test_a_moved_checkpoint_is_found_where_the_arguments_say(tmp_path: Path) -> None:
    whole = resumable()
    train(tmp_path / "one", [whole], **SETTINGS)
    moved = tmp_path / "elsewhere"
    (tmp_path / "one" / "checkpoint-15").rename(moved)

    def resume(**more: Any) -> Any:
        callback = resumable()
        trainer = InOrder(
            model=Net(),
            args=arguments(tmp_path / "two", **SETTINGS, **more),
            train_dataset=examples(96, seed=0),
            callbacks=[callback],
        )
        trainer.train(resume_from_checkpoint=str(moved))
        return callback

    with pytest.raises(AdapterError, match=r"no trimtab\.safetensors of step 15"):
        resume()
    resumed = resume(resume_from_checkpoint=str(moved))
    assert resumed.summary.schedule == whole.summary.schedule


# Losses that the model does not return, LoRA, and what is refused.


def with_a_loss_of_its_own(folder: Path) -> Any:
    def smoothed(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        loss = nn.CrossEntropyLoss(label_smoothing=0.1)(outputs["logits"], labels)
        return loss if num_items_in_batch is None else loss * len(labels) / num_items_in_batch

    return InOrder(
        model=Net(),
        args=arguments(folder, gradient_accumulation_steps=2),
        train_dataset=examples(96, seed=0),
        compute_loss_func=smoothed,
    )


def test_a_loss_outside_the_model_needs_the_trainer(tmp_path: Path) -> None:
    trainer = with_a_loss_of_its_own(tmp_path)
    trainer.add_callback(TrimtabCallback(policy=None, validation_data=VALIDATION))
    with pytest.raises(AdapterError, match=r"attach\(trainer\)"):
        trainer.train()


def test_an_attached_callback_sees_a_loss_outside_the_model(tmp_path: Path) -> None:
    alone = with_a_loss_of_its_own(tmp_path)
    alone.train()
    steered = with_a_loss_of_its_own(tmp_path)
    callback = TrimtabCallback(
        policy=None, validation_data=VALIDATION, keep_best=False, decisions=1
    )
    callback.attach(steered)
    steered.train()
    assert are_equal(weights(steered.model), weights(alone.model))
    logged = [row["loss"] for row in steered.state.log_history if "loss" in row]
    assert callback.summary.last["train_loss"] == pytest.approx(sum(logged) / 24, rel=1e-4)


def test_lora_weights_are_steered_and_the_base_is_left_alone(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
    )
    torch.manual_seed(0)
    base = transformers.BertForSequenceClassification(config)
    lora = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, lora_dropout=0.1, target_modules=["query", "value"]
    )
    model = peft.get_peft_model(base, lora)
    frozen = {n: w.detach().clone() for n, w in model.named_parameters() if not w.requires_grad}
    trained = {n: w.detach().clone() for n, w in model.named_parameters() if w.requires_grad}
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 20, (64, 6), generator=generator)
    data = [{"input_ids": row, "labels": (row[0] > 9).long()} for row in tokens]
    callback = TrimtabCallback(policy=Still(), validation_data=data[:16], decisions=4)
    train(tmp_path, [callback], data=data, model=model, max_steps=12)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in frozen.items())
    assert any(not torch.equal(after[name], weight) for name, weight in trained.items())
    assert callback.summary.finished
    assert callback._training.run.snapshots.bytes < 4 * sum(w.nbytes for w in frozen.values())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "eval_strategy='no'"),
        (
            {
                "eval_strategy": "steps",
                "lr_scheduler_type": "reduce_lr_on_plateau",
                "metric_for_best_model": "loss",
            },
            "goes by Trainer's evaluations",
        ),
        ({"restore_callback_states_from_checkpoint": True}, "leave it at False"),
    ],
)
def test_what_cannot_be_steered_is_refused_before_the_first_step(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    model = Net()
    before = weights(model)
    with pytest.raises(AdapterError, match=said):
        train(tmp_path, [TrimtabCallback(policy=None)], model=model, **settings)
    assert are_equal(before, weights(model))


def test_a_metric_that_trainer_does_not_return_is_named(tmp_path: Path) -> None:
    callback = TrimtabCallback(policy=None, monitor="accuracy", mode="max")
    with pytest.raises(MetricError, match="eval_accuracy"):
        train(tmp_path, [callback], eval_strategy="steps", eval_steps=10)


def quality(prediction: Any) -> dict[str, float]:
    hits = (prediction.predictions.argmax(1) == prediction.label_ids).mean()
    return {"quality": float(hits), "accuracy": float(hits)}


@pytest.mark.parametrize(
    ("monitor", "settings", "best"),
    [
        ("accuracy", {}, max),
        ("quality", {"metric_for_best_model": "eval_quality", "greater_is_better": False}, min),
        ("quality", {"metric_for_best_model": "quality", "greater_is_better": True}, max),
    ],
)
def test_a_metric_gets_better_as_its_name_or_trainer_says(
    tmp_path: Path, monitor: str, settings: dict[str, Any], best: Any
) -> None:
    callback = TrimtabCallback(policy=None, monitor=monitor)
    often = {"eval_strategy": "steps", "eval_steps": 8, "label_names": ["labels"]}
    train(tmp_path, [callback], compute_metrics=quality, **often, **settings)
    seen = [decision.measured[monitor] for decision in callback.summary.decisions]
    assert len(set(seen)) > 1
    assert callback.summary.best[monitor] == best([*seen, callback.summary.last[monitor]])


class StepsItself(InOrder):
    """Steps the optimiser in its own training step, beside Trainer."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        self.optimizer.optimizer.step()
        return loss


class OfAnother(InOrder):
    """Steps a dummy, as layer-wise optimisers hand over."""

    def create_optimizer(self, *args: Any) -> Any:
        self.optimizer = torch.optim.SGD([torch.randn(1, 1)], lr=0.1)
        return self.optimizer


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (StepsItself, "AdamW was stepped elsewhere"),
        (OfAnother, "none of the 1 weights of SGD is in the model Net"),
    ],
)
def test_a_trainer_that_would_train_unsteered_is_an_error(
    tmp_path: Path, kind: Any, said: str
) -> None:
    with pytest.raises(AdapterError, match=said):
        train(tmp_path, [TrimtabCallback(validation_data=VALIDATION)], kind=kind)


def test_the_policy_reads_the_loss_whatever_is_kept(tmp_path: Path) -> None:
    often = {"eval_strategy": "steps", "eval_steps": 8, "label_names": ["labels"]}
    summaries = []
    for monitor in ("loss", "accuracy"):
        callback = TrimtabCallback(monitor=monitor)
        train(tmp_path, [callback], compute_metrics=quality, learning_rate=0.3, **often)
        summaries.append(callback.summary)
    by_loss, by_accuracy = summaries
    assert by_loss.schedule == by_accuracy.schedule
    seen = [one.measured["accuracy"] for one in by_accuracy.decisions]
    assert by_accuracy.best["accuracy"] == max([*seen, by_accuracy.last["accuracy"]])


@pytest.mark.parametrize(
    "settings", [{}, {"metric_for_best_model": "accuracy", "greater_is_better": True}]
)
def test_a_metric_of_which_nothing_is_known_is_refused(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    often = {"eval_strategy": "steps", "eval_steps": 8, "label_names": ["labels"]}
    with pytest.raises(SpecError, match="whether 'quality' gets better"):
        train(
            tmp_path,
            [TrimtabCallback(monitor="quality")],
            compute_metrics=quality,
            **often,
            **settings,
        )


def test_a_scheduler_as_reference_is_refused(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    callback = TrimtabCallback(reference=scheduler, validation_data=VALIDATION)
    with pytest.raises(AdapterError, match="ConstantLR; hand it to the trainer"):
        train(tmp_path, [callback])


def test_a_named_reference_takes_the_place_of_trainers_scheduler(tmp_path: Path) -> None:
    callback = TrimtabCallback(policy=None, reference="cosine", validation_data=VALIDATION)
    trainer = train(tmp_path, [callback])
    logged = [row["learning_rate"] for row in trainer.state.log_history if "loss" in row]
    assert logged == [row["lr"] for row in callback.summary.schedule]
    assert logged[12] == pytest.approx(0.5e-2)
