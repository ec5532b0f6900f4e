"""Keras custom steps: a loop over `GradientTape`; a `train_step` of your own takes a callback."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tests.trainers.claims import CLAIMS, WARNINGS
from tests.trainers.probe import BEST, DECISIONS, FAULT_AT, RIGGED, STEPS, STOP_AT

pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from trimtab.adapters.keras import KerasController  # noqa: E402

pytestmark = [pytest.mark.framework, *WARNINGS]


@dataclass
class Course:
    """One training, and what was seen of it."""

    policy: str | None = "random"
    fault_at: int | None = None
    stop_at: int | None = None
    rigged: bool = False
    saved: Mapping[str, Any] | None = None
    rates: list[float] = field(default_factory=list)
    before: list[list[np.ndarray]] = field(default_factory=list)  # weights before each step
    validated: list[tuple[float, list[np.ndarray]]] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    summary: Any = None


class StopError(Exception):
    """Ends a training in the middle."""


def train(course: Course) -> Course:
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    inputs = np.random.default_rng(0).normal(size=(STEPS, 8, 6)).astype("float32")
    labels = (inputs[..., 0] > 0).astype("int32")
    model = keras.Sequential(
        [keras.layers.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(2)]
    )
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    variables = model.trainable_variables
    applied = optimizer.apply

    def apply(*args: Any, **kwargs: Any) -> Any:
        course.rates.append(float(optimizer.learning_rate))
        return applied(*args, **kwargs)

    optimizer.apply = apply

    def validate() -> float:
        loss = float(loss_fn(labels[0], model(inputs[0])))
        value = RIGGED[len(course.validated)] if course.rigged else loss
        course.validated.append((value, model.get_weights()))
        return value

    # lines to write
    controller = KerasController(
        optimizer,
        total_steps=STEPS,
        validate=validate,
        model=model,
        policy=course.policy,  # test
        decisions=DECISIONS,  # test
        seed=3,  # test
    )
    first = go_on(course, model, optimizer, controller)  # test
    with controller:
        for step in range(first, STEPS):  # loop
            look(course, step, model, optimizer, controller)  # test
            with tf.GradientTape() as tape:  # loop
                loss = loss_fn(labels[step], model(inputs[step], training=True))  # loop
                loss = loss * np.nan if step == course.fault_at else loss  # test
            gradients = tape.gradient(loss, variables)  # loop
            controller.step(loss, gradients)  # instead of optimizer.apply(gradients, variables)
    # end of lines
    course.weights, course.summary = model.get_weights(), controller.summary
    return course


def go_on(course: Course, model: Any, optimizer: Any, controller: Any) -> int:
    """Take over what an interrupted training left; return the first step."""
    if course.saved is None:
        return 0
    model.set_weights(course.saved["model"])
    for variable, value in zip(optimizer.variables, course.saved["optimizer"], strict=True):
        variable.assign(value)
    controller.load_state_dict(course.saved["controller"])
    return STOP_AT


def look(course: Course, step: int, model: Any, optimizer: Any, controller: Any) -> None:
    """Note the weights before a step; stop where that is asked for."""
    course.before.append(model.get_weights())
    if step == course.stop_at:
        course.saved = {
            "model": model.get_weights(),
            "optimizer": [np.array(variable) for variable in optimizer.variables],
            "controller": copy.deepcopy(controller.state_dict()),
        }
        raise StopError


def alike(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def steered() -> None:
    course, plain = train(Course()), train(Course(policy=None))
    recorded = [row["lr"] for row in course.summary.schedule]
    assert course.rates[-STEPS:] == pytest.approx(recorded, rel=1e-5)
    assert recorded != pytest.approx([row["lr"] for row in plain.summary.schedule], rel=0.1)
    assert not alike(course.weights, plain.weights)


def rescued() -> None:
    course = train(Course(fault_at=FAULT_AT))
    assert course.summary.rollbacks == 1
    assert course.summary.finished
    assert any(alike(course.before[FAULT_AT + 1], kept) for _, kept in course.validated)
    assert all(np.isfinite(one).all() for one in course.weights)


def resumed() -> None:
    whole, first = train(Course()), Course(stop_at=STOP_AT)
    with pytest.raises(StopError):
        train(first)
    second = train(Course(saved=first.saved))
    assert len(second.before) == STEPS - STOP_AT
    assert second.summary.schedule == whole.summary.schedule
    assert alike(second.weights, whole.weights)


def validated() -> None:
    course = train(Course())
    assert len(course.summary.decisions) == DECISIONS
    assert len(course.validated) == DECISIONS + 1


def kept_best() -> None:
    course = train(Course(rigged=True))
    assert course.summary.best["loss"] == pytest.approx(RIGGED[BEST])
    assert alike(course.weights, course.validated[BEST][1])
    assert not alike(course.weights, course.validated[-1][1])


@pytest.mark.parametrize("claim", CLAIMS)
def test_keras_custom_steps(claim: str) -> None:
    globals()[claim.replace(" ", "_")]()
