"""Advantages and the token policy, against hand-made and NumPy results."""

import numpy as np
import pytest

pytest.importorskip("jax")

import jax
import jax.numpy as jnp

from trimtab.agents.training.policy_network import act, evaluate_actions, init_policy, policy_logits
from trimtab.agents.training.ppo import advantages
from trimtab.controllers.learned import LearnedController, PolicyFile, forward
from trimtab.core.features import observation_size
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.spec import MOVES, ControlSpec


def test_advantages_with_lambda_one_are_return_to_go_minus_value() -> None:
    reward = np.array([[1.0], [2.0], [4.0]])
    predicted = np.array([[0.5], [1.0], [3.0]])
    result = advantages(reward, predicted, np.ones((3, 1)), 1.0)
    assert result[:, 0] == pytest.approx([7 - 0.5, 6 - 1.0, 4 - 3.0])


def test_advantages_stop_at_a_runs_last_living_decision() -> None:
    reward = np.array([[1.0], [2.0], [100.0]])
    alive = np.array([[1.0], [1.0], [0.0]])
    result = advantages(reward, np.zeros((3, 1)), alive, 0.95)
    assert result[:, 0] == pytest.approx([1 + 0.95 * 2, 2.0, 0.0])


def _spec(count: int) -> ControlSpec:
    names = ("lr", "weight_decay", "dropout", "clip")[:count]
    return ControlSpec(hyperparameters=tuple(hyperparameter(name) for name in names))


@pytest.mark.parametrize("count", [1, 4])
def test_numpy_and_jax_policies_agree(count: int) -> None:
    parameters = init_policy(0)
    generator = np.random.default_rng(1)
    seen = generator.normal(size=(5, 3, observation_size(_spec(count)))).astype(np.float32)
    plain = {name: np.asarray(value) for name, value in parameters.items()}
    hidden = jnp.zeros((3, count, 64))
    mine = [np.zeros((count, 64), np.float32) for _ in range(3)]
    for step in range(5):
        moves, restore, hidden = policy_logits(parameters, jnp.asarray(seen[step]), hidden)
        for run in range(3):
            logits, back, mine[run] = forward(plain, seen[step, run], mine[run], np)
            assert np.asarray(jax.nn.log_softmax(logits)) == pytest.approx(
                np.asarray(moves[run]), abs=1e-5
            )
            assert np.argmax(logits, -1).tolist() == np.argmax(moves[run], -1).tolist()
            assert np.argmax(back) == int(jnp.argmax(restore[run]))


def test_the_controller_answers_the_mean_that_was_evaluated() -> None:
    parameters = init_policy(3)
    parameters = {name: value * 3 for name, value in parameters.items()}
    plain = {name: np.asarray(value) for name, value in parameters.items()}
    controller = LearnedController(PolicyFile("probe", _spec(2), plain, {}, {}))
    controller.reset(seed=0)
    generator = np.random.default_rng(0)
    hidden = jnp.zeros((1, 2, 64))
    for _ in range(5):
        seen = generator.normal(size=observation_size(_spec(2))).astype(np.float32)
        expected, _, hidden = act(
            parameters, jnp.asarray(seen[None]), hidden, jax.random.key(0), "mean"
        )
        assert controller.act(seen) == pytest.approx(np.asarray(expected[0]), abs=1e-4)


def test_tokens_in_another_order_give_moves_in_that_order() -> None:
    plain = {name: np.asarray(value) for name, value in init_policy(2).items()}
    size = observation_size(_spec(4))
    one = np.random.default_rng(0).normal(size=size).astype(np.float32)
    block = (observation_size(_spec(4)) - observation_size(_spec(1))) // 3
    n_global = size - 4 * block
    order = [2, 0, 3, 1]
    tokens = one[n_global:].reshape(4, block)
    other = np.concatenate([one[:n_global], tokens[order].reshape(-1)])
    empty = np.zeros((4, 64), np.float32)
    moves, restore, _ = forward(plain, one, empty, np)
    swapped, same, _ = forward(plain, other, empty, np)
    assert swapped == pytest.approx(moves[order], abs=1e-5)
    assert same == pytest.approx(restore, abs=1e-5)


def test_an_untrained_policy_most_likely_moves_nothing() -> None:
    plain = {name: np.asarray(value) for name, value in init_policy(0).items()}
    generator = np.random.default_rng(0)
    for _ in range(20):
        seen = generator.normal(size=observation_size(_spec(1))).astype(np.float32)
        moves, restore, _ = forward(plain, seen, np.zeros((1, 64), np.float32), np)
        assert MOVES[int(np.argmax(moves[0]))] == 0.0
        assert int(np.argmax(restore)) == 0


def test_whole_episodes_are_scored_as_they_were_acted() -> None:
    parameters = init_policy(0)
    generator = np.random.default_rng(1)
    seen = jnp.asarray(generator.normal(size=(6, 2, observation_size(_spec(1)))), jnp.float32)
    action = jnp.asarray(
        np.stack([generator.integers(7, size=(6, 2)), generator.integers(2, size=(6, 2))], -1)
    )
    scored, entropy = evaluate_actions(parameters, seen, action)
    hidden = jnp.zeros((2, 1, 64))
    for k in range(6):
        moves, restore, hidden = policy_logits(parameters, seen[k], hidden)
        for run in range(2):
            expected = moves[run, 0, action[k, run, 0]] + restore[run, action[k, run, 1]]
            assert float(scored[k, run]) == pytest.approx(float(expected), abs=1e-5)
    assert float(entropy.min()) > 0
