"""Learning from what simulations know: a policy that imitates the tuned rate it cannot see.

On a simulated task a grid of reference runs tells what each peak learning rate brings. From
the runs that the policy steered itself, every decision is then answered for: the expected move has
to lead where the grid's loss is low. This is differentiable imitation learning with a cost to go
(AggreVaTeD: Sun et al., 2017, arXiv 1703.01030), on all the runs that are remembered (as in
DAgger: Ross et al., 2011, arXiv 1011.0686); the cost to go of a decision is taken to be that of
staying at its rate. In use there is no grid: what the policy keeps is how the runs looked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trimtab.agents.training.checkpoints import load_memory
from trimtab.agents.training.policy_network import all_logits
from trimtab.agents.training.rollout import Episodes
from trimtab.agents.training.settings import ImitationSettings, LearnSettings
from trimtab.agents.training.task_sampling import Tuned, control_spec
from trimtab.core.carry import entry_of
from trimtab.core.errors import SpecError
from trimtab.core.features import observation_size
from trimtab.core.hyperparameters import resolve_hyperparameters
from trimtab.core.spec import MOVES, ControlSpec, short_windows, window_ends

__all__ = [
    "Imitator",
    "Lessons",
    "begin_imitation",
    "cost_at",
    "imitate",
    "lessons_of",
    "read_lessons",
    "remembered_by",
    "unseen_cost",
    "write_lessons",
]

_MAX_GRAD_NORM = 0.5
_WARM_UP = 8  # iterations with few lessons to draw from
_FEW_UPDATES = 4
_PROBE_WEIGHT = 2.0  # short windows are few steps, and what they find out serves all others
_LEAST = -20.0  # log-probability
_TOLERANCE = 1e-3  # decades
_NO_MOVE = MOVES.index(0.0)
_BY_DECISION = ("observation", "before", "weight", "restore")  # (K, B, ...); the others (B, ...)


class Imitator(NamedTuple):
    """Everything that imitation changes, and the policy that it began from.

    Attributes:
        policy: The policy's arrays.
        moments: State of Adam.
        average: Polyak average of the policy's arrays, which is what is shipped.
        first: The arrays that training began from, whose restores are kept.
    """

    policy: Any
    moments: Any
    average: Any
    first: Any


class Lessons(NamedTuple):
    """What B steered runs of K decisions teach; float32.

    Attributes:
        observation: (K, B, n) what was seen.
        before: (K, B) where the rate would be without the decision's move, in decades off the
            fair rate.
        weight: (K, B) share of the run's steps that the decision answers for; 0 where the guard
            cut the rate or a move was shortened by its bound, and after the run was given up.
        restore: (K, B, 2) log-probabilities of going on and of restoring, to stay with.
        losses: (B, G) log losses of the reference runs along the grid.
        grid: (G,) decades of the grid's points off the fair rate.
        place: (B,) decades of the tuned rate off the fair one.
    """

    observation: Any
    before: Any
    weight: Any
    restore: Any
    losses: Any
    grid: Any
    place: Any


def _transform() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(_MAX_GRAD_NORM), optax.scale_by_adam(eps=1e-5))


def begin_imitation(policy: Mapping[str, Any]) -> Imitator:
    """Return what imitation begins with, from a policy's arrays."""
    arrays = dict(policy)
    return Imitator(arrays, _transform().init(arrays), arrays, arrays)


@jax.jit
def _restore_preferences(policy: Any, observation: jax.Array) -> jax.Array:
    """Return (K, B, 2) log-probabilities of going on and of restoring, for (K, B, n)."""
    return all_logits(policy, observation)[1]


