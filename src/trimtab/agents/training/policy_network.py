"""The policy and its critic in JAX, for meta-training; the forward pass is the run-time one.

The critic is privileged: besides the observation it reads hidden properties of the task and how
the siblings of a run (same task, same data order, other starts and actions) ended. It is never
shipped.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.controllers.learned import forward, parameter_shapes, token_block
from trimtab.core.features import GLOBAL_FEATURES, token_size
from trimtab.core.spec import MOVES, ControlSpec

_BLOCK = token_size(ControlSpec())


def init_policy(seed: int, width: int = 64, block: int = _BLOCK) -> dict[str, jax.Array]:
    """Return fresh parameters: untrained, the policy mostly leaves the reference alone.

    Hidden layers are orthogonal-like (scaled normal), the heads nearly zero; moves are biased
    towards smaller ones and restore towards no. ``block`` is the length of a token's features.
    """
    generator = np.random.default_rng(seed)
    parameters = {}
    for name, shape in parameter_shapes(width, block).items():
        if name.endswith("_b"):
            array = np.zeros(shape)
        else:
            scale = 0.01 if name in ("move_w", "restore_w") else 1.0
            array = generator.normal(0, scale / np.sqrt(shape[0]), shape)
        parameters[name] = array
    parameters["move_b"] = np.array([-1.5 * abs(move) for move in MOVES])
    parameters["restore_b"] = np.array([1.5, -1.5])
    return {name: jnp.asarray(array, jnp.float32) for name, array in parameters.items()}


def init_critic(seed: int, inputs: int, width: int = 128) -> dict[str, jax.Array]:
    """Return fresh critic parameters for ``inputs`` numbers."""
    generator = np.random.default_rng(seed)
    sizes = (inputs, width, width, 1)
    critic = {}
    for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        scale = 0.01 if layer == 2 else 1.0
        critic[f"w{layer}"] = generator.normal(0, scale / np.sqrt(rows), (rows, columns))
        critic[f"b{layer}"] = np.zeros(columns)
    return {name: jnp.asarray(array, jnp.float32) for name, array in critic.items()}


def value(critic: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
    """Return (...) predicted returns-to-go for (..., n) inputs."""
    hidden = inputs.reshape(-1, inputs.shape[-1])
    for layer in ("0", "1"):
        hidden = jnp.tanh(hidden @ critic["w" + layer] + critic["b" + layer][None, :])
    return (hidden @ critic["w2"] + critic["b2"][None, :])[:, 0].reshape(inputs.shape[:-1])


def policy_logits(
    parameters: Any, observation: jax.Array, hidden: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return batched log-probabilities: moves (B, H, 7), restore (B, 2), and hidden (B, H, w)."""

    def one(observation: jax.Array, hidden: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return forward(parameters, observation, hidden, jnp)

    moves, restore, hidden = jax.vmap(one)(observation, hidden)
    return jax.nn.log_softmax(moves), jax.nn.log_softmax(restore), hidden


def _picked(log_probability: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(log_probability, index[..., None], axis=-1)[..., 0]


def act(
    parameters: Any, observation: jax.Array, hidden: jax.Array, key: jax.Array, how: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return actions (B, H + 1), their log-probability (B,) and the next hidden state.

    ``how`` is ``"sample"`` or ``"greedy"`` (int32 actions), or ``"mean"``: the expected move, as a
    float32 index between those of the two moves around it, and the likelier restore.
    """
    moves, restore, hidden = policy_logits(parameters, observation, hidden)
    if how == "mean":
        table = jnp.asarray(MOVES, jnp.float32)
        places = jnp.arange(len(MOVES), dtype=jnp.float32)
        expected = (jnp.exp(moves) * table[None, None, :]).sum(-1)
        back = jnp.argmax(restore, -1).astype(jnp.float32)
        action = jnp.concatenate([jnp.interp(expected, table, places), back[:, None]], axis=-1)
        return action, jnp.zeros(observation.shape[0]), hidden
    if how == "greedy":
        move, back = jnp.argmax(moves, -1), jnp.argmax(restore, -1)
    else:
        first, second = jax.random.split(key)
        move = jax.random.categorical(first, moves)
        back = jax.random.categorical(second, restore)
    log_probability = _picked(moves, move).sum(-1) + _picked(restore, back)
    action = jnp.concatenate([move, back[:, None]], axis=-1).astype(jnp.int32)
    return action, log_probability, hidden


def all_logits(parameters: Any, observation: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return log-probabilities of whole episodes (K, B, n): moves (K, B, H, 7), restore (K, B, 2).

    H is what an observation has room for.
    """
    width = parameters["token_b"].shape[0]
    tokens = (observation.shape[-1] - len(GLOBAL_FEATURES)) // token_block(parameters)
    start = jnp.zeros((observation.shape[1], tokens, width), jnp.float32)

    def step(hidden: jax.Array, seen: jax.Array) -> Any:
        moves, restore, hidden = policy_logits(parameters, seen, hidden)
        return hidden, (moves, restore)

    _, (moves, restore) = jax.lax.scan(step, start, observation)
    return moves, restore


def evaluate_actions(
    parameters: Any, observation: jax.Array, action: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return log-probability and entropy (K, B) of whole episodes: (K, B, n) and (K, B, H + 1)."""
    width = parameters["token_b"].shape[0]
    n_tokens = action.shape[-1] - 1
    start = jnp.zeros((observation.shape[1], n_tokens, width), jnp.float32)

    def step(hidden: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> Any:
        seen, done = inputs
        moves, restore, hidden = policy_logits(parameters, seen, hidden)
        log_probability = _picked(moves, done[:, :-1]).sum(-1) + _picked(restore, done[:, -1])
        entropy = -(jnp.exp(moves) * moves).sum((-1, -2)) - (jnp.exp(restore) * restore).sum(-1)
        return hidden, (log_probability, entropy)

    _, (log_probability, entropy) = jax.lax.scan(step, start, (observation, action))
    return log_probability, entropy


def critic_inputs(observation: jax.Array, properties: jax.Array, block: int) -> jax.Array:
    """Return (K, B, n) critic inputs: global features, mean token, hidden properties (B, p)."""
    n_global = len(GLOBAL_FEATURES)
    tokens = observation[..., n_global:]
    shaped = tokens.reshape(*tokens.shape[:-1], -1, block).mean(-2)
    spread = jnp.broadcast_to(properties, (*observation.shape[:-1], properties.shape[-1]))
    return jnp.concatenate([observation[..., :n_global], shaped, spread], axis=-1)
