"""Meta-training: from nothing to a policy, on simulated fine-tuning runs (`trimtab learn`).

An iteration draws runs, lets the policy steer them, and learns from what they earned.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from trimtab.agents.training.checkpoints import (
    Checkpoint,
    checkpoint_file,
    export_policy,
    load_checkpoint,
    save_checkpoint,
    spread_of,
)
from trimtab.agents.training.imitation import (
    Imitator,
    Lessons,
    begin_imitation,
    imitate,
    lessons_of,
    read_lessons,
    remembered_by,
    unseen_cost,
    write_lessons,
)
from trimtab.agents.training.policy_network import critic_inputs, init_critic, init_policy, value
from trimtab.agents.training.ppo import Learner, advantages, optimiser, update
from trimtab.agents.training.rollout import STEERING, Episodes, columns_of, rollout
from trimtab.agents.training.settings import ImitationSettings, LearnSettings
from trimtab.agents.training.task_sampling import (
    SampledRuns,
    TunedRates,
    all_variants,
    control_spec,
    count_properties,
    sample_runs,
    start_values,
)
from trimtab.controllers.learned import read_policy, token_block
from trimtab.core.errors import SpecError
from trimtab.core.features import GLOBAL_FEATURES, token_size
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.rewards import potential
from trimtab.core.spec import UNDOING


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
    block = token_block(learner.policy)
    inputs = np.asarray(
        critic_inputs(jnp.asarray(episodes.observation), jnp.asarray(hidden), block)
    )
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


@dataclass
class Progress:
    """What one iteration brought, for display and curves.

    Attributes:
        iteration: From 1.
        of: Iterations in all.
        seconds: Since learning began, earlier sessions included.
        runs: Runs simulated so far.
        steps: Inner training steps simulated so far.
        figures: Mean return in nats, return by start, entropy and so on.
    """

    iteration: int
    of: int
    seconds: float
    runs: int
    steps: int
    figures: dict[str, float]


def _initial(settings: LearnSettings, n_properties: int) -> Learner | Imitator:
    n_token = token_size(control_spec(settings, (hyperparameter("lr"),), 1))
    inputs = len(GLOBAL_FEATURES) + n_token + n_properties + 4
    policy = init_policy(settings.seed, settings.width, n_token)
    if settings.imitation is not None:
        return begin_imitation(policy)
    critic = init_critic(settings.seed + 1, inputs)
    moments = optimiser(settings.ppo).init((policy, critic))
    return Learner(policy, critic, moments, policy)


def _runs(settings: LearnSettings, drawn: SampledRuns, policy: Any, mode: str) -> Episodes:
    """Return the runs of an iteration, steered by the policy as it is."""

    def start(fair: np.ndarray) -> np.ndarray:
        rates = fair if drawn.tuned is None else drawn.tuned.rate
        share = settings.default_share
        return start_values(drawn.offered, rates, drawn.decades, drawn.rng, share)

    return rollout(
        drawn.programs,
        drawn.spec,
        policy,
        drawn.task_keys,
        drawn.run_keys,
        start,
        drawn.total_steps,
        seed=int(drawn.rng.integers(2**31)),
        mode=mode,
        missing=drawn.missing,
        centre=settings.start_centre,
        columns=columns_of(drawn.spec, drawn.offered),
        ranges=drawn.ranges,
    )


def _reinforced(
    settings: LearnSettings, learner: Learner, drawn: SampledRuns, iteration: int
) -> tuple[Learner, dict[str, float], Episodes]:
    """Return the learner after one batch of runs, by PPO."""
    episodes = _runs(settings, drawn, learner.policy, "sample")
    batch, figures = learning_batch(settings, learner, episodes, drawn.decades)
    remaining = 1.0 - iteration / settings.iterations
    updated, seen = update(
        learner, settings.ppo, batch, seed=(settings.seed, iteration, 7), remaining=remaining
    )
    if iteration < settings.critic_first:
        updated = updated._replace(policy=learner.policy, average=learner.average)
    return updated, {**figures, **seen}, episodes


def _imitated(
    settings: LearnSettings,
    learner: Imitator,
    drawn: SampledRuns,
    memory: list[Lessons],
    iteration: int,
) -> tuple[Imitator, dict[str, float], Episodes]:
    """Return the imitator after one batch of runs, which joins the memory."""
    how = settings.imitation
    assert how is not None
    assert drawn.tuned is not None
    episodes = _runs(settings, drawn, learner.policy, STEERING)
    lessons = lessons_of(
        episodes,
        drawn.spec,
        total_steps=drawn.total_steps,
        tuned=drawn.tuned,
        decades=drawn.decades,
        ranges=drawn.ranges,
        first=learner.first,
        pad_to=max(settings.decisions),
    )
    unseen = unseen_cost(learner, how, lessons)
    memory.append(lessons)
    del memory[: -how.memory]
    updated, seen = imitate(
        learner,
        how,
        memory,
        seed=(settings.seed, iteration, 9),
        remaining=1.0 - iteration / settings.iterations,
        iteration=iteration,
    )
    reward, _ = paid(episodes)
    if iteration % settings.reuse == 0:  # else the tasks were learned from already
        seen["cost_unseen"] = unseen
    return updated, return_figures(episodes, reward.sum(0), drawn.decades) | seen, episodes


def _begin_from(
    place: Path, settings: LearnSettings, fresh: Any
) -> tuple[Any, dict[str, Any], np.ndarray]:
    """Return learner, counts and feature statistics of a training's folder or a policy file."""
    if place.is_file():
        return _begin_from_policy(place, settings, fresh)
    earlier = load_checkpoint(place, fresh)
    if earlier is None:
        raise SpecError(
            f"{place} holds no training to begin from; name its --out folder or a policy file"
        )
    stage = earlier.learner._replace(moments=fresh.moments)
    if settings.imitation is not None:
        stage = begin_imitation(earlier.learner.average)
    return stage, earlier.counts, earlier.statistics


