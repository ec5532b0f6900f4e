"""This project's agents in DACBench's own environments, beside constants, a cosine and chance.

It runs in the environment that ``make venv-dacbench`` makes, with this source tree on its path:

    PYTHONPATH=src .venv-dacbench/bin/python benchmarks/dacbench_agents.py
    PYTHONPATH=src .venv-dacbench/bin/python benchmarks/dacbench_agents.py --json

* **ToySGD**: gradient descent on polynomials, 10 steps, as DACBench sets it up (its instances; the
  momentum stays at its smallest value, for all).
* **SGD**: AdamW on a 64-32-10 network, 20 epochs a run, a decision before each, by DACBench's
  epoch mode; the samples are ten noisy clusters, so that nothing is downloaded.

DACBench gives dicts as observations and takes absolute learning rates. `dacbench_settings.Steered`
makes of them what the agents of this project meet elsewhere: numbers without unit, and moves of the
learning rate on a log scale. Every method does the same steps from the same start values;
``random`` draws from DACBench's own range. Q-learning and LinUCB learn in the same environment
first, with other seeds; ``trimtab-1`` has never seen it.

The learning agents are paid ``log(loss before) - log(loss after)`` on validation (ToySGD: the
regret): falling is good. DACBench's own end-of-run reward is the loss on test data, which no agent
may learn from, and the sign of its older ``DiffValidation`` pays for a rising loss.

Figures are means over starts and seeds with their standard error; lower is better: DACBench's
own log10 regret of the last step (ToySGD), and the test loss in nats after the last step, at most
10 (SGD).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.dacbench_settings import Setting, Steered, sgd_setting, toy_setting

# The methods: each finishes an episode that was just reset.


def play_schedule(shape: Callable[[float], float]) -> Callable[[Steered], None]:
    """Return a player that follows a function of progress times the start."""

    def play(env: Steered) -> None:
        over = False
        while not over:
            rate = env.start * shape(env.done / env.setting.steps)
            _, _, terminated, truncated, _ = env.train(rate)
            over = terminated or truncated

    return play


def play_random(seed: int) -> Callable[[Steered], None]:
    """Return a player that draws from the whole action space on its log scale at every step."""
    generator = np.random.default_rng(seed)

    def play(env: Steered) -> None:
        low, high = math.log10(env.setting.low), math.log10(env.setting.high)
        over = False
        while not over:
            _, _, terminated, truncated, _ = env.train(10.0 ** generator.uniform(low, high))
            over = terminated or truncated

    return play


def play_policy(name: str) -> Callable[[Steered], None]:
    """Return a player that lets a shipped policy steer on its reference schedule."""
    from trimtab.core.hyperparameters import Hyperparameter
    from trimtab.core.metrics import Metrics
    from trimtab.core.references import reference_multipliers
    from trimtab.core.session import Session
    from trimtab.defaults import controller_for

    def play(env: Steered) -> None:
        setting = env.setting
        item = Hyperparameter("lr", "lr", env.start, setting.low, setting.high)
        spec, controller = controller_for(name, (item,), decisions=setting.steps)
        spec = replace(spec, undo=0.0)  # nothing can be put back here
        session = Session(
            spec,
            controller,
            total_steps=setting.steps,
            reference=reference_multipliers("warmup-linear", setting.steps),
        )
        session.step(Metrics(val_loss=env.losses[0]))
        while not session.finished:
            steps = session.window()
            for step in range(session.steps_done, session.steps_done + steps):
                env.train(session.value(0, step))
            last = env.losses[-1]
            finite = float(math.isfinite(last))
            session.step(Metrics(val_loss=last, steps=float(steps), finite=finite))

    return play


def play_agent(agent: Any) -> Callable[[Steered], None]:
    """Return a player for an agent that explores no more."""

    def play(env: Steered) -> None:
        observation, over = env._observation(), False
        while not over:
            action = agent.choose_action(observation, explore=False)
            observation, _, terminated, truncated, _ = env.step(int(action))
            over = terminated or truncated

    return play


def trained(kind: type, setting: Setting, episodes: int, seed: int) -> Any:
    """Return an agent that has learned in a setting for some episodes."""
    env = Steered(setting, seed + 1000)
    bins = [
        [0, [0.05, 0.35, 0.7]],
        [1, [-1.5, -0.5, 0.5, 1.5]],
        [2, [-2.0, -0.5, -0.05]],
        [3, [-0.5, -0.1, 0.0]],
    ]
    agent = kind(env, **({"bins": bins, "seed": seed} if kind.__name__ == "QLearning" else {}))
    for _ in range(episodes):
        observation, _ = env.reset()
        over = False
        while not over:
            action = agent.choose_action(observation)
            following, reward, terminated, truncated, _ = env.step(int(action))
            agent.update(observation, action, reward, following, terminated, truncated)
            observation, over = following, terminated or truncated
    return agent


def results(
    setting: Setting, play: Callable[[Steered], None], seeds: Sequence[int], repeats: int
) -> dict[str, float]:
    """Return mean and standard error over seeds, starts and repeats, and the worst start's mean."""
    by_start: dict[float, list[float]] = {start: [] for start in setting.starts}
    for seed in seeds:
        env = Steered(setting, seed)
        for _ in range(repeats):
            for start in setting.starts:
                env.reset(options={"start": start})
                play(env)
                by_start[start].append(env.result)
    every = np.array([value for values in by_start.values() for value in values])
    return {
        "mean": float(every.mean()),
        "error": float(every.std(ddof=1) / math.sqrt(len(every))),
        "worst_start": float(max(np.mean(values) for values in by_start.values())),
        "best_start": float(min(np.mean(values) for values in by_start.values())),
        "runs": len(every),
    }


def measure(setting: Setting, *, episodes: int, seeds: int, repeats: int) -> dict[str, Any]:
    """Return the figures of every method in one setting."""
    from trimtab.agents.linucb import LinUCB
    from trimtab.agents.q_learning import QLearning

    players = {
        "constant": play_schedule(lambda _: 1.0),
        "cosine": play_schedule(lambda progress: 0.5 * (1 + math.cos(math.pi * progress))),
        "random": play_random(0),
        "trimtab-1": play_policy("trimtab-1"),
        "q-learning": play_agent(trained(QLearning, setting, episodes, 0)),
        "linucb": play_agent(trained(LinUCB, setting, episodes, 0)),
    }
    return {
        name: results(setting, play, range(1, 1 + seeds), repeats) for name, play in players.items()
    }


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--toy-episodes", type=int, default=1000, help="to learn in, on ToySGD")
    parser.add_argument("--sgd-episodes", type=int, default=40, help="to learn in, on SGD")
    parser.add_argument("--epochs", type=int, default=20, help="of a run of SGD")
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    sgd = sgd_setting(given.epochs)  # DACBench can be imported after this
    for setting, episodes, repeats in (
        (toy_setting(), given.toy_episodes, 20),
        (sgd, given.sgd_episodes, 1),
    ):
        found[setting.name] = measure(
            setting, episodes=episodes, seeds=given.seeds, repeats=repeats
        ) | {"training_steps": episodes * setting.steps}
    if given.json:
        json.dump(found, sys.stdout, indent=1)
        return 0
    for name, rows in found.items():
        print(f"\n{name}: learning agents saw {rows.pop('training_steps'):,} steps first")
        print(f"{'method':<12} {'mean':>9} {'+/-':>7} {'best start':>11} {'worst start':>12}")
        for method, row in rows.items():
            print(
                f"{method:<12} {row['mean']:>9.3f} {row['error']:>7.3f} "
                f"{row['best_start']:>11.3f} {row['worst_start']:>12.3f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
