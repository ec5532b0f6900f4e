"""Tiny trainings by Keras, inside ``fit`` and in a tape loop: whole, or from an old state.

Run as ``python keras_runs.py COMMAND`` in the folder of the old files: ``write``, ``killed`` (of
which ``write`` makes use), ``whole`` or ``resumed``; the last two print one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file, save_file

from trimtab.adapters.keras import KerasController, TrimtabCallback

# No package offers these; they move with the adapters.
from trimtab.adapters.keras.state import fingerprint, read_state, write_state

N, BATCH, EPOCHS, KILLED_AT, STOPPED_AT = 40, 8, 4, 12, 7
STEPS = EPOCHS * N // BATCH
FIT, LOOP = Path("keras-fit"), Path("keras-loop")


def data(seed: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(N, 4)).astype(np.float32)
    return x, (x[:, :1] * 2 - x[:, 1:2] + 0.1).astype(np.float32)


X, Y = data(0)
VALIDATION = data(1)


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6, activation="tanh"),
            layers.BatchNormalization(),
            layers.Dropout(0.2, seed=3),
            layers.Dense(1),
        ]
    )


def end(summary: Any, model: keras.Model) -> dict[str, Any]:
    return {
        "schedule": summary.schedule,
        "best": dict(summary.best),
        "weights": [weight.tolist() for weight in model.get_weights()],
    }


# Inside fit, beside Keras' own backup.


class Kill(keras.callbacks.Callback):
    """Ends the process without a word, after so many steps."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(folder: Path, *more: Any) -> dict[str, Any]:
    model = network()
    model.compile(keras.optimizers.Adam(0.02, weight_decay=0.01), loss="mse")
    steer = TrimtabCallback(
        VALIDATION,
        policy="random",
        hyperparameters=("lr", "weight_decay", "dropout"),
        decisions=8,
        seed=4,
        state_file=folder / "trimtab.safetensors",
    )
    backup = keras.callbacks.BackupAndRestore(folder / "keras")
    callbacks = [backup, steer, *more]
    model.fit(X, Y, epochs=EPOCHS, batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks)
    return end(steer.summary, model)


# A tape loop of one's own.


class Loop:
    """Steps an optimiser by hand."""

    def __init__(self) -> None:
        self.model = network()
        self.optimizer = keras.optimizers.Adam(0.02)
        self.optimizer.build(self.model.trainable_variables)
        self.controller = KerasController(
            self.optimizer,
            total_steps=STEPS,
            validate=lambda: float(np.mean((self.model(VALIDATION[0]) - VALIDATION[1]) ** 2)),
            model=self.model,
            policy="random",
            decisions=6,
            seed=4,
        )

    def train(self, first: int, until: int) -> None:
        mse = keras.losses.MeanSquaredError()
        for step in range(first, until):
            rows = slice(step * BATCH % N, step * BATCH % N + BATCH)
            with tf.GradientTape() as tape:
                loss = mse(Y[rows], self.model(X[rows], training=True))
            self.controller.step(loss, tape.gradient(loss, self.model.trainable_variables))


def write_loop() -> None:
    loop = Loop()
    with loop.controller:
        loop.train(0, STOPPED_AT)
        weights = fingerprint(loop.model.trainable_variables)
        write_state(LOOP / "trimtab.safetensors", loop.controller.state_dict(), weights)
        arrays = {f"weight {i}": one for i, one in enumerate(loop.model.get_weights())}
        own: dict[str, np.ndarray] = {}
        loop.optimizer.save_own_variables(own)
        arrays |= {f"optimizer {name}": np.asarray(one) for name, one in own.items()}
        save_file(arrays, LOOP / "model.safetensors")


def loop_resumed() -> dict[str, Any]:
    kept, loop = load_file(LOOP / "model.safetensors"), Loop()
    n_weights = len(loop.model.get_weights())
    loop.model.set_weights([kept[f"weight {i}"] for i in range(n_weights)])
    loop.optimizer.load_own_variables(
        {n.removeprefix("optimizer "): a for n, a in kept.items() if n.startswith("optimizer ")}
    )
    weights = fingerprint(loop.model.trainable_variables)
    state = read_state(LOOP / "trimtab.safetensors", weights)
    assert state is not None
    loop.controller.load_state_dict(state)
    with loop.controller:
        loop.train(STOPPED_AT, STEPS)
    return end(loop.controller.summary, loop.model)


def loop_whole() -> dict[str, Any]:
    loop = Loop()
    with loop.controller:
        loop.train(0, STEPS)
    return end(loop.controller.summary, loop.model)


def main() -> None:
    command = sys.argv[1]
    if command == "write":
        killed = subprocess.run([sys.executable, __file__, "killed"], check=False)
        assert killed.returncode == -signal.SIGKILL
        write_loop()
    elif command == "killed":
        fit(FIT, Kill(KILLED_AT))
    elif command == "whole":
        told = {"fit": fit(Path("anew-keras")), "loop": loop_whole()}
        shutil.rmtree("anew-keras")
        print(json.dumps(told))  # noqa: T201
    else:
        print(json.dumps({"fit": fit(FIT), "loop": loop_resumed()}))  # noqa: T201


if __name__ == "__main__":
    main()