def _begin_from_policy(
    file: Path, settings: LearnSettings, fresh: Any
) -> tuple[Any, dict[str, Any], np.ndarray]:
    policy = read_policy(file)
    made_for = control_spec(settings, policy.spec.hyperparameters, policy.spec.decisions)
    # What the guard undoes may differ: this training teaches the policy to live with it.
    may_differ = {name: getattr(made_for, name) for name in UNDOING}
    version = max(policy.spec.version, made_for.version)
    made_for.require_compatible(replace(policy.spec, version=version, **may_differ))
    policy = replace(policy, parameters=_widened(policy.parameters, token_size(made_for)))
    shapes = {name: array.shape for name, array in policy.parameters.items()}
    if shapes != {name: array.shape for name, array in fresh.policy.items()}:
        own = policy.parameters["token_b"].shape[0]
        raise SpecError(f"width: {settings.width} is not the {own} of {file}; set width = {own}")
    if policy.spec.undo and "undo" not in settings.spec:
        raise SpecError(
            f"spec.undo: {file} was made with {policy.spec.undo:g}, these settings name none; "
            f"say undo = {policy.spec.undo:g} under [spec] to keep it, or 0 to learn without"
        )
    arrays = {name: jnp.asarray(array) for name, array in policy.parameters.items()}
    about = policy.about
    counts = {
        "runs": int(about.get("runs", 0)),
        "steps": int(about.get("inner_steps", 0)),
        "seconds": 60.0 * float(about.get("minutes", 0)),
    }
    statistics = np.zeros((2, len(GLOBAL_FEATURES)))
    if policy.novelty:
        mean = policy.novelty["novelty_mean"].astype(float)
        statistics = np.stack([mean, mean**2 + spread_of(policy.novelty["novelty_scale"]) ** 2])
    if settings.imitation is not None:
        return begin_imitation(arrays), counts, statistics
    return fresh._replace(policy=arrays, average=arrays), counts, statistics


def _widened(parameters: Mapping[str, np.ndarray], block: int) -> dict[str, np.ndarray]:
    """Return arrays for longer token blocks, which answer as before: what is new has no weight."""
    more = block - token_block(parameters)
    rows = np.pad(parameters["token_w"], ((0, max(more, 0)), (0, 0)))
    return {**parameters, "token_w": rows}


def _check_folder(place: Path, now: dict[str, Any], *, resume: bool) -> None:
    """Raise if a folder holds a training with other settings, or one that is not to go on."""
    kept = place / "settings.json"
    if kept.exists() and not _is_same(json.loads(kept.read_text()), now):
        raise SpecError(f"{place} holds a training with other settings; choose another --out")
    if checkpoint_file(place) and not resume:
        raise SpecError(f"{place} holds a training already; --resume continues it")


def _begun(
    resumed: Path | None,
    settings: LearnSettings,
    fresh: Any,
    initial: str | Path | None,
    remember: Sequence[str | Path],
) -> tuple[Any, int, dict[str, Any], np.ndarray, list[Lessons]]:
    """Return learner, iterations done, counts, feature statistics and memory at the beginning.

    A checkpoint in ``resumed`` comes first: what the training began from is in it.
    """
    state = None if resumed is None else load_checkpoint(resumed, fresh)
    if state is not None:
        memory = read_lessons(state.memory)
        return state.learner, state.iteration, state.counts, state.statistics, memory
    learner, statistics = fresh, np.zeros((2, len(GLOBAL_FEATURES)))
    counts: dict[str, Any] = {"runs": 0, "steps": 0, "seconds": 0.0}
    if initial is not None:
        learner, counts, statistics = _begin_from(Path(initial), settings, fresh)
        counts["seconds_before"] = counts["seconds"]
    return learner, 0, counts, statistics, remembered_by(settings, remember)


