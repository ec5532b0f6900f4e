"""Evaluation in rings: how a policy does on simulated tasks that it never trained on.

Each task gets a tuned learning rate (32-point grid, 3 seeds), a pool of 64 reference runs, and for
each start factor and seed a steered run and every control. Rows are kept as they come, so that an
interrupted evaluation goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.agents.learn_settings import FamilyShare
from trimtab.agents.meta_training import family_of
from trimtab.agents.ring_figures import FACTORS, figures
from trimtab.agents.ring_files import kept_rows, policy_identity, write_parquet
from trimtab.agents.rollout import STEERING, Episodes, fair_lr, rollout
from trimtab.agents.scheduled import lr_finder_runs, race_runs, scheduled_runs
from trimtab.controllers.learned import PolicyFile
from trimtab.core.errors import unknown_name
from trimtab.core.spec import ControlSpec, window_ends
from trimtab.envs.simulators.batch import Programs, programs

__all__ = [
    "RINGS",
    "RingSettings",
    "evaluate_policy",
    "ring_definitions",
    "rings_hash",
]

RINGS: tuple[str, ...] = ("a", "b", "c")

_GRID = np.linspace(-2.5, 2.5, 32)
_GRID_SEEDS, _POOL, _SEEDS = 3, 64, 2
_OTHER_ORDER = 700  # added to a seed: the same start with another data order
_BATCH = 32  # tasks at a time
_SIZE = _BATCH * len(FACTORS) * _SEEDS  # runs at a time


@dataclass(frozen=True)
class RingSettings:
    """What is evaluated.

    Attributes:
        ring: ``"a"``, ``"b"`` or ``"c"``.
        tasks: Number of tasks.
        seed: First task; below 1,000,000 for development, from there on for reports.
    """

    ring: str
    tasks: int = 256
    seed: int = 0


class _Bucket(NamedTuple):
    """One architecture of a ring with its length of run."""

    number: int
    family: Any
    programs: Programs
    steps: int
    decisions: int


def ring_definitions() -> dict[str, Any]:
    """Return the content of ``rings.toml``."""
    return tomllib.loads((Path(__file__).parent / "rings.toml").read_text())


def rings_hash() -> str:
    """Return 16 hexadecimal digits that name the rings' definition."""
    return hashlib.sha256((Path(__file__).parent / "rings.toml").read_bytes()).hexdigest()[:16]


def _buckets(ring: str, names: tuple[str, ...]) -> list[_Bucket]:
    known = ring_definitions()
    if ring not in known:
        raise unknown_name("ring", ring, known)
    buckets: list[_Bucket] = []
    for entry in known[ring]["families"]:
        share = FamilyShare(entry["name"], options=entry.get("options", {}))
        family = family_of(share, names)
        for variant in entry["variants"]:
            buckets.append(
                _Bucket(
                    len(buckets),
                    family,
                    programs(family, variant),
                    int(entry["steps"]),
                    int(entry["decisions"]),
                )
            )
    return buckets


def _keys(seeds: np.ndarray, salt: int) -> jax.Array:
    """Return keys of (n,) whole numbers, apart for each salt."""
    return jax.vmap(lambda s: jax.random.fold_in(jax.random.key(salt), s))(
        jnp.asarray(seeds, jnp.uint32)
    )


class _Prepared(NamedTuple):
    tasks: np.ndarray  # (B,)
    factors: np.ndarray  # (B,)
    seeds: np.ndarray  # (B,)
    values: np.ndarray  # (B, H)
    task_keys: jax.Array
    run_keys: jax.Array


def _prepared(
    bucket: _Bucket,
    tasks: np.ndarray,
    factors: np.ndarray,
    seeds: np.ndarray,
    lr: np.ndarray,
) -> _Prepared:
    rest = [item.default for item in bucket.family.hyperparameters[1:]]
    values = np.column_stack([lr, *[np.full(len(lr), value) for value in rest]])
    return _Prepared(
        tasks,
        factors,
        seeds,
        values.astype(np.float32),
        _keys(tasks, 11),
        _keys(tasks * 1009 + seeds, 13),
    )


def _picked(field: Any, index: np.ndarray) -> Any:
    return field[index]


def _slices(prepared: _Prepared) -> Iterator[tuple[int, _Prepared]]:
    """Yield pieces of `_SIZE` runs, the last one filled up, so that one compilation serves all."""
    total = len(prepared.tasks)
    for first in range(0, total, _SIZE):
        index = np.minimum(np.arange(first, first + _SIZE), total - 1)
        yield min(_SIZE, total - first), jax.tree.map(partial(_picked, index=index), prepared)


def _plain(
    bucket: _Bucket, ends: np.ndarray, prepared: _Prepared, how: str
) -> list[dict[str, Any]]:
    """Return rows of any number of runs without a policy."""
    rows: list[dict[str, Any]] = []
    for count, piece in _slices(prepared):
        rows += _plain_rows(bucket, ends, piece, how)[:count]
    return rows


