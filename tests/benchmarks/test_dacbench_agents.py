"""What plays in DACBench does as many steps as the others; here on a parabola of our own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from benchmarks import dacbench_agents as agents
from benchmarks.dacbench_settings import Setting, Steered
from trimtab.agents.linucb import LinUCB
from trimtab.agents.q_learning import QLearning

STEPS = 12


class Parabola:
    """Stands for DACBench's environment: absolute learning rates, a dict as the state."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def reset(self) -> tuple[dict[str, float], dict[str, Any]]:
        self.rates, self.place = [], 3.0
        return {"f": self.place**2}, {}

    def step(self, rate: float) -> tuple[Any, ...]:
        self.rates.append(rate)
        self.place -= 2 * rate * self.place
        return {"f": self.place**2 if abs(self.place) < 1e6 else math.nan}, 0.0, False, False, {}


def setting(**changes: Any) -> Setting:
    usual: dict[str, Any] = {
        "name": "parabola",
        "make": lambda _: Parabola(),
        "loss": lambda _, state: float(state["f"]),
        "result": lambda _, last: last,
        "to_action": float,
        "steps": STEPS,
        "starts": (1e-3, 1e-1),
        "low": 1e-6,
        "high": 10.0,
    }
    return Setting(**(usual | changes))


@pytest.mark.parametrize(
    "play",
    [
        agents.play_schedule(lambda _: 1.0),
        agents.play_random(0),
        agents.play_policy("trimtab-1"),
    ],
    ids=["constant", "random", "policy"],
)
def test_every_method_does_the_same_steps(play: Any) -> None:
    env = Steered(setting(), 0)
    env.reset(options={"start": 1e-2})
    play(env)
    assert len(env.inner.rates) == env.done == STEPS
    assert all(1e-6 <= rate <= 10.0 for rate in env.inner.rates)


def test_a_constant_stays_and_a_move_is_in_decades() -> None:
    env = Steered(setting(), 0)
    env.reset(options={"start": 1e-2})
    agents.play_schedule(lambda _: 1.0)(env)
    assert env.inner.rates == [1e-2] * STEPS
    env.reset(options={"start": 1e-2})
    env.step(4)
    assert env.inner.rates == pytest.approx([1e-1])


def test_a_falling_loss_is_paid_and_a_lost_run_ends() -> None:
    env = Steered(setting(), 0)
    first, _ = env.reset(options={"start": 1e-1})
    assert env.observation_space.contains(first)
    observation, reward, terminated, _, _ = env.step(0)
    assert reward == pytest.approx(math.log(env.losses[0] / env.losses[1]))
    assert reward > 0
    assert not terminated
    env.reset(options={"start": 10.0})
    ends = [env.train(10.0)[2] for _ in range(6)]
    assert ends[-1]
    assert env.train(10.0)[1] < 0
    assert env.observation_space.contains(observation)


def test_q_learning_beats_standing_still() -> None:
    where = setting()
    learned = agents.results(
        where, agents.play_agent(agents.trained(QLearning, where, 200, 0)), [1], 1
    )
    still = agents.results(where, agents.play_schedule(lambda _: 1.0), [1], 1)
    assert learned["mean"] < 0.5 * still["mean"]
    assert learned["runs"] == 2
    assert np.isfinite(learned["error"])


def test_linucb_plays_what_it_learned() -> None:
    where = setting()
    agent = agents.trained(LinUCB, where, 20, 0)
    env = Steered(where, 1)
    env.reset(options={"start": 1e-2})
    agents.play_agent(agent)(env)
    assert 0 < env.done <= STEPS
    assert env.inner.rates != [1e-2] * env.done
