"""Mistakes that each trainer's callback tells of in one clear line, whichever trainer it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.adapters.tiny_training import Still
from trimtab.core.errors import AdapterError, MetricError, TrimtabWarning, UnknownNameError

pytestmark = [
    pytest.mark.framework,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
STOPPED_AFTER = 10
Train = Callable[..., Any]


def lightning(_: Path, *, stopped: bool = False, damage: Any = None, **options: Any) -> None:
    """Train under Lightning for 36 steps, with what is wrong."""
    pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import Callback

    from tests.adapters.lightning.test_lightning import Module, fit
    from trimtab.adapters.lightning import TrimtabCallback

    class Stops(Callback):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == STOPPED_AFTER

    class Damaged(Module):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
            return damage(optimizer, self.net) if damage else optimizer

    ours = TrimtabCallback(policy=Still(), decisions=4, **options)
    fit(Damaged(), [ours, *([Stops()] if stopped else [])])


def transformers(
    folder: Path, *, stopped: bool = False, damage: Any = None, **options: Any
) -> None:
    """Train under Transformers for 24 steps, with what is wrong."""
    pytest.importorskip("transformers")
    from transformers import TrainerCallback

    from tests.adapters.transformers.test_transformers import VALIDATION, InOrder, train
    from trimtab.adapters.transformers import TrimtabCallback

    class Stops(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
            control.should_training_stop = state.global_step == STOPPED_AFTER

    class Damaged(InOrder):
        def create_scheduler(self, *given: Any, **named: Any) -> Any:
            made = super().create_scheduler(*given, **named)
            if damage:
                damage(self.optimizer, self.model)
            return made

    ours = TrimtabCallback(policy=Still(), decisions=4, validation_data=VALIDATION, **options)
    train(folder, [ours, *([Stops()] if stopped else [])], kind=Damaged)


def a_list_of_rates(optimizer: Any, _: Any) -> Any:
    optimizer.param_groups[0]["lr"] = [0.1, 0.2]
    return optimizer


def on_no_device(optimizer: Any, model: Any) -> Any:
    model.to("meta")
    return optimizer


both = pytest.mark.parametrize("train", [lightning, transformers])


@both
def test_too_many_announced_steps_are_told_once(train: Train, tmp_path: Path) -> None:
    with pytest.warns(TrimtabWarning, match=f"only {STOPPED_AFTER} of the") as told:
        train(tmp_path, stopped=True)
    assert len([one for one in told if "announced steps" in str(one.message)]) == 1


@both
@pytest.mark.parametrize(
    ("name", "meant"), [("learning_rate", "lr"), ("wd", "weight_decay"), ("betas", "beta1")]
)
def test_a_name_from_elsewhere_is_understood(
    train: Train, tmp_path: Path, name: str, meant: str
) -> None:
    with pytest.raises(UnknownNameError, match=f"'{name}'; did you mean '{meant}'"):
        train(tmp_path, hyperparameters=("lr", name))


@both
def test_a_list_of_rates_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(
        AdapterError, match=r"lr: \[0\.1, 0\.2\] in parameter group 0 of (SGD|AdamW)"
    ):
        train(tmp_path, damage=a_list_of_rates)


def test_a_model_without_numbers_is_refused(tmp_path: Path) -> None:
    # Lightning moves the model itself, and fails there before a callback is asked.
    with pytest.raises(AdapterError, match=r"model: its weight .* is on the device 'meta'"):
        transformers(tmp_path, damage=on_no_device)


@both
@pytest.mark.parametrize("monitor", ["quality", "accurcy"])
def test_an_unknown_metric_without_a_mode_is_refused(
    train: Train, tmp_path: Path, monitor: str
) -> None:
    with pytest.raises((AdapterError, MetricError), match=monitor):
        train(tmp_path, monitor=monitor)


@pytest.mark.parametrize("way", ["callback", "steer"])
def test_galores_layerwise_optimiser_is_refused_in_one_line(tmp_path: Path, way: str) -> None:
    if importlib.util.find_spec("galore_torch") is None:
        pytest.skip("galore_torch is not installed")
    transformers = pytest.importorskip("transformers")
    from tests.adapters.transformers.test_transformers import arguments
    from trimtab.adapters.transformers import TrimtabCallback, steer

    sizes = {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 8}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=20, **sizes, **layers)
    tokens = torch.randint(1, 20, (64, 6), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": (row[0] > 9).long()} for row in tokens]

    def trainer(optim: str) -> Any:
        ours = [TrimtabCallback(policy=Still(), validation_data=data[:16])]
        made = transformers.Trainer(
            model=transformers.BertForSequenceClassification(config),
            args=arguments(tmp_path, optim=optim, optim_target_modules=["attention"], max_steps=8),
            train_dataset=data,
            eval_dataset=data[:16],
            callbacks=ours if way == "callback" else [],
        )
        if way == "steer":
            steer(made, validation=16, policy=Still())
        return made

    with pytest.raises(
        AdapterError, match=r"LayerWiseDummyOptimizer.* such as GaLore's layer-wise"
    ):
        trainer("galore_adamw_layerwise").train()
    trainer("galore_adamw").train()  # the usual one is steered
