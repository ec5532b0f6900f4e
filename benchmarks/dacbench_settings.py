"""Two of DACBench's benchmarks as environments that this project's agents can learn in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

MOVES = (0.0, -1.0, -0.3, 0.3, 1.0)  # decades
_TINY = 1e-12
_LOST = 10.0  # nats; more is not told apart


@dataclass(frozen=True)
class Setting:
    """One of DACBench's benchmarks, as it is used here.

    Attributes:
        name: For the table.
        make: Makes DACBench's environment from a seed.
        loss: Takes the loss to go down from that environment and its state.
        result: Takes the figure of a finished run, lower is better.
        to_action: Makes DACBench's action of a learning rate.
        steps: Steps of a run.
        starts: Learning rates at which runs start.
        low: Smallest learning rate.
        high: Largest one.
    """

    name: str
    make: Callable[[int], Any]
    loss: Callable[[Any, Any], float]
    result: Callable[[Any, float], float]
    to_action: Callable[[float], Any]
    steps: int
    starts: tuple[float, ...]
    low: float
    high: float


class Steered(gymnasium.Env[np.ndarray, int]):
    """DACBench's environment with plain observations and moves of the learning rate.

    Observation (5,) float32: share of steps done; decades from the start; log10 of the loss over
    the first; its change in the last step; 1 after a rise, else 0. The action is a place in
    ``MOVES``. An episode starts at one of the setting's start values in turn, and ends with
    ``truncated``, or with ``terminated`` at a loss that is not finite.
    """

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting = setting
        self.inner = setting.make(seed)
        self.action_space = gymnasium.spaces.Discrete(len(MOVES))
        self.observation_space = gymnasium.spaces.Box(-9.0, 9.0, (5,), np.float32)
        self._episodes = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a run; ``options={"start": rate}`` says where."""
        super().reset(seed=seed)
        state, _ = self.inner.reset()
        starts = self.setting.starts
        given = (options or {}).get("start", starts[self._episodes % len(starts)])
        self._episodes += 1
        self.start = self.rate = float(given)
        self.done = 0
        self.losses = [self.setting.loss(self.inner, state)]
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the learning rate and do one of DACBench's steps at it."""
        return self.train(self.rate * 10.0 ** MOVES[int(action)])

    def train(self, rate: float) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Do one of DACBench's steps at a learning rate."""
        setting = self.setting
        self.rate = min(max(rate, setting.low), setting.high)
        state, *_ = self.inner.step(setting.to_action(self.rate))
        self.done += 1
        before, after = self.losses[-1], setting.loss(self.inner, state)
        lost = not math.isfinite(after)
        self.losses.append(after)
        reward = -5.0 if lost else math.log(max(before, _TINY)) - math.log(max(after, _TINY))
        over = self.done >= setting.steps
        return self._observation(), reward, lost, over and not lost, {}

    @property
    def result(self) -> float:
        """The figure of the finished run."""
        return self.setting.result(self.inner, self.losses[-1])

    def _observation(self) -> np.ndarray:
        logs = np.log10(np.clip(np.nan_to_num(self.losses, nan=1e9), _TINY, 1e9))
        change = logs[-1] - logs[-2] if len(logs) > 1 else 0.0
        return np.clip(
            [
                self.done / self.setting.steps,
                math.log10(self.rate / self.start),
                logs[-1] - logs[0],
                change,
                float(change > 0),
            ],
            -9.0,
            9.0,
        ).astype(np.float32)


# DACBench's benchmarks.


def toy_setting() -> Setting:
    """Return ToySGD with DACBench's own instances."""

    def make(seed: int) -> Any:
        from dacbench.benchmarks import ToySGDBenchmark

        benchmark = ToySGDBenchmark()
        benchmark.config["seed"] = seed
        return benchmark.get_environment()

    def regret(env: Any, state: Any) -> float:
        del state
        return float(np.mean(np.abs(env.f_cur - env.objective_function.fmin)))

    return Setting(
        name="ToySGD",
        make=make,
        loss=regret,
        result=lambda env, _: -float(env.get_reward(env)),  # DACBench's own figure, sign turned
        to_action=lambda rate: np.array([math.log10(rate), -10.0]),
        steps=10,
        starts=(1e-3, 1e-2, 1e-1, 1.0),
        low=1e-10,
        high=1.0,
    )


def sgd_setting(epochs: int) -> Setting:
    """Return SGD in epoch mode on clusters that are made here."""
    import torch
    from torch import nn

    from benchmarks.throughput_dacbench import define_missing_operators

    define_missing_operators()
    from torchvision import datasets

    generator = torch.Generator().manual_seed(11)
    centres = torch.randn(10, 64, generator=generator)

    def sample(count: int) -> tuple[torch.Tensor, list[int]]:
        labels = torch.randint(10, (count,), generator=generator)
        inputs = centres[labels] + 2.5 * torch.randn(count, 64, generator=generator)
        return inputs, labels.tolist()

    training, testing = sample(640), sample(512)

    class Clusters(torch.utils.data.Dataset[Any]):
        classes = tuple(str(label) for label in range(10))

        def __init__(self, root: str, train: bool = True, **_: Any) -> None:
            del root
            self._inputs, self._labels = training if train else testing

        def __len__(self) -> int:
            return len(self._labels)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return self._inputs[index], self._labels[index]

    datasets.Clusters = Clusters

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10), nn.LogSoftmax(1))

    def make(seed: int) -> Any:
        from dacbench.benchmarks import SGDBenchmark
        from dacbench.envs.sgd import SGDInstance

        torch.manual_seed(seed)
        instance = SGDInstance(
            model=network,
            optimizer_type=torch.optim.AdamW,
            optimizer_params={},
            dataset_path=".",
            dataset_name="Clusters",
            batch_size=32,
            fraction_of_dataset=1.0,
            train_validation_ratio=0.6,
            seed=0,
        )
        benchmark = SGDBenchmark()
        benchmark.config.update(
            instance_set={0: instance},
            epoch_mode=True,
            cutoff=epochs,
            seed=seed,
            dataset_config={"Clusters": {"train_transform": None, "test_transform": None}},
        )
        return benchmark.get_environment()

    def validation(env: Any, state: Any) -> float:
        if env.c_step:
            return float(state["validation_loss"])
        from dacbench.envs.sgd import test

        losses, _ = test(env.model, env.loss_function, env.validation_loader, 32)
        return float(losses.mean())

    def tested(env: Any, last: float) -> float:
        lost = env.test_losses is None or not math.isfinite(last)
        return _LOST if lost else min(float(env.test_losses.mean()), _LOST)

    return Setting(
        name="SGD",
        make=make,
        loss=validation,
        result=tested,
        to_action=lambda rate: [float(rate)],
        steps=epochs,
        starts=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        low=1e-8,
        high=1.0,
    )
