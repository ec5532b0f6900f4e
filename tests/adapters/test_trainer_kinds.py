"""More than the learning rate in trainers: smoothing, depth, LoRA, own values, and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.adapters.tiny_training import Net, are_equal, examples, weights
from trimtab.adapters.actuators import SteeredValue
from trimtab.core.errors import AdapterError

pytestmark = [
    pytest.mark.framework,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Narrow(Net):
    """Runs out of memory, on a processor only in words, with more examples than it can hold."""

    most = 100

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        outputs = super().forward(inputs, labels)
        if self.training and len(inputs) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return outputs


def narrow(most: int) -> Narrow:
    net = Narrow(dropout=0.0)
    net.most = most
    return net


def close(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, other, strict=True))


def reads(model: Any, value: SteeredValue) -> None:
    """Let a model read a value at each forward pass."""

    def read(*_: Any) -> None:
        value()

    model.register_forward_pre_hook(read)


# Transformers.


def trainer_of(folder: Path, model: Any, **settings: Any) -> Any:
    one = pytest.importorskip("tests.adapters.transformers.test_transformers")
    return one.InOrder(
        model=model, args=one.arguments(folder, **settings), train_dataset=examples(96, seed=0)
    )


def callback_of(**settings: Any) -> Any:
    from trimtab.adapters.transformers import TrimtabCallback

    usual = {"validation_data": examples(32, seed=1), "decisions": 6, "policy": "random"}
    return TrimtabCallback(**(usual | settings))


def test_trainers_own_label_smoothing_is_steered(tmp_path: Path) -> None:
    from transformers.trainer_pt_utils import LabelSmoother

    seen: list[float] = []

    class Smoother(LabelSmoother):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(self.epsilon)
            return super().__call__(*args, **kwargs)

    trainer = trainer_of(tmp_path, Net())
    trainer.label_smoother = Smoother(epsilon=0.1)
    callback = callback_of(hyperparameters=("lr", "label_smoothing"), seed=4)
    callback.attach(trainer)
    trainer.train()
    schedule = [row["label_smoothing"] for row in callback.summary.schedule]
    assert len(set(schedule)) > 1
    assert set(schedule) <= set(seen)


def test_label_smoothing_that_trainer_does_not_use_is_refused(tmp_path: Path) -> None:
    from transformers.trainer_pt_utils import LabelSmoother

    trainer = trainer_of(tmp_path, Net())
    trainer.label_smoother = LabelSmoother(epsilon=0.1)
    trainer.compute_loss_func = lambda outputs, labels, **_: torch.nn.functional.cross_entropy(
        outputs["logits"], labels
    )
    callback = callback_of(hyperparameters=("label_smoothing",))
    callback.attach(trainer)
    with pytest.raises(AdapterError, match="label_smoothing: what holds it gives the same output"):
        trainer.train()


def test_depth_and_own_values_are_steered_in_trainer(tmp_path: Path) -> None:
    mixup, model = SteeredValue("mixup", 0.2), Net()
    reads(model, mixup)
    kinds = ("lr", "layer_decay", "frozen_depth", mixup)
    callback = callback_of(hyperparameters=kinds, seed=2)
    trainer = trainer_of(tmp_path, model)
    trainer.add_callback(callback)
    groups: list[int] = []
    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(lambda o, *_: groups.append(len(o.param_groups)))
    trainer.train()
    assert len(trainer.optimizer.param_groups) == 2
    assert max(groups) == 4  # two layers, with and without decay
    assert callback.summary.finished


def test_the_scale_of_lora_is_steered(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["body.0"], lora_alpha=2)
    model = peft.get_peft_model(Net(), config)
    trainer = trainer_of(tmp_path, model)
    callback = callback_of(hyperparameters=("adapter_scale",), seed=2)
    trainer.add_callback(callback)
    trainer.train()
    layer = model.base_model.model.body[0]
    assert layer.scaling["default"] == callback.summary.schedule[-1]["adapter_scale"] != 1.0


@pytest.mark.parametrize("accumulated", [1, 2])
def test_proving_the_clipping_in_trainer_leaves_every_bit(tmp_path: Path, accumulated: int) -> None:
    ends, settings = [], {"gradient_accumulation_steps": accumulated, "max_grad_norm": 0.3}
    for kinds in (("lr",), ("lr", "clip")):
        trainer = trainer_of(tmp_path, Net(), **settings)
        callback = callback_of(policy=None, hyperparameters=kinds, keep_best=False)
        trainer.add_callback(callback)
        trainer.train()
        ends.append(weights(trainer.model))
        assert trainer.args.max_grad_norm == 0.3
    assert not callback._stand_in._open
    assert are_equal(*ends)


def test_clipping_that_trainer_does_by_itself_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Net())
    trainer.accelerator.clip_grad_norm_ = lambda weights, norm: torch.nn.utils.clip_grad_norm_(
        weights, 0.3
    )
    before = weights(trainer.model)
    trainer.add_callback(callback_of(hyperparameters=("clip",), decisions=2))
    with pytest.raises(AdapterError, match="clip: the trainer clips the same"):
        trainer.train()
    assert are_equal(weights(trainer.model), before)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_trainer_does_a_batch_without_memory_again_in_parts(
    tmp_path: Path, accumulated: int
) -> None:
    ends = []
    for most in (100, 2):
        trainer = trainer_of(tmp_path, narrow(most), gradient_accumulation_steps=accumulated)
        callback = callback_of(policy=None, keep_best=False)
        callback.attach(trainer)
        trainer.train()
        assert callback.summary.finished
        assert callback.summary.memory_retries == (most == 2)
        losses = [decision.metrics.train_loss for decision in callback.summary.decisions[1:]]
        ends.append([*weights(trainer.model), torch.tensor(losses)])
    assert close(*ends)


# Lightning.


def lightning_fit(net: Any, callback: Any) -> Any:
    one = pytest.importorskip("tests.adapters.lightning.test_lightning")
    module = one.Module()
    module.net = net
    one.fit(module, [callback])
    assert "training_step" not in vars(module)
    return module


def lightning_callback(**settings: Any) -> Any:
    from trimtab.adapters.lightning import TrimtabCallback

    return TrimtabCallback(**({"decisions": 6, "policy": "random"} | settings))


def test_depth_and_own_values_are_steered_in_lightning() -> None:
    pytest.importorskip("lightning")
    mixup, net = SteeredValue("mixup", 0.2), Net()
    reads(net, mixup)
    callback = lightning_callback(
        hyperparameters=("lr", "layer_decay", "frozen_depth", mixup), seed=2
    )
    lightning_fit(net, callback)
    assert callback.summary.finished
    assert len({row["frozen_depth"] for row in callback.summary.schedule}) > 1
    assert len(callback._training.driver._stepper.optimizer.param_groups) == 2


@pytest.mark.parametrize("uses", [True, False])
def test_the_clipping_in_lightning_is_proven_or_refused(uses: bool) -> None:
    one = pytest.importorskip("tests.adapters.lightning.test_lightning")

    class Clips(one.Module):  # type: ignore[misc]
        def configure_gradient_clipping(
            self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
        ) -> None:
            norm = gradient_clip_val if uses else 0.3
            torch.nn.utils.clip_grad_norm_(self.parameters(), norm)

    ends = []
    for kinds in (("lr",), ("lr", "clip")):
        module = Clips()
        before = weights(module)
        callback = lightning_callback(policy=None, hyperparameters=kinds, keep_best=False)
        if not uses and "clip" in kinds:
            with pytest.raises(AdapterError, match="clip: the trainer clips the same"):
                one.fit(module, [callback], gradient_clip_val=0.3)
            assert are_equal(weights(module), before)
        else:
            one.fit(module, [callback], gradient_clip_val=0.3)
            ends.append(weights(module))
    assert not uses or are_equal(*ends)
    assert callback._clip_proof is not None
    assert not callback._clip_proof.open


def test_lightning_does_a_batch_without_memory_again_in_parts() -> None:
    pytest.importorskip("lightning")
    ends = []
    for most in (100, 2):
        callback = lightning_callback(policy=None, keep_best=False)
        module = lightning_fit(narrow(most), callback)
        assert callback.summary.finished
        assert callback.summary.memory_retries == (most == 2)
        ends.append(weights(module))
    assert close(*ends)
