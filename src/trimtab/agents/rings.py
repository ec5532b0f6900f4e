"""Evaluation in rings: how a policy does on simulated tasks that it never trained on.

Each task gets a tuned learning rate (32-point grid, 3 seeds), a pool of 64 reference runs, and for
each start factor and seed a steered run and every control. Rows are kept as they come, so that an
interrupted evaluation goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.agents.meta_training import FamilyShare, family_of
from trimtab.agents.ring_figures import FACTORS, figures
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
    "policy_identity",
    "ring_definitions",
    "rings_hash",
]

RINGS: tuple[str, ...] = ("a", "b", "c")

_GRID = np.linspace(-2.5, 2.5, 32)
_GRID_SEEDS, _POOL, _SEEDS = 3, 64, 2
_OTHER_ORDER = 700  # added to a seed: the same start with another data order
_BATCH = 32  # batches are cut to this many tasks, to bound memory


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


def _plain(
    bucket: _Bucket, ends: np.ndarray, prepared: _Prepared, how: str
) -> list[dict[str, Any]]:
    """Return rows of runs without a policy: pool, grid, zero, floor, race or lr-finder."""
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
    runs, _ = bucket.programs.prepare(_keys(tasks, 11), _keys(tasks, 13))
    centre = fair_lr(bucket.programs, runs)
    rows: list[list[dict[str, Any]]] = []
    for point in range(len(_GRID)):
        many = np.repeat(tasks, _GRID_SEEDS)
        seeds = np.tile(np.arange(900, 900 + _GRID_SEEDS), len(tasks))
        lr = np.repeat(centre * 10.0 ** _GRID[point], _GRID_SEEDS)
        prepared = _prepared(bucket, many, np.full(len(many), np.nan), seeds, lr)
        rows.append(_plain(bucket, ends, prepared, "tuned"))
    losses = np.array([[row["validation"] for row in point] for point in rows])
    losses = losses.reshape(len(_GRID), len(tasks), _GRID_SEEDS).mean(-1)
    chosen = np.argmin(np.where(np.isfinite(losses), losses, np.inf), axis=0)
    kept = [
        rows[point][index * _GRID_SEEDS + seed]
        for index, point in enumerate(chosen)
        for seed in range(_GRID_SEEDS)
    ]
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
    for part in range(0, _POOL, 16):
        factors = drawn[:, part : part + 16].reshape(-1)
        seeds = np.tile(np.arange(part, part + 16) + 500, len(tasks))
        lr = np.repeat(best, 16) * factors
        prepared = _prepared(bucket, np.repeat(tasks, 16), factors, seeds, lr)
        yield from _plain(bucket, ends, prepared, "pool")
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
    spec, crossed = _spec(policy, bucket), _crossed(bucket, tasks, best)
    parameters = {**policy.parameters, **policy.novelty}
    rows, episodes = _steered(bucket, spec, parameters, crossed, "trimtab")
    yield from rows
    order = np.random.default_rng(int(tasks[0])).permutation(len(crossed.tasks))
    yield from _steered(bucket, spec, parameters, crossed, "shuffled", aside=order)[0]
    paths = {f: episodes.offset[:, crossed.factors == f].mean(1) for f in FACTORS}
    replay = np.stack([paths[factor] for factor in crossed.factors], axis=1)
    yield from _steered(bucket, spec, parameters, crossed, "open-loop", aside=replay)[0]


def _kept(
    file: Path, make: Callable[..., Iterator[dict[str, Any]]], *arguments: Any
) -> list[dict[str, Any]]:
    """Return the rows in a file, made and written at once if it is not there."""
    if file.exists():
        return list(json.loads(file.read_text()))
    rows = list(make(*arguments))
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(rows))
    partial.replace(file)
    return rows


def policy_identity(policy: PolicyFile) -> str:
    """Return 12 hexadecimal digits that name a policy's arrays."""
    arrays = [
        np.ascontiguousarray(policy.parameters[k]).tobytes() for k in sorted(policy.parameters)
    ]
    return hashlib.sha256(b"".join(arrays)).hexdigest()[:12]


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
            plain = _kept(place / f"{rhythm}-{part}.json", _unsteered_rows, bucket, ends, tasks)
            tuned = {row["task"]: row["lr"] for row in plain if row["method"] == "tuned"}
            best = np.array([tuned[int(task)] for task in tasks])
            steered = _kept(
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
    _write_parquet(rows, Path(folder) / f"ring-{settings.ring}.parquet")
    return figures(rows)


def _write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows)
    for name in ("validation", "test", "accuracy", "spent", "rollbacks", "lr", "factor"):
        index = table.column_names.index(name)
        table = table.set_column(index, name, table.column(name).cast(pa.float32()))
    pq.write_table(table, path, compression="zstd")