def _plain_rows(
    bucket: _Bucket, ends: np.ndarray, prepared: _Prepared, how: str
) -> list[dict[str, Any]]:
    """Return rows of `_SIZE` runs: pool, grid, zero, floor, race or lr-finder."""
    runs, initial = bucket.programs.prepare(prepared.task_keys, prepared.run_keys)
    extra = 0
    if how == "race":
        outcome, extra = race_runs(
            bucket.programs, runs, np.asarray(initial), prepared.values, ends
        )
    elif how == "lr-finder":
        outcome = lr_finder_runs(bucket.programs, runs, np.asarray(initial), prepared.values, ends)
    else:
        outcome = scheduled_runs(bucket.programs, runs, np.asarray(initial), prepared.values, ends)
    shown = np.asarray(getattr(runs.draw, "n_validation", np.zeros(len(prepared.tasks))))
    whole = 32 * bucket.steps + (len(ends) + 1) * shown / 3
    spent = (whole + extra * shown / 3) / whole
    return [
        {
            "task": int(prepared.tasks[i]),
            "bucket": bucket.number,
            "method": how,
            "factor": float(prepared.factors[i]),
            "seed": int(prepared.seeds[i]),
            "validation": float(outcome.validation[i]),
            "test": float(outcome.test[i]),
            "accuracy": float(outcome.accuracy[i]),
            "spent": float(spent[i]),
            "rollbacks": 0.0,
            "diverged": float(outcome.diverged[i]),
            "frozen": 0.0,
            "residual_use": 0.0,
            "lr": float(outcome.lr[i]),
        }
        for i in range(len(prepared.tasks))
    ]


def _steered(
    bucket: _Bucket,
    spec: ControlSpec,
    parameters: Mapping[str, Any],
    prepared: _Prepared,
    method: str,
    aside: Any = None,
) -> tuple[list[dict[str, Any]], Episodes]:
    """Return rows of steered runs, and the runs themselves."""
    mode = {"trimtab": STEERING, "shuffled": "shuffled", "open-loop": "fixed"}[method]
    episodes = rollout(
        bucket.programs,
        spec,
        dict(parameters),
        prepared.task_keys,
        prepared.run_keys,
        lambda _: prepared.values,
        bucket.steps,
        mode=mode,
        aside=aside,
    )
    used = np.abs(episodes.offset).max(-1) > np.log10(1.05)
    rows = [
        {
            "task": int(prepared.tasks[i]),
            "bucket": bucket.number,
            "method": method,
            "factor": float(prepared.factors[i]),
            "seed": int(prepared.seeds[i]),
            "validation": float(episodes.best_val[i]),
            "test": float(episodes.test_loss[i]),
            "accuracy": float(episodes.test_accuracy[i]),
            "spent": float(episodes.spent[i]),
            "rollbacks": float(episodes.rollbacks[i]),
            "diverged": float(episodes.diverged[i]),
            "frozen": float(episodes.novelty[:, i].any()),
            "residual_use": float(used[:, i].mean()),
            "lr": float(prepared.values[i, 0]),
        }
        for i in range(len(prepared.tasks))
    ]
    return rows, episodes


