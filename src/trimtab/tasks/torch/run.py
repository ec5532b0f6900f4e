"""A training run of any PyTorch model, in the form that controllers steer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from trimtab.adapters.torch.bad_batches import BadBatches
from trimtab.adapters.torch.guarded_training import Batch
from trimtab.adapters.torch.statistics import WindowStatistics
from trimtab.adapters.torch.stepper import Stepper
from trimtab.core.errors import SpecError
from trimtab.core.metrics import Metrics
from trimtab.tasks.data.batches import ShuffledBatches
from trimtab.tasks.data.splits import SPLITS
from trimtab.tasks.windows import checked_split, validated, values_by_step

ParameterGroups = list[dict[str, Any]]


def decay_groups(model: nn.Module) -> ParameterGroups:
    """Return the trainable weights in two groups: matrices decay, biases and norms do not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [item for item in trainable if item.ndim > 1], "decay": True},
        {"params": [item for item in trainable if item.ndim <= 1], "decay": False},
    ]
    return [group for group in groups if group["params"]]


def adamw(groups: ParameterGroups) -> torch.optim.Optimizer:
    """Return PyTorch's AdamW over the groups, in its fused form, which is fastest on a CPU too."""
    return torch.optim.AdamW(groups, fused=True)


@dataclass(frozen=True)
class TorchSetup:
    """What a `TorchRun` is made of.

    Attributes:
        model: Belongs to the run from now on. Weights with ``requires_grad`` are trained.
        loss: ``loss(model, indices, values)`` returns the mean loss of the training examples with
            these indices, (n,) int64, as a () tensor with its graph. ``values`` holds the current
            value of every hyperparameter, for those that act in the loss or on the data
            (``label_smoothing``, ``mixup``, ...). Randomness comes from torch's global generator.
        batches: Endless index batches of the training split, see `ShuffledBatches`.
        evaluate: ``evaluate(model, split)`` returns at least ``"loss"`` and ``"examples"``. It is
            called with the model in evaluation mode and gradients off.
        defaults: Value of each hyperparameter where `TorchRun.advance` is given none.
        groups: Parameter groups for the optimiser; None for `decay_groups`. Two keys of our own:
            ``lr_ratio`` (1.0 if missing) multiplies the learning rate in this group, and weight
            decay reaches only groups whose ``decay`` is not False.
        optimizer: Makes the optimiser from the groups.
        actuators: For hyperparameters that act on neither optimiser, dropout layers, clipping,
            batch size nor loss: name -> function that takes the value before each step.
        splits: The splits that ``evaluate`` knows.
        monitor: Which of the evaluated values is ``val_loss``.
        mode: ``"min"`` or ``"max"`` of it; to be maximised, it enters as one minus its value.
        seed: Seeds dropout and whatever else draws from torch's global generator.
    """

    model: nn.Module
    loss: Callable[[nn.Module, np.ndarray, Mapping[str, float]], torch.Tensor]
    batches: Iterator[np.ndarray]
    evaluate: Callable[[nn.Module, str], dict[str, float]]
    defaults: Mapping[str, float]
    groups: ParameterGroups | None = None
    optimizer: Callable[[ParameterGroups], torch.optim.Optimizer] = adamw
    actuators: Mapping[str, Callable[[float], None]] = field(default_factory=dict)
    splits: tuple[str, ...] = SPLITS
    monitor: str = "loss"
    mode: str = "min"
    seed: int = 0


@dataclass(frozen=True)
class _Snapshot:
    weights: list[torch.Tensor]
    buffers: list[torch.Tensor]
    optimizer: dict[str, Any]


