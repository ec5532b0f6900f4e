"""Tries every kind of hyperparameter in one framework: ``python kinds_checks.py FRAMEWORK``.

Two runs are the same but for a controller that moves nothing in one and the kind in the other. If
the weights end equal, the framework ignores the kind. Prints one JSON object: kind -> ``yes``,
``object`` (steered through a value that the user's own code reads), ``refused`` or ``ignored``, and
what trimtab said. Keras has one backend a process, so each column of the table is a process.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from trimtab.core.control import no_action
from trimtab.core.errors import TrimtabError, TrimtabWarning
from trimtab.core.hyperparameters import KINDS
from trimtab.core.spec import MOVES, ControlSpec

STEPS, BATCH, FEATURES = 12, 4, 6
Weights = list[np.ndarray]
Train = Callable[[str, Any], Weights]  # kind, controller -> the weights at the end
MOVES_UP = ("frozen_depth",)  # these start at their lower bound


class Moving:
    """Moves every hyperparameter by the same amount at each decision; never restores."""

    name, guarded = "moving", False

    def __init__(self, move: float) -> None:
        self._action = no_action(ControlSpec())
        self._action[0] = MOVES.index(move)

    def reset(self, *, seed: int) -> None:
        pass

    def act(self, observation: np.ndarray) -> np.ndarray:
        return self._action

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def settings(wanted: Any, controller: Any) -> dict[str, Any]:
    """Return the keywords that every adapter takes."""
    return {
        "hyperparameters": (wanted,),
        "policy": controller,
        "reference": "constant",
        "decisions": 4,
        "keep_best": False,
        "snapshots": "none",
    }


def examples() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(STEPS * BATCH, FEATURES)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64)


# --- PyTorch and its trainers -------------------------------------------------------------------


def torch_model(kind: str, scale: Callable[[], float] = lambda: 1.0) -> Any:
    """Return a classifier that holds its own loss, with everything that could be steered.

    Args:
        kind: What is steered; adapters are there only for theirs.
        scale: Read at each forward pass: what the inputs are multiplied by.
    """
    import torch
    from torch import nn

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Sequential(
                nn.Linear(FEATURES, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 2)
            )
            self.loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)

        def forward(self, inputs: Any, labels: Any) -> dict[str, Any]:
            logits = self.body(inputs * scale())
            return {"loss": self.loss_fn(logits, labels), "logits": logits}

    model = Classifier()
    if kind != "adapter_scale":
        return model
    import peft

    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["body.0", "body.3"]))


def by_name(kind: str) -> tuple[Any, Any]:
    """Return what is asked of an adapter, and a model for it."""
    return kind, torch_model(kind)


def by_object(kind: str) -> tuple[Any, Any]:
    """Return a value of the user's own, and a model that reads it."""
    from trimtab.adapters.actuators import SteeredValue

    value = SteeredValue(kind)
    return value, torch_model("", lambda: value() / value.item.default)


Ask = Callable[[str], tuple[Any, Any]]


def torch_optimizer(kind: str, model: Any) -> Any:
    import torch

    if kind == "momentum":
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def torch_weights(model: Any) -> Weights:
    return [weight.detach().numpy().copy() for weight in model.parameters()]


def in_a_torch_loop(kind: str, controller: Any, ask: Ask = by_name) -> Weights:
    import torch

    from trimtab.adapters.torch import TorchController

    wanted, model = ask(kind)
    x, y = (torch.from_numpy(array) for array in examples())

    def validate() -> float:
        return float(model(x, y)["loss"])

    with TorchController(
        torch_optimizer(kind, model),
        total_steps=STEPS,
        validate=validate,
        model=model,
        clip=0.5,
        **settings(wanted, controller),
    ) as steering:
        for inputs, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            loss = model(inputs, labels)["loss"]
            loss.backward()
            steering.step(loss)
    return torch_weights(model)