def lessons_of(
    episodes: Episodes,
    spec: ControlSpec,
    *,
    total_steps: int,
    tuned: Tuned,
    decades: np.ndarray,
    ranges: np.ndarray | None = None,
    first: Any,
    pad_to: int,
) -> Lessons:
    """Return what runs under the policy's mean moves teach, padded to ``pad_to`` decisions.

    Args:
        episodes: B runs of one learning rate.
        spec: That they ran under.
        total_steps: Of each run.
        tuned: Of their tasks.
        decades: (B,) by which their starts are off the tuned rate.
        ranges: (B, 2) offsets of the ends of their ranges; None under version 1 of the spec.
        first: The policy whose restores are kept.
        pad_to: Decisions in the arrays.
    """
    ends = window_ends(spec, total_steps)
    front, _ = short_windows(spec, total_steps)
    largest = np.where(np.arange(len(ends)) <= front, 1.0, spec.late_move)[:, None]
    moves = np.interp(episodes.action[..., 0], np.arange(len(MOVES)), MOVES)
    before = episodes.offset[..., 0] - np.clip(moves, -largest, largest)
    fell = before - _placed_before(episodes.offset[..., 0], spec, total_steps, ranges) < -_TOLERANCE
    share = np.diff(ends, prepend=0)[:, None] / total_steps
    kept = np.asarray(_restore_preferences(first, jnp.asarray(episodes.observation)))
    lessons = Lessons(
        episodes.observation,
        before + (tuned.place + decades)[None, :],
        episodes.alive * ~fell * share,
        kept,
        tuned.losses,
        tuned.grid,
        tuned.place,
    )
    return Lessons(
        *(_padded(name, array, pad_to - len(ends)) for name, array in lessons._asdict().items())
    )


def _placed_before(
    offset: np.ndarray, spec: ControlSpec, total_steps: int, ranges: np.ndarray | None
) -> np.ndarray:
    """Return (K, B) offsets before each decision, for offsets (K, B) after it."""
    entry = spec.entry if ranges is None else entry_of(ranges[:, 0], ranges[:, 1], np)[None]
    begins = entry if short_windows(spec, total_steps)[0] else 0.0
    return np.concatenate([np.full_like(offset[:1], begins), offset[:-1]])


def _padded(name: str, array: np.ndarray, more: int) -> np.ndarray:
    """Return an array as float32, with zeros for ``more`` decisions where it counts decisions."""
    if name in _BY_DECISION:
        array = np.pad(array, [(0, more)] + [(0, 0)] * (np.ndim(array) - 1))
    return np.asarray(array, np.float32)


def cost_at(place: Any, lessons: Lessons, distance: Any) -> jax.Array:
    """Return (K, B) what it costs to stay at a rate, in nats.

    It is ``2 log(1 + c / 2) + distance min(d^2, 4 d)`` with c the grid's log loss there above the
    grid's lowest, interpolated linearly and constant beyond the grid, and d the decades off the
    tuned rate. The move that leads there is not cut to the largest one here.

    Args:
        place: (K, B) decades off the fair rate.
        lessons: Of the same runs.
        distance: See `ImitationSettings`.
    """
    grid, losses = lessons.grid, lessons.losses
    at = jnp.clip((place - grid[0]) / (grid[1] - grid[0]), 0.0, len(grid) - 1.0)
    lower = jnp.minimum(jnp.floor(at).astype(jnp.int32), len(grid) - 2)
    along = jnp.broadcast_to(losses[None], (*place.shape, len(grid)))
    below = jnp.take_along_axis(along, lower[..., None], axis=-1)[..., 0]
    above = jnp.take_along_axis(along, lower[..., None] + 1, axis=-1)[..., 0]
    lost = below + (at - lower) * (above - below) - losses.min(-1)[None, :]
    off = place - lessons.place[None, :]
    return 2.0 * jnp.log1p(lost / 2.0) + distance * jnp.minimum(off**2, 4.0 * jnp.abs(off))