class TorchRun:
    """A `trimtab.core.protocols.TrainingRun` of a PyTorch model.

    Hyperparameters act by name: ``lr``, ``weight_decay``, ``momentum`` and ``beta1`` in the
    optimiser, ``dropout`` in every ``nn.Dropout``, ``clip`` on the gradient's norm, ``batch_size``
    on the batches, all others through `TorchSetup.actuators` or in the loss. The run has a random
    stream of its own: runs in one process do not disturb each other or the caller.

    Attributes:
        model: The model being trained.
        optimizer: Its optimiser.
        setup: What it was made of, for those who write a loop of their own around its model.
        measured: What validation gave after the last window that did not diverge; empty before.
        measure_selection: Whether each window also evaluates the selection split, if there is
            one, for ``reward_loss``. False, since a live run takes no reward from it; environments
            set it.
        skips_bad_batches: Whether a batch that alone is to blame for a loss that is not finite is
            left out, as in a guarded loop of the user's own, in place of ending the window. False;
            environments and `trimtab.tasks.run.run_task` set it where the run is guarded.
    """

    def __init__(self, setup: TorchSetup) -> None:
        """Build the optimiser; nothing is trained yet.

        Raises:
            SpecError: The model has no trainable weight.
        """
        self.model = setup.model
        self.setup = setup
        groups = decay_groups(setup.model) if setup.groups is None else setup.groups
        self._parameters = [item for group in groups for item in group["params"]]
        if not self._parameters:
            raise SpecError("model: none of its weights requires a gradient; unfreeze some")
        self.optimizer = setup.optimizer(groups)
        self.measured: dict[str, float] = {}
        self.measure_selection = self.skips_bad_batches = False
        self._bad_batches: BadBatches | None = None  # made with the first window that wants it
        self._batches_taken = 0
        self._device = self._parameters[0].device
        self._statistics = WindowStatistics()
        self._dropouts = [item for item in self.model.modules() if isinstance(item, nn.Dropout)]
        self._setters = self._find_setters()
        self._acting = {*self._setters, *setup.actuators}
        self._random_state = torch.Generator().manual_seed(setup.seed).get_state()
        self._device_random_state: torch.Tensor | None = None
        if self._device.type == "cuda":
            device_generator = torch.Generator(self._device).manual_seed(setup.seed)
            self._device_random_state = device_generator.get_state()

    def advance(self, values: Mapping[str, np.ndarray], steps: int) -> Metrics:
        """Train ``steps`` optimiser steps; see `trimtab.core.protocols.TrainingRun.advance`.

        See `trimtab.tasks.windows` too; ``finite`` is 0.0 also when the validation loss is not.

        Raises:
            SpecError: ``steps`` is below 1, or an array does not hold one value a step.
            UnknownNameError: A name in ``values`` is no hyperparameter of this run.
        """
        window = values_by_step(values, steps, self.setup.defaults, self._acting)
        self._statistics.begin(steps)
        if self.skips_bad_batches:
            self._watch_batches().begin_window()
        examples = 0
        with self._own_random_stream():
            self.model.train()
            for current in window:
                self._actuate(current)
                indices = next(self.setup.batches)
                examples += len(indices)
                if not self._step(indices, current):
                    break
        metrics = self._statistics.finish()._replace(charge=float(examples))
        if self._bad_batches is not None:
            self._bad_batches.end_window(float(metrics.train_loss))
        return validated(self, metrics)

    def evaluate(self, split: str) -> dict[str, float]:
        """Return the metrics of a split; weights, buffers and random state stay untouched.

        Raises:
            UnknownNameError: The task has no such split.
        """
        checked_split(split, self.setup.splits)
        modes = [(module, module.training) for module in self.model.modules()]
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad(), self._optimizer_in_evaluation():
            self.model.eval()
            try:
                return self.setup.evaluate(self.model, split)
            finally:
                for module, training in modes:
                    module.training = training

    def snapshot(self) -> _Snapshot:
        """Return copies of trainable weights, buffers and optimiser state, on their devices."""
        return _Snapshot(
            weights=[parameter.detach().clone() for parameter in self._parameters],
            buffers=[buffer.detach().clone() for buffer in self.model.buffers()],
            optimizer=copy.deepcopy(self.optimizer.state_dict()),
        )

    @torch.no_grad()
    def restore(self, snapshot: _Snapshot) -> None:
        """Put back weights, buffers and optimiser; data order and random stream go on.

        The snapshot can be restored any number of times.
        """
        for parameter, weight in zip(self._parameters, snapshot.weights, strict=True):
            parameter.copy_(weight)
        for buffer, kept in zip(self.model.buffers(), snapshot.buffers, strict=True):
            buffer.copy_(kept)
        # load_state_dict keeps references; without a copy the next step would write into them.
        self.optimizer.load_state_dict(copy.deepcopy(snapshot.optimizer))

    def to_plain(self, snapshot: _Snapshot) -> dict[str, Any]:
        """Return a snapshot as nested plain data and NumPy arrays.

        Raises:
            SpecError: The optimiser keeps something that is neither tensor nor plain.
        """
        plain: dict[str, Any] = to_plain(vars(snapshot))
        return plain

    def from_plain(self, plain: Mapping[str, Any]) -> _Snapshot:
        """Return the snapshot that `to_plain` made plain, in this process or another."""
        return _Snapshot(**from_plain(plain))

    def position(self) -> dict[str, Any]:
        """Return where the order of data and the random stream stand; a snapshot holds neither.

        Raises:
            SpecError: The batches are of the task's own and have no ``state_dict``.
        """
        kept = getattr(self.setup.batches, "state_dict", None)
        if kept is None:
            raise SpecError(
                f"batches: {type(self.setup.batches).__name__} has no state_dict(); give it "
                "state_dict() and load_state_dict(), or use ShuffledBatches"
            )
        streams = {"cpu": self._random_state, "device": self._device_random_state}
        travel = to_plain(self._statistics.travel_state())
        position = {"batches": kept(), "streams": to_plain(streams), "travel": travel}
        if self._bad_batches is not None:
            position["bad_batches"] = to_plain(self._bad_batches.state_dict())
            position["batches_taken"] = self._batches_taken
        return position

    def set_position(self, position: Mapping[str, Any]) -> None:
        """Go on from a position."""
        batches: Any = self.setup.batches
        batches.load_state_dict(position["batches"])
        streams = from_plain(position["streams"])
        self._random_state, self._device_random_state = streams["cpu"], streams["device"]
        self._statistics.load_travel(from_plain(position.get("travel")))
        self._batches_taken = int(position.get("batches_taken", 0))
        if position.get("bad_batches") is not None:
            self._watch_batches().load_state_dict(from_plain(position["bad_batches"]))

    def _step(self, indices: np.ndarray, values: Mapping[str, float]) -> bool:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.setup.loss(self.model, indices, values)
        loss.backward()
        self._batches_taken += 1
        if self._leaves_out(loss, indices, values):
            return True
        if not self._statistics.before_step(loss, self._parameters):
            return False
        if "clip" in values:
            nn.utils.clip_grad_norm_(self._parameters, values["clip"])
        self.optimizer.step()
        self._statistics.after_step(self._parameters)
        return True

    @property
    def events(self) -> list[Any]:
        """The `trimtab.rescue.events.Event` of each batch that was left out, in order."""
        return [] if self._bad_batches is None else self._bad_batches.events

    def _watch_batches(self) -> BadBatches:
        if self._bad_batches is None:
            stepper = Stepper(self.optimizer, self.model)
            self._bad_batches = BadBatches(stepper, self._statistics)
        return self._bad_batches

    def _leaves_out(
        self, loss: torch.Tensor, indices: np.ndarray, values: Mapping[str, float]
    ) -> bool:
        """Leave a step out whose loss is not finite for its batch alone."""
        if self._bad_batches is None or not self.skips_bad_batches:
            return False

        def batch() -> Batch:
            setup, model = self.setup, self.model
            return Batch(lambda rows: setup.loss(model, rows, values), indices, indices.tolist())

        return self._bad_batches.leaves_out(loss, self._batches_taken - 1, batch)

    def _actuate(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name in self.setup.actuators:
                self.setup.actuators[name](value)
            elif name in self._setters:
                self._setters[name](self, value)

    def _find_setters(self) -> dict[str, Callable[[TorchRun, float], None]]:
        # Not bound to this run, which would then hold itself, and its weights, in a cycle.
        found: dict[str, Callable[[TorchRun, float], None]] = {}
        group = self.optimizer.param_groups[0]
        if "lr" in group:
            found["lr"] = TorchRun._set_lr
        if "weight_decay" in group:
            found["weight_decay"] = TorchRun._set_weight_decay
        if "betas" in group:
            found["beta1"] = TorchRun._set_beta1
        if "momentum" in group:
            found["momentum"] = TorchRun._set_momentum
        if self._dropouts:
            found["dropout"] = TorchRun._set_dropout
        if isinstance(self.setup.batches, ShuffledBatches):
            found["batch_size"] = TorchRun._set_batch_size
        return found

    def _set_lr(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            scaled = value * group.get("lr_ratio", 1.0)
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(scaled)
            else:
                group["lr"] = scaled

    def _set_weight_decay(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["weight_decay"] = value if group.get("decay", True) else 0.0

    def _set_beta1(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["betas"] = (value, *group["betas"][1:])

    def _set_momentum(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["momentum"] = value

    def _set_dropout(self, value: float) -> None:
        for module in self._dropouts:
            module.p = value

    def _set_batch_size(self, value: float) -> None:
        if isinstance(self.setup.batches, ShuffledBatches):
            self.setup.batches.batch_size = max(1, round(value))

    @contextmanager
    def _own_random_stream(self) -> Iterator[None]:
        devices = [self._device] if self._device_random_state is not None else []
        with torch.random.fork_rng(devices):
            torch.set_rng_state(self._random_state)
            if self._device_random_state is not None:
                torch.cuda.set_rng_state(self._device_random_state, self._device)
            try:
                yield
            finally:
                self._random_state = torch.get_rng_state()
                if self._device_random_state is not None:
                    self._device_random_state = torch.cuda.get_rng_state(self._device)

    @contextmanager
    def _optimizer_in_evaluation(self) -> Iterator[None]:
        """Let averaging optimisers such as schedule-free show the weights they would deploy."""
        enter = getattr(self.optimizer, "eval", None)
        leave = getattr(self.optimizer, "train", None)
        if callable(enter) and callable(leave):
            enter()
            try:
                yield
            finally:
                leave()
        else:
            yield


# Snapshots as plain data and NumPy arrays, for files that hold nothing to be executed.

# NumPy has no such type; its bits travel as another of the same size.
_AS_BITS = {torch.bfloat16: torch.int16}


def to_plain(value: Any) -> Any:
    """Return nested states with every tensor as a NumPy array; `from_plain` is the inverse.

    Args:
        value: Mappings with text or number keys, lists, tuples, numbers, texts, None and tensors.

    Raises:
        SpecError: Something else is in it.
    """
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        tensor = tensor.view(_AS_BITS.get(tensor.dtype, tensor.dtype))
        kind = str(value.dtype).removeprefix("torch.")
        return {"tensor": tensor.numpy().copy(), "dtype": kind, "device": str(value.device)}
    if isinstance(value, Mapping):
        return {"pairs": [[key, to_plain(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return tuple(to_plain(item) for item in value)
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise SpecError(
        f"state: {type(value).__name__} cannot be kept in a file; only numbers, texts, lists, "
        "mappings and tensors can"
    )


def from_plain(value: Any) -> Any:
    """Return the nested states that `to_plain` made plain; tensors on the device they came from."""
    if isinstance(value, tuple):
        return tuple(from_plain(item) for item in value)
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "pairs" in value:
        return {key: from_plain(item) for key, item in value["pairs"]}
    dtype = getattr(torch, value["dtype"])
    tensor = torch.from_numpy(np.array(value["tensor"], order="C"))
    return tensor.view(dtype if dtype in _AS_BITS else tensor.dtype).to(value["device"])