def _tuned(
    bucket: _Bucket, ends: np.ndarray, tasks: np.ndarray
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return each task's best learning rate by mean validation, and its three runs' rows."""
    nothing = np.zeros(len(tasks))
    _, first = next(_slices(_prepared(bucket, tasks, nothing, nothing.astype(int), nothing)))
    runs, _ = bucket.programs.prepare(first.task_keys, first.run_keys)
    centre = fair_lr(bucket.programs, runs)[: len(tasks)]
    many = np.tile(np.repeat(tasks, _GRID_SEEDS), len(_GRID))
    seeds = np.tile(np.arange(900, 900 + _GRID_SEEDS), len(tasks) * len(_GRID))
    decades = np.repeat(_GRID, len(tasks) * _GRID_SEEDS)
    lr = np.tile(np.repeat(centre, _GRID_SEEDS), len(_GRID)) * 10.0**decades
    prepared = _prepared(bucket, many, np.full(len(many), np.nan), seeds, lr)
    rows = _plain(bucket, ends, prepared, "tuned")
    shape = (len(_GRID), len(tasks), _GRID_SEEDS)
    losses = np.array([row["validation"] for row in rows]).reshape(shape).mean(-1)
    chosen = np.argmin(np.where(np.isfinite(losses), losses, np.inf), axis=0)
    place = np.arange(len(rows)).reshape(shape)
    kept = [rows[i] for index, point in enumerate(chosen) for i in place[point, index]]
    return centre * 10.0 ** _GRID[chosen], kept


def _spec(policy: PolicyFile, bucket: _Bucket) -> ControlSpec:
    return replace(
        policy.spec, hyperparameters=bucket.family.hyperparameters, decisions=bucket.decisions
    )


def _crossed(bucket: _Bucket, tasks: np.ndarray, best: np.ndarray) -> _Prepared:
    """Return every task at every start factor and seed."""
    many = np.repeat(tasks, len(FACTORS) * _SEEDS)
    factors = np.tile(np.repeat(FACTORS, _SEEDS), len(tasks))
    seeds = np.tile(np.arange(_SEEDS), len(FACTORS) * len(tasks))
    return _prepared(bucket, many, factors, seeds, np.repeat(best, len(FACTORS) * _SEEDS) * factors)


def _unsteered_rows(
    bucket: _Bucket, ends: np.ndarray, tasks: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Yield what does not depend on a policy: tuned rate, pool, reference, race, range test."""
    best, rows = _tuned(bucket, ends, tasks)
    yield from rows
    drawn = 10.0 ** np.random.default_rng(tasks.tolist()).uniform(-2, 2, (len(tasks), _POOL))
    lr = np.repeat(best, _POOL) * drawn.reshape(-1)
    seeds = np.tile(np.arange(_POOL) + 500, len(tasks))
    many = np.repeat(tasks, _POOL)
    yield from _plain(bucket, ends, _prepared(bucket, many, drawn.reshape(-1), seeds, lr), "pool")
    crossed = _crossed(bucket, tasks, best)
    for how in ("zero", "race", "lr-finder"):
        yield from _plain(bucket, ends, crossed, how)
    tuned = crossed.factors == 1.0
    floor = _prepared(
        bucket,
        crossed.tasks[tuned],
        crossed.factors[tuned],
        crossed.seeds[tuned] + _OTHER_ORDER,
        crossed.values[tuned, 0],
    )
    for row in _plain(bucket, ends, floor, "floor"):
        yield {**row, "seed": row["seed"] - _OTHER_ORDER}


def _policy_rows(
    bucket: _Bucket, policy: PolicyFile, tasks: np.ndarray, best: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Yield what a policy does: steered, shuffled observations, its mean schedule replayed."""
    spec = _spec(policy, bucket)
    whole = _crossed(bucket, tasks, best)
    real = len(whole.tasks)
    _, crossed = next(_slices(whole))
    parameters = {**policy.parameters, **policy.novelty}
    rows, episodes = _steered(bucket, spec, parameters, crossed, "trimtab")
    yield from rows[:real]
    order = np.arange(_SIZE)
    order[:real] = np.random.default_rng(int(tasks[0])).permutation(real)
    yield from _steered(bucket, spec, parameters, crossed, "shuffled", aside=order)[0][:real]
    paths = {f: episodes.offset[:, :real][:, whole.factors == f].mean(1) for f in FACTORS}
    replay = np.stack([paths[factor] for factor in crossed.factors], axis=1)
    yield from _steered(bucket, spec, parameters, crossed, "open-loop", aside=replay)[0][:real]


def evaluate_policy(
    policy: PolicyFile,
    settings: RingSettings,
    folder: str | Path,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Return the figures of one ring; rows are kept in ``folder`` and never made twice.

    Args:
        policy: What is evaluated.
        settings: Ring, tasks and seed.
        folder: Gets ``rows/*.json`` as they come and ``ring-X.parquet`` at the end.
        on_progress: Told tasks done and in all.

    Raises:
        UnknownNameError: There is no such ring.
    """
    place = Path(folder) / f"ring-{settings.ring}-rows"
    place.mkdir(parents=True, exist_ok=True)
    identity = policy_identity(policy)
    names = tuple(item.name for item in policy.spec.hyperparameters)
    buckets = _buckets(settings.ring, names)
    numbers = settings.seed + np.arange(settings.tasks)
    rows: list[dict[str, Any]] = []
    done = 0
    for bucket in buckets:
        ends = window_ends(_spec(policy, bucket), bucket.steps)
        rhythm = hashlib.sha256(ends.tobytes() + rings_hash().encode()).hexdigest()[:8]
        mine = numbers[np.arange(settings.tasks) % len(buckets) == bucket.number]
        for first in range(0, len(mine), _BATCH):
            tasks = mine[first : first + _BATCH]
            part = f"{bucket.number}-{tasks[0]}-{len(tasks)}"
            plain = kept_rows(place / f"{rhythm}-{part}.json", _unsteered_rows, bucket, ends, tasks)
            tuned = {row["task"]: row["lr"] for row in plain if row["method"] == "tuned"}
            best = np.array([tuned[int(task)] for task in tasks])
            steered = kept_rows(
                place / f"{identity}-{rhythm}-{part}.json",
                _policy_rows,
                bucket,
                policy,
                tasks,
                best,
            )
            rows += plain + steered
            done += len(tasks)
            if on_progress is not None:
                on_progress(done, settings.tasks)
    write_parquet(rows, Path(folder) / f"ring-{settings.ring}.parquet")
    return figures(rows)