def _led_to(policy: Any, lessons: Lessons) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (K, B) decades off the fair rate where a policy leads, and its log-probabilities."""
    moves, restore = all_logits(policy, lessons.observation)
    expected = (jnp.exp(moves) @ jnp.asarray(MOVES, jnp.float32))[..., 0]
    return lessons.before + expected, moves, restore


@jax.jit
def _mean_cost(policy: Any, lessons: Lessons, distance: Any, probe: Any) -> jax.Array:
    place, _, _ = _led_to(policy, lessons)
    judged, weight = _probed(place, lessons, probe)
    cost = cost_at(judged, lessons, distance) * weight
    return cost.sum() / jnp.maximum(lessons.weight.sum(), 1e-6)


def unseen_cost(learner: Imitator, settings: ImitationSettings, lessons: Lessons) -> float:
    """Return the cost in nats of the averaged policy on lessons that it has not learned from.

    Beside the cost on what it remembers, this tells learning from learning by heart.
    """
    there = Lessons(*map(jnp.asarray, lessons))
    return float(_mean_cost(learner.average, there, settings.distance, settings.probe))


def _are_long(weight: jax.Array) -> jax.Array:
    """Return (K, B) whether a decision answers for a long window."""
    return weight > 0.5 * weight.max(0, keepdims=True)


def _left_of_long(weight: jax.Array) -> jax.Array:
    """Return (K, B) share of the run that is left after each window, 0 for short windows."""
    return jnp.where(_are_long(weight), 1.0 - jnp.cumsum(weight, axis=0), 0.0)


def _probed(place: jax.Array, lessons: Lessons, probe: Any) -> tuple[jax.Array, jax.Array]:
    """Return (K, B) places as the cost takes them, and weights; short windows may go higher."""
    probes = (lessons.weight > 0) & ~_are_long(lessons.weight) & (probe > 0)
    weight = jnp.where(probes, _PROBE_WEIGHT * lessons.weight, lessons.weight)
    return jnp.where(probes, place - probe, place), weight


class _Numbers(NamedTuple):
    """What a step of Adam takes from the settings: arguments, so that one program serves all.

    Attributes:
        distance: See `ImitationSettings`, as the next five.
        overshoot: Likewise.
        lasting: Likewise.
        probe: Likewise.
        hold: Likewise.
        restore: Likewise.
        keep: Weight of the old average ...
        follow: And of the policy.
    """

    distance: Any
    overshoot: Any
    lasting: Any
    probe: Any
    hold: Any
    restore: Any
    keep: Any
    follow: Any


def _numbers(settings: ImitationSettings) -> _Numbers:
    given = [getattr(settings, name) for name in _Numbers._fields[:-2]]
    return _Numbers(*map(jnp.float32, (*given, settings.polyak, 1 - settings.polyak)))


def _loss(policy: Any, lessons: Lessons, numbers: _Numbers) -> Any:
    place, moves, restore = _led_to(policy, lessons)
    asked = lessons.weight > 0
    total = jnp.maximum(lessons.weight.sum(), 1e-6)
    judged, weight = _probed(place, lessons, numbers.probe)
    high = asked & (judged > lessons.place[None, :])
    least = jnp.maximum(numbers.overshoot, numbers.lasting * _left_of_long(lessons.weight))
    weight = jnp.maximum(weight, jnp.where(high, least, 0.0)) / total
    cost = (cost_at(judged, lessons, numbers.distance) * weight).sum()
    # Cross entropy; a restore that is masked cannot be strayed from.
    strayed = -(jnp.exp(lessons.restore) * jnp.maximum(restore, _LEAST)).sum(-1)
    strayed = (strayed * asked).sum() / jnp.maximum(asked.sum(), 1)
    off = (judged - lessons.place[None, :]) ** 2 * lessons.weight / total
    held = -moves[0, :, 0, _NO_MOVE].mean()
    total_cost = cost + numbers.restore * strayed + numbers.hold * held
    return total_cost, {"cost": cost, "decades_off": jnp.sqrt(off.sum())}


@jax.jit
def _step(
    policy: Any, moments: Any, average: Any, lessons: Lessons, rate: Any, numbers: _Numbers
) -> Any:
    gradient, seen = jax.grad(_loss, has_aux=True)(policy, lessons, numbers)
    change, moments = _transform().update(gradient, moments)
    policy = jax.tree.map(lambda p, c: p - rate * c, policy, change)
    keep, follow = numbers.keep, numbers.follow
    average = jax.tree.map(lambda a, p: keep * a + follow * p, average, policy)
    return policy, moments, average, seen


def _mixed(memory: Sequence[Lessons], settings: ImitationSettings, generator: Any) -> Lessons:
    """Return lessons of some runs of some remembered iterations, side by side."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in Lessons._fields if name != "grid"}
    for index in generator.choice(len(memory), settings.mixed):
        lessons = memory[index]
        rows = generator.choice(len(lessons.place), settings.runs)
        for name, arrays in parts.items():
            axis = int(name in _BY_DECISION)
            arrays.append(np.take(getattr(lessons, name), rows, axis=axis))
    joined = {
        name: np.concatenate(arrays, axis=int(name in _BY_DECISION))
        for name, arrays in parts.items()
    }
    return Lessons(grid=memory[0].grid, **joined)


