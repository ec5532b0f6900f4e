"""Meta-training: from nothing to a policy, on simulated fine-tuning runs (`trimtab learn`)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.agents.learn_settings import FamilyShare, LearnSettings
from trimtab.agents.policy_network import critic_inputs, init_critic, init_policy, value
from trimtab.agents.proximal import Learner, advantages, optimiser, update
from trimtab.agents.rollout import Episodes, columns_of, rollout
from trimtab.agents.shipping import spread_of, write_trained
from trimtab.agents.starts import TunedRates, drawn_decades, start_values
from trimtab.controllers.learned import read_policy
from trimtab.core.errors import SpecError
from trimtab.core.features import GLOBAL_FEATURES, TOKEN_FEATURES
from trimtab.core.hyperparameters import KINDS, Hyperparameter
from trimtab.core.rewards import potential
from trimtab.core.spec import ControlSpec
from trimtab.envs.simulators.batch import programs
from trimtab.envs.simulators.family import FamilyOptions
from trimtab.envs.simulators.narrowed import narrowed
from trimtab.envs.simulators.registry import make_family
from trimtab.envs.simulators.tasks import QUADRATIC, compiled_family

__all__ = [
    "Progress",
    "control_spec",
    "family_of",
    "final_correction",
    "learn",
]


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


def family_of(share: FamilyShare, spec_names: Sequence[str]) -> Any:
    """Return the family of a share, offering the hyperparameters that are steered; none: all."""
    options = {"hyperparameters": tuple(spec_names), **share.options}
    options["optimisers"] = tuple(options.get("optimisers", ()))
    options["hyperparameters"] = tuple(options["hyperparameters"]) or None
    if share.name == QUADRATIC:
        return narrowed(compiled_family(share.name), spec_names)
    return make_family(share.name, FamilyOptions(**options))


def control_spec(settings: LearnSettings, items: Sequence[Hyperparameter], k: int) -> ControlSpec:
    """Return the spec for runs of ``k`` decisions over a family's hyperparameters."""
    fields = {name: item for name, item in settings.spec.items() if name != "hyperparameters"}
    return ControlSpec(
        hyperparameters=tuple(items), decisions=k, **{"reward": "best-so-far", **fields}
    )


def _initial(settings: LearnSettings, n_properties: int) -> Learner:
    n_token = len(TOKEN_FEATURES) + len(KINDS)
    inputs = len(GLOBAL_FEATURES) + n_token + n_properties + 4
    policy = init_policy(settings.seed, settings.width)
    critic = init_critic(settings.seed + 1, inputs)
    moments = optimiser(settings.ppo).init((policy, critic))
    return Learner(policy, critic, moments, policy)


@dataclass(frozen=True)
class _Bucket:
    """One shape bucket; family and programs are made when it is first drawn."""

    share: float
    begin: float
    item: FamilyShare
    names: tuple[str, ...]
    variant: int

    def load(self) -> tuple[Any, Any]:
        family = family_of(self.item, self.names)
        return family, programs(family, self.variant)


def _all_buckets(settings: LearnSettings) -> list[_Bucket]:
    names = tuple(settings.spec["hyperparameters"])
    buckets: list[_Bucket] = []
    for item in settings.families:
        variants = item.variants or tuple(range(family_of(item, names).n_variants))
        share = item.share / len(variants)
        buckets += [_Bucket(share, item.begin, item, names, variant) for variant in variants]
    if all(bucket.begin > 0 for bucket in buckets):
        raise SpecError("families: none begins at 0; let one be drawn from the start")
    return buckets


def _count_properties(bucket: _Bucket) -> int:
    family = family_of(bucket.item, bucket.names)
    draw = family.draw(bucket.variant, jax.random.key(0))
    return int(family.properties(draw).shape[0])


