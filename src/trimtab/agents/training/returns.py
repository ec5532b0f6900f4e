"""What whole runs earned, as the update of `trimtab.agents.training.ppo` takes it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from trimtab.agents.training.policy_network import critic_inputs, value
from trimtab.agents.training.ppo import Learner, advantages
from trimtab.agents.training.rollout import Episodes
from trimtab.agents.training.settings import LearnSettings
from trimtab.core.rewards import potential


def _final_correction(episodes: Episodes) -> np.ndarray:
    """Return (B,) what turns the validation return into that of the selection split, in nats."""
    initial = episodes.val_loss[0]
    on_validation = potential(episodes.best_val, initial, np)
    on_selection = potential(episodes.selection_loss, initial, np)
    return np.asarray(on_validation - on_selection)


def learning_batch(
    settings: LearnSettings,
    learner: Learner,
    episodes: Episodes,
    decades: np.ndarray,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return what the update needs of K decisions of B runs, and figures for the display.

    Args:
        settings: Of the training.
        learner: Whose critic predicts returns.
        episodes: Of ``settings.tasks`` tasks, siblings side by side.
        decades: (B,) by which starts were off.
    """
    reward, last = paid(episodes)
    total = reward.sum(0)
    groups = total.reshape(settings.tasks, settings.siblings)
    others = (groups.sum(1, keepdims=True) - groups) / max(settings.siblings - 1, 1)
    # What a run ends below its siblings counts once more: they bound what the task allowed.
    shortfall = np.maximum(others - groups, 0.0).reshape(-1)
    reward[last, np.arange(reward.shape[1])] -= settings.aversion * shortfall
    spread = np.repeat(groups.std(1), settings.siblings)
    hidden = np.column_stack(
        [episodes.properties, decades / 2, others.reshape(-1), spread, np.full(len(decades), 1.0)]
    ).astype(np.float32)
    inputs = np.asarray(critic_inputs(jnp.asarray(episodes.observation), jnp.asarray(hidden)))
    predicted = np.asarray(value(learner.critic, jnp.asarray(inputs)))
    advantage = advantages(reward, predicted, episodes.alive, settings.ppo.gae_lambda)
    target = predicted + advantage
    advantage = advantage / (spread + settings.ppo.spread_floor)
    mean = (advantage * episodes.alive).sum() / episodes.alive.sum()
    deviation = np.sqrt((((advantage - mean) ** 2) * episodes.alive).sum() / episodes.alive.sum())
    advantage = np.clip((advantage - mean) / (deviation + 1e-6), -5, 5)
    batch = {
        "observation": episodes.observation,
        "action": episodes.action,
        "log_probability": episodes.log_probability,
        "advantage": advantage.astype(np.float32),
        "target": target.astype(np.float32),
        "alive": episodes.alive,
        "critic_inputs": inputs,
    }
    return batch, return_figures(episodes, total, decades) | {"spread": float(spread.mean())}


def paid(episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
    """Return rewards (K, B) in nats with the final correction, and each run's last decision (B,).

    The correction is paid by the last decision that a run made.
    """
    reward = episodes.reward * episodes.alive
    last = np.maximum(episodes.alive.sum(0).astype(int) - 1, 0)
    reward[last, np.arange(reward.shape[1])] += np.clip(_final_correction(episodes), -2, 2)
    return reward, last


def return_figures(episodes: Episodes, total: np.ndarray, decades: np.ndarray) -> dict[str, float]:
    """Return mean returns, of all runs and by start, and how often the guard had to act.

    Args:
        episodes: B runs.
        total: (B,) their returns in nats.
        decades: (B,) by which their starts were off.
    """
    low, high = decades < -1, decades > 1
    return {
        "return": float(total.mean()),
        "return_low": float(total[low].mean()) if low.any() else float("nan"),
        "return_high": float(total[high].mean()) if high.any() else float("nan"),
        "rollbacks": float(episodes.rollbacks.mean()),
        "diverged": float(episodes.diverged.mean()),
        "restored": float(episodes.restored.sum(0).mean()),
    }
