from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tests.envs.simulators.given import drawn, draws, family, raw_bank, rest, started, tuned_rate
from trimtab.envs.simulators.families.wide import N_ACTING, acting


def test_exactly_the_acting_hyperparameters_act():
    made = family("simulated/wide", events=False)
    bank = raw_bank(made, 0)
    draw = drawn(made, 1)._replace(clip=jnp.float32(0.3))
    state = started(made, bank, draw)
    usual = rest(made)
    usual[0] = float(tuned_rate(made, draw))
    moved = [item.low if item.default > item.low else 0.3 for item in made.hyperparameters]
    values = np.stack([usual] * 33)
    values[np.arange(32), np.arange(32)] = moved
    values[0, 0] = usual[0] / 2

    def run(values):
        four = jnp.int32(4)
        return made.advance(0, bank, draw, state, values, jnp.ones(9), jnp.int32(0), four, four)[
            0
        ].params

    reached = np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(values)))
    differs = np.abs(reached[:32] - reached[32]).max(1) > 0

    assert len(made.hyperparameters) == 32
    assert differs.tolist() == np.asarray(acting(draw)).tolist()
    assert differs.sum() == N_ACTING
    assert differs[0]


def test_which_ones_act_varies_from_task_to_task():
    masks = np.asarray(jax.vmap(acting)(draws(family("simulated/wide"), 300)))
    assert (masks.sum(1) == N_ACTING).all()
    shares = masks[:, 1:].mean(0)  # 7 of 31 each
    assert np.abs(shares - 7 / 31).max() < 4 * np.sqrt(0.226 * 0.774 / 300)
