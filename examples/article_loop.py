"""Learn to steer fine-tuning runs, in the plainest loop that reinforcement learning has.

The environment is a simulated fine-tuning run, the agent a table of values. It needs no more than
``pip install trimtab`` and half a minute:

    python examples/article_loop.py --episodes 300
"""

from __future__ import annotations

import argparse

import gymnasium as gym

import trimtab


def total_reward(env: gym.Env, agent: trimtab.agents.Agent, seeds: range) -> float:
    """Return the mean return of an agent that no longer explores or learns."""
    total = 0.0
    for seed in seeds:
        state, _ = env.reset(seed=seed)
        done = False
        while not done:
            action = agent.choose_action(state, explore=False)
            state, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            done = terminated or truncated
    return total / len(seeds)


def main() -> None:
    """Train Q-learning, then compare it with chance and with doing nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--test-episodes", type=int, default=50)
    arguments = parser.parse_args()

    env = gym.make("Hyperparam-v0")
    agent = trimtab.agents.make("q-learning", env)

    for episode in range(arguments.episodes):
        state, _info = env.reset(seed=episode)
        done = False
        while not done:
            action = agent.choose_action(state)
            next_state, reward, terminated, truncated, _info = env.step(action)
            agent.update(state, action, reward, next_state)
            state, done = next_state, terminated or truncated

    unseen = range(10**5, 10**5 + arguments.test_episodes)
    for name in ("random", "reference"):
        other = trimtab.agents.make(name, env)
        print(f"{name:>12}  {total_reward(env, other, unseen):+.3f} nats")
    print(f"{agent.name:>12}  {total_reward(env, agent, unseen):+.3f} nats")


if __name__ == "__main__":
    main()