def _iteration(
    settings: LearnSettings,
    buckets: list[_Bucket],
    learner: Learner,
    iteration: int,
    tuned: TunedRates,
) -> tuple[Learner, dict[str, float], Episodes]:
    """Return the learner after one batch of runs."""
    first = iteration - iteration % settings.reuse  # of those that share their tasks
    rng = np.random.default_rng([settings.seed, first])
    progress = first / settings.iterations
    shares = np.array([item.share * (item.begin <= progress) for item in buckets])
    drawn = buckets[rng.choice(len(buckets), p=shares / shares.sum())]
    family, bucket = drawn.load()
    k = int(rng.choice(settings.decisions))
    low, high = np.log(settings.steps_per_decision)
    steps = round(k * float(np.exp(rng.uniform(low, high))))
    items = family.hyperparameters
    if drawn.item.subsets:
        names = drawn.item.subsets[rng.integers(len(drawn.item.subsets))]
        items = tuple(item for item in items if item.name in names)
    spec = control_spec(settings, items, k)
    size = settings.tasks * settings.siblings
    root = jax.random.key(settings.seed)
    key, own = jax.random.fold_in(root, first), jax.random.fold_in(root, iteration)
    task_keys = jnp.repeat(jax.random.split(key, settings.tasks), settings.siblings, axis=0)
    run_keys = jnp.repeat(
        jax.random.split(jax.random.fold_in(own, 1), settings.tasks), settings.siblings, axis=0
    )
    if iteration > first:
        rng = np.random.default_rng([settings.seed, iteration])
    decades, missing = drawn_decades(settings, size, rng)
    offered = family.hyperparameters
    grid_key = jax.random.fold_in(key, 2)
    rates = tuned.of(settings, bucket, spec, offered, task_keys, grid_key, steps)
    episodes = rollout(
        bucket,
        spec,
        learner.policy,
        task_keys,
        run_keys,
        lambda fair: start_values(
            offered, fair if rates is None else rates, decades, rng, settings.default_share
        ),
        steps,
        seed=int(rng.integers(2**31)),
        missing=missing,
        centre=settings.start_centre,
        columns=columns_of(spec, offered),
    )
    batch, figures = _batch(settings, learner, episodes, decades)
    remaining = 1.0 - iteration / settings.iterations
    updated, seen = update(
        learner, settings.ppo, batch, seed=(settings.seed, iteration, 7), remaining=remaining
    )
    if iteration < settings.critic_first:
        updated = updated._replace(policy=learner.policy, average=learner.average)
    return updated, {**figures, **seen, "steps": float(steps * size)}, episodes


def _begin_from(
    place: Path, settings: LearnSettings, fresh: Learner
) -> tuple[Learner, dict[str, Any], np.ndarray]:
    """Return learner, counts and feature statistics of a training's folder or a policy file."""
    from trimtab.agents.checkpoints import load_checkpoint

    if place.is_file():
        return _begin_from_policy(place, settings, fresh)
    earlier = load_checkpoint(place, fresh)
    if earlier is None:
        raise SpecError(
            f"{place} holds no training to begin from; name its --out folder or a policy file"
        )
    stage, _, counts, statistics = earlier
    return stage._replace(moments=fresh.moments), counts, statistics


def _begin_from_policy(
    file: Path, settings: LearnSettings, fresh: Learner
) -> tuple[Learner, dict[str, Any], np.ndarray]:
    policy = read_policy(file)
    made_for = control_spec(settings, policy.spec.hyperparameters, policy.spec.decisions)
    made_for.require_compatible(policy.spec)
    shapes = {name: array.shape for name, array in policy.parameters.items()}
    if shapes != {name: array.shape for name, array in fresh.policy.items()}:
        own = policy.parameters["token_b"].shape[0]
        raise SpecError(f"width: {settings.width} is not the {own} of {file}; set width = {own}")
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
    return fresh._replace(policy=arrays, average=arrays), counts, statistics


def final_correction(episodes: Episodes) -> np.ndarray:
    """Return (B,) what turns the validation return into that of the selection split, in nats."""
    initial = episodes.val_loss[0]
    on_validation = potential(episodes.best_val, initial, np)
    on_selection = potential(episodes.selection_loss, initial, np)
    return np.asarray(on_validation - on_selection)