def imitate(
    learner: Imitator,
    settings: ImitationSettings,
    memory: Sequence[Lessons],
    *,
    seed: int | tuple[int, ...],
    remaining: float,
    iteration: int,
) -> tuple[Imitator, dict[str, float]]:
    """Return the imitator after an iteration's steps of Adam, and figures of the last one.

    They are its cost in nats and how many decades off the tuned rate it led, root mean square.

    Args:
        learner: Before.
        settings: Of the imitation.
        memory: What is remembered, the oldest first, all of one padded length and one grid.
        seed: Of the choice of runs.
        remaining: Share of training left, 1 at the start; scales the rate to a tenth.
        iteration: From 0; in the first eight, unless more is remembered already, there are few
            steps, and no average yet.
    """
    numbers, generator = _numbers(settings), np.random.default_rng(seed)
    rate = jnp.float32(settings.learning_rate * (0.1 + 0.9 * remaining))
    policy, moments, average, first = learner
    young = iteration < _WARM_UP and len(memory) <= _WARM_UP
    seen: dict[str, Any] = {}
    for _ in range(min(settings.updates, _FEW_UPDATES) if young else settings.updates):
        lessons = _mixed(memory, settings, generator)
        policy, moments, average, seen = _step(policy, moments, average, lessons, rate, numbers)
        average = policy if young else average
    return Imitator(policy, moments, average, first), {k: float(v) for k, v in seen.items()}


def write_lessons(memory: Sequence[Lessons]) -> dict[str, np.ndarray]:
    """Return remembered lessons as named arrays with the iterations in front; `read_lessons`."""
    if not memory:
        return {}
    stacked = (np.stack(arrays) for arrays in zip(*memory, strict=True))
    return dict(zip(Lessons._fields, stacked, strict=True))


def read_lessons(arrays: Mapping[str, np.ndarray]) -> list[Lessons]:
    """Return the lessons that `write_lessons` wrote; none for no arrays."""
    if not arrays:
        return []
    columns = (arrays[name] for name in Lessons._fields)
    return [Lessons(*each) for each in zip(*columns, strict=True)]


def remembered_by(settings: LearnSettings, folders: Sequence[str | Path]) -> list[Lessons]:
    """Return the lessons that other trainings remember, in the order of their folders.

    Args:
        settings: Of the training that begins with them.
        folders: Of trainings by imitation.

    Raises:
        SpecError: A folder holds none, these settings cannot learn from them, would draw the same
            tasks again, or do not remember so many.
    """
    if folders and settings.imitation is None:
        raise SpecError(f"remember: {folders[0]} is of use to imitation only; add [imitation]")
    named = settings.spec["hyperparameters"]
    fields = observation_size(control_spec(settings, resolve_hyperparameters(named), 1))
    expected = (max(settings.decisions), settings.tasks * settings.siblings, fields)
    grid = np.linspace(-1, 1, settings.siblings) * settings.grid_decades
    memory: list[Lessons] = []
    for folder in folders:
        _check_other_tasks(settings, Path(folder))
        lessons = read_lessons(load_memory(Path(folder)))
        found = lessons[0].observation.shape
        if found != expected:
            raise SpecError(
                f"remember: the runs of {folder} have shape {found} (decisions, runs, features), "
                f"these settings {expected}; give settings of the same shape"
            )
        if len(lessons[0].grid) != len(grid):
            raise SpecError(
                f"remember: the tasks of {folder} have {len(lessons[0].grid)} siblings, these "
                f"settings {settings.siblings}; set siblings to it"
            )
        if not np.allclose(lessons[0].grid, grid, atol=1e-5):
            raise SpecError(
                f"remember: the runs of {folder} have a grid of up to {lessons[0].grid[-1]:g} "
                f"decades, these settings {settings.grid_decades:g}; set grid_decades to it"
            )
        memory += lessons
    most = settings.imitation.memory if settings.imitation is not None else 0
    if folders and len(memory) >= most:
        raise SpecError(
            f"imitation.memory: {most} iterations are remembered, and {len(memory)} are there to "
            "begin with; set it above that"
        )
    return memory


def _check_other_tasks(settings: LearnSettings, folder: Path) -> None:
    """Raise if a training drew the tasks that these settings will draw."""
    kept = folder / "settings.json"
    if kept.exists() and json.loads(kept.read_text()).get("seed") == settings.seed:
        raise SpecError(
            f"remember: {folder} has seed {settings.seed} as well, and thereby the same tasks; "
            "give another seed"
        )