def in_transformers(kind: str, controller: Any, ask: Ask = by_name) -> Weights:
    import torch
    import transformers

    from trimtab.adapters.transformers import TrimtabCallback

    wanted, model = ask(kind)
    x, y = (torch.from_numpy(array) for array in examples())
    data = [{"inputs": a, "labels": b} for a, b in zip(x, y, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                folder,
                max_steps=STEPS,
                per_device_train_batch_size=BATCH,
                max_grad_norm=0.5,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                remove_unused_columns=False,
            ),
            train_dataset=data,
            callbacks=[TrimtabCallback(validation_data=data, **settings(wanted, controller))],
            optimizers=(torch_optimizer(kind, model), None),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return torch_weights(model)


def in_lightning(kind: str, controller: Any, ask: Ask = by_name) -> Weights:
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset

    from trimtab.adapters.lightning import TrimtabCallback

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    wanted, model = ask(kind)

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch: Any, _index: int) -> Any:
            return self.net(*batch)["loss"]

        validation_step = training_step

        def configure_optimizers(self) -> Any:
            return torch_optimizer(kind, self.net)

    module = Module()
    data = TensorDataset(*(torch.from_numpy(array) for array in examples()))
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[TrimtabCallback(**settings(wanted, controller))],
        gradient_clip_val=0.5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, BATCH), DataLoader(data, len(data)))
    return torch_weights(module.net)


# --- Keras --------------------------------------------------------------------------------------


def in_keras(kind: str, controller: Any) -> Weights:
    return fitted(kind, kind, controller)


def in_keras_by_object(kind: str, controller: Any) -> Weights:
    """Give a value of the user's own, which a layer reads."""
    import keras

    from trimtab.adapters.keras import SteeredValue

    value = SteeredValue(kind, 0.5)

    class Scaled(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            return inputs * value()

    return fitted(kind, value, controller, Scaled())


def fitted(kind: str, wanted: Any, controller: Any, *layers: Any) -> Weights:
    import keras

    from trimtab.adapters.keras import TrimtabCallback

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            *layers,
            keras.layers.Dense(16, activation="tanh"),
            keras.layers.Dropout(0.2, seed=1),
            keras.layers.Dense(2),
        ]
    )
    if kind == "momentum":
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    else:
        averaging = {"use_ema": True, "ema_momentum": 0.9} if kind == "ema_decay" else {}
        optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1, global_clipnorm=0.5, **averaging)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    model.compile(optimizer, loss=loss)
    x, y = examples()
    y = np.eye(2, dtype=np.float32)[y]
    steering = TrimtabCallback((x, y), **settings(wanted, controller))
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[steering])
    return [np.asarray(weight) for weight in model.get_weights()]


# --- the answer ---------------------------------------------------------------------------------

TRAINERS: dict[str, Train] = {
    "torch": in_a_torch_loop,
    "transformers": in_transformers,
    "lightning": in_lightning,
    "keras-tensorflow": in_keras,
    "keras-jax": in_keras,
    "keras-torch": in_keras,
}

BY_OBJECT: dict[str, Train] = {
    "torch": partial(in_a_torch_loop, ask=by_object),
    "transformers": partial(in_transformers, ask=by_object),
    "lightning": partial(in_lightning, ask=by_object),
    "keras-tensorflow": in_keras_by_object,
    "keras-jax": in_keras_by_object,
    "keras-torch": in_keras_by_object,
}


def are_equal(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def tried(train: Train, kind: str) -> tuple[str, str]:
    """Return what became of a kind, and what was said about it."""
    move = 1.0 if kind in MOVES_UP else -1.0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            still, moved = train(kind, Moving(0.0)), train(kind, Moving(move))
        except TrimtabError as refusal:
            return "refused", str(refusal)
    told = [str(one.message) for one in said if issubclass(one.category, TrimtabWarning)]
    about = next((message for message in told if message.startswith(kind)), "")
    if are_equal(still, moved):
        return ("refused", about) if about else ("ignored", "")
    return "yes", about


def outcome(framework: str, kind: str) -> tuple[str, str]:
    """Return what becomes of a kind by its name, or else through an object of the user's own."""
    named = tried(TRAINERS[framework], kind)
    if named[0] != "refused":
        return named
    handed, _ = tried(BY_OBJECT[framework], kind)
    return named if handed == "refused" else (handed.replace("yes", "object"), "")


def main() -> None:
    framework = sys.argv[1]
    if framework.startswith("keras-"):
        os.environ["KERAS_BACKEND"] = framework.removeprefix("keras-")
        os.environ["JAX_NUMPY_RANK_PROMOTION"] = "allow"  # Keras' own layers promote
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    kinds = sys.argv[2:] or KINDS
    found = {kind: outcome(framework, kind) for kind in kinds}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