def learn(
    settings: LearnSettings,
    folder: str | Path,
    *,
    resume: bool = False,
    initial: str | Path | None = None,
    remember: Sequence[str | Path] = (),
    minutes: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    checkpoint_every: int = 20,
) -> Path:
    """Train a policy and return the file that it was written to.

    The folder gets ``settings.json``, ``curves.jsonl`` (a line an iteration), a ``checkpoint`` file
    and ``NAME.safetensors``. A killed training is continued from its last checkpoint with
    ``resume`` and ends with the same arrays as an uninterrupted one.

    Args:
        settings: What to train.
        folder: Where to keep it; made if missing.
        resume: Continue what is there.
        initial: What this training begins from, as a second stage with settings of its own: the
            folder of an earlier one of the same kind (its policy and critic; imitation takes the
            averaged policy) or a policy file (its policy, with a fresh critic; see
            ``critic_first``; ``undo`` may differ from its own). Its runs and seconds are counted
            in.
        remember: Folders of trainings by imitation whose remembered runs this one begins with.
            What it learns is limited by how many tasks it has seen, not by the network. A
            training that is resumed has them already and does not look at this.
        minutes: Stop after this time, over all sessions, that of ``initial`` left out; None: after
            ``settings.iterations``.
        on_progress: Told after each iteration.
        checkpoint_every: Iterations between checkpoints.

    Raises:
        SpecError: The folder holds a training with other settings, or one and not ``resume``;
            ``initial`` holds nothing to begin from, or a policy of another contract; a folder of
            ``remember`` holds no runs, or runs that these settings do not fit.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    written = json.dumps(asdict(settings), sort_keys=True, default=list)
    kept = place / "settings.json"
    _check_folder(place, json.loads(written), resume=resume)
    variants = all_variants(settings)
    fresh = _initial(settings, count_properties(variants[0]))
    learner, first, counts, statistics, memory = _begun(
        place if resume else None, settings, fresh, initial, remember
    )
    kept.write_text(written)  # not before all that may be refused
    before = counts.get("seconds_before")
    began = time.monotonic() - counts["seconds"]
    tuned = TunedRates()
    for iteration in range(first, settings.iterations):
        drawn = sample_runs(settings, variants, iteration, tuned)
        if isinstance(learner, Imitator):
            learner, figures, episodes = _imitated(settings, learner, drawn, memory, iteration)
        else:
            learner, figures, episodes = _reinforced(settings, learner, drawn, iteration)
        statistics = _follow(statistics, episodes.observation, iteration, before is not None)
        counts["runs"] += settings.tasks * settings.siblings
        counts["steps"] += drawn.total_steps * settings.tasks * settings.siblings
        counts["seconds"] = time.monotonic() - began
        row = Progress(
            iteration + 1,
            settings.iterations,
            counts["seconds"],
            counts["runs"],
            counts["steps"],
            figures,
        )
        line = {"iteration": iteration + 1, "seconds": counts["seconds"], **figures}
        with (place / "curves.jsonl").open("a") as curves:
            curves.write(f"{json.dumps(line)}\n")
        if on_progress is not None:
            on_progress(row)
        over = minutes is not None and counts["seconds"] - (before or 0.0) > minutes * 60
        if over or (iteration + 1) % checkpoint_every == 0 or iteration + 1 == settings.iterations:
            remembered = write_lessons(memory)
            state = Checkpoint(learner, iteration + 1, counts, statistics, remembered)
            save_checkpoint(place, state)
            export_policy(settings, learner.average, statistics, counts, place)
        if over:
            break
    return place / f"{settings.name}.safetensors"


def _is_same(kept: dict[str, Any], now: dict[str, Any]) -> bool:
    """Return whether kept settings are those of now; what is newer than they counts as left out."""
    usual = json.loads(json.dumps(asdict(LearnSettings()), default=list))
    whole = {**usual, **kept}
    if whole["imitation"] is not None:
        whole["imitation"] = {**asdict(ImitationSettings()), **whole["imitation"]}
    return whole == now


def _follow(
    statistics: np.ndarray, observation: np.ndarray, iteration: int, known: bool
) -> np.ndarray:
    """Return running mean and mean square (2, n) of the global features, recent ones heavier."""
    flat = observation[..., : len(GLOBAL_FEATURES)].reshape(-1, len(GLOBAL_FEATURES)).astype(float)
    now = np.stack([flat.mean(0), (flat**2).mean(0)])
    weight = 0.02 if known else max(1.0 / (iteration + 1), 0.02)
    return np.asarray(statistics + weight * (now - statistics))
