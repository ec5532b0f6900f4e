"""Stable-Baselines3: its agents learn to steer, in `Hyperparam-v0`; they are not steered."""

from __future__ import annotations

import gymnasium
import pytest

from tests.trainers.claims import WARNINGS
from trimtab.core.errors import AdapterError

sb3 = pytest.importorskip("stable_baselines3")

from trimtab import TorchController  # noqa: E402

pytestmark = [pytest.mark.framework, *WARNINGS]
REASON = "its training loss stays inside of `train` and no validation loss of an agent exists"
REFUSED = dict.fromkeys(("steered", "rescued", "resumed", "validated", "kept best"), REASON)


def test_refused_steered() -> None:
    model = sb3.PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=8, seed=0, device="cpu")
    controller = TorchController.attach(
        model.policy.optimizer,
        total_steps=40,
        validate=lambda: 1.0,
        model=model.policy,
        policy="random",
    )
    with pytest.raises(AdapterError, match=r"controller\.watch\(loss_fn\)"), controller:
        model.learn(32)


def test_an_agent_learns_to_steer() -> None:
    # lines to write
    env = gymnasium.make("Hyperparam-v0", actions="multi-discrete")
    model = sb3.PPO("MlpPolicy", env, n_steps=16, batch_size=8, seed=0, device="cpu")
    model.learn(32)
    # end of lines
    assert model.num_timesteps == 32