def _batch(
    settings: LearnSettings,
    learner: Learner,
    episodes: Episodes,
    decades: np.ndarray,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return what the update needs, and figures for the display."""
    reward = episodes.reward * episodes.alive
    # The correction is paid by the last decision that a run made.
    last = np.maximum(episodes.alive.sum(0).astype(int) - 1, 0)
    reward[last, np.arange(reward.shape[1])] += np.clip(final_correction(episodes), -2, 2)
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
    low, high = decades < -1, decades > 1
    figures = {
        "return": float(total.mean()),
        "return_low": float(total[low].mean()) if low.any() else float("nan"),
        "return_high": float(total[high].mean()) if high.any() else float("nan"),
        "rollbacks": float(episodes.rollbacks.mean()),
        "diverged": float(episodes.diverged.mean()),
        "restored": float(episodes.restored.sum(0).mean()),
        "spread": float(spread.mean()),
    }
    return batch, figures


def learn(
    settings: LearnSettings,
    folder: str | Path,
    *,
    resume: bool = False,
    initial: str | Path | None = None,
    minutes: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    checkpoint_every: int = 20,
) -> Path:
    """Train a policy and return the file that it was written to.

    The folder gets ``settings.json``, ``curves.jsonl`` (a line an iteration), ``checkpoint`` files
    and ``NAME.safetensors``. A killed training is continued from its last checkpoint with
    ``resume`` and ends with the same arrays as an uninterrupted one.

    Args:
        settings: What to train.
        folder: Where to keep it; made if missing.
        resume: Continue what is there.
        initial: What this training begins from, as a second stage with settings of its own: the
            folder of an earlier one (its policy and critic) or a policy file (its policy, with a
            fresh critic; see ``critic_first``). Its runs and seconds are counted in.
        minutes: Stop after this time, over all sessions, that of ``initial`` left out; None: after
            ``settings.iterations``.
        on_progress: Told after each iteration.
        checkpoint_every: Iterations between checkpoints.

    Raises:
        SpecError: The folder holds a training with other settings, or one and not ``resume``;
            ``initial`` holds nothing to begin from, or a policy of another contract.
    """
    from trimtab.agents.checkpoints import load_checkpoint, save_checkpoint

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    written = json.dumps(asdict(settings), sort_keys=True, default=list)
    kept = place / "settings.json"
    if kept.exists() and json.loads(kept.read_text()) != json.loads(written):
        raise SpecError(f"{place} holds a training with other settings; choose another --out")
    if (place / "checkpoint.json").exists() and not resume:
        raise SpecError(f"{place} holds a training already; --resume continues it")
    buckets = _all_buckets(settings)
    learner = _initial(settings, _count_properties(buckets[0]))
    state = load_checkpoint(place, learner) if resume else None
    first, statistics = 0, np.zeros((2, len(GLOBAL_FEATURES)))
    counts: dict[str, Any] = {"runs": 0, "steps": 0, "seconds": 0.0}
    if state is not None:
        learner, first, counts, statistics = state
    elif initial is not None:
        learner, counts, statistics = _begin_from(Path(initial), settings, learner)
        counts["seconds_before"] = counts["seconds"]
    kept.write_text(written)  # not before all that may be refused
    before = counts.get("seconds_before")
    began = time.monotonic() - counts["seconds"]
    tuned = TunedRates()
    for iteration in range(first, settings.iterations):
        learner, figures, episodes = _iteration(settings, buckets, learner, iteration, tuned)
        statistics = _follow(statistics, episodes.observation, iteration, before is not None)
        counts["runs"] += settings.tasks * settings.siblings
        counts["steps"] += int(figures.pop("steps"))
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
            save_checkpoint(place, learner, iteration + 1, counts, statistics)
            write_trained(settings, learner, statistics, counts, place)
        if over:
            break
    return place / f"{settings.name}.safetensors"


def _follow(
    statistics: np.ndarray, observation: np.ndarray, iteration: int, known: bool
) -> np.ndarray:
    """Return running mean and mean square (2, n) of the global features, recent ones heavier."""
    flat = observation[..., : len(GLOBAL_FEATURES)].reshape(-1, len(GLOBAL_FEATURES)).astype(float)
    now = np.stack([flat.mean(0), (flat**2).mean(0)])
    weight = 0.02 if known else max(1.0 / (iteration + 1), 0.02)
    return np.asarray(statistics + weight * (now - statistics))
