"""A loop as in CleanRL's ``ppo.py``: it needs the first observation in the step that ends."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

torch = pytest.importorskip("torch")
pytest.importorskip("jax")
pytestmark = pytest.mark.framework

N, DECISIONS, STEPS, UPDATES = 4, 8, 16, 3


class Agent(torch.nn.Module):
    """One hidden layer for the actor, one for the critic."""

    def __init__(self, envs: Any) -> None:
        super().__init__()
        width = int(np.prod(envs.single_observation_space.shape))

        def head(outputs: int) -> Any:
            tanh = torch.nn.Tanh()
            return torch.nn.Sequential(
                torch.nn.Linear(width, 32), tanh, torch.nn.Linear(32, outputs)
            )

        self.actor, self.critic = head(int(envs.single_action_space.n)), head(1)

    def act(self, seen: Any, action: Any = None) -> tuple[Any, Any, Any, Any]:
        choice = torch.distributions.Categorical(logits=self.actor(seen))
        action = choice.sample() if action is None else action
        return action, choice.log_prob(action), choice.entropy(), self.critic(seen).squeeze(-1)


def advantages_of(rewards: Any, values: Any, next_values: Any, dones: Any) -> Any:
    """Generalised advantages; ``next_values`` are those of what really came next."""
    found, last = torch.zeros_like(rewards), torch.zeros(N)
    for t in reversed(range(STEPS)):
        delta = rewards[t] + next_values[t] - values[t]
        last = delta + 0.95 * (1 - dones[t]) * last
        found[t] = last
    return found


def update(agent: Agent, optimizer: Any, batch: dict[str, Any]) -> float:
    _, log_probability, entropy, value = agent.act(batch["seen"], batch["actions"])
    ratio = (log_probability - batch["log_probabilities"]).exp()
    gain = batch["advantages"]
    gain = (gain - gain.mean()) / (gain.std() + 1e-8)
    policy = -torch.min(gain * ratio, gain * ratio.clamp(0.8, 1.2)).mean()
    loss = policy - 0.01 * entropy.mean() + 0.5 * (value - batch["returns"]).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
    optimizer.step()
    return loss.item()


def test_a_loop_as_in_cleanrl_trains_on_the_compiled_environment() -> None:
    torch.manual_seed(0)
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(
        gymnasium.make_vec(
            "trimtab:Hyperparam-v0",
            num_envs=N,
            variant="tiny",
            decisions=DECISIONS,
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
    )
    agent = Agent(envs)
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)
    before = [weight.detach().clone() for weight in agent.parameters()]
    observation, _ = envs.reset(seed=1)
    episodes: list[tuple[float, int]] = []
    firsts = 0
    for _ in range(UPDATES):
        rows: dict[str, list[Any]] = {}
        for _ in range(STEPS):
            seen = torch.as_tensor(observation)
            with torch.no_grad():
                action, log_probability, _, value = agent.act(seen)
            following, reward, terminated, truncated, info = envs.step(action.numpy())
            over = terminated | truncated
            really_next = following.copy()
            for env in np.flatnonzero(over):
                really_next[env] = info["final_obs"][env]
                statistics = info["episode"]
                episodes.append((float(statistics["r"][env]), int(statistics["l"][env])))
                firsts += int(info["step"][env] == 0 and info["final_info"]["step"][env] > 0)
            with torch.no_grad():
                next_value = agent.critic(torch.as_tensor(really_next)).squeeze(-1)
            next_value = next_value * torch.as_tensor(~over)  # the budget is part of what is seen
            step = {
                "seen": seen,
                "actions": action,
                "log_probabilities": log_probability,
                "values": value,
                "rewards": torch.as_tensor(reward, dtype=torch.float32),
                "next_values": next_value,
                "dones": torch.as_tensor(over, dtype=torch.float32),
            }
            for name, one in step.items():
                rows.setdefault(name, []).append(one)
            observation = following
        kept = {name: torch.stack(values) for name, values in rows.items()}
        kept["advantages"] = advantages_of(
            kept["rewards"], kept["values"], kept["next_values"], kept["dones"]
        )
        kept["returns"] = kept["advantages"] + kept["values"]
        assert np.isfinite(
            update(agent, optimizer, {name: one.flatten(0, 1) for name, one in kept.items()})
        )
    assert len(episodes) >= N * UPDATES * STEPS // DECISIONS
    assert {length for _, length in episodes} == {DECISIONS}  # no step is lost between two episodes
    assert all(np.isfinite(total) for total, _ in episodes)
    assert firsts == len(episodes)
    after = list(agent.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
