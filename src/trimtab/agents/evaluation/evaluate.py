"""How a policy does on simulated tasks that it never trained on, dealt out in rings.

Each task gets a tuned learning rate (32-point grid, 3 seeds), a pool of 64 reference runs, and for
each start factor and seed a steered run and every control. Rows are kept as they come, so that an
interrupted evaluation goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.agents.evaluation.figures import FACTORS, figures
from trimtab.agents.evaluation.runs import (
    BATCH,
    SIZE,
    EvaluationGroup,
    crossed,
    plain,
    prepared_runs,
    sample_others,
    slices,
    spec_for,
    steered,
    tuned,
)
from trimtab.agents.training.settings import FamilyShare
from trimtab.agents.training.task_sampling import family_of
from trimtab.controllers.learned import PolicyFile, parameters_digest
from trimtab.core.errors import SpecError, unknown_name
from trimtab.core.spec import window_ends
from trimtab.envs.simulators.batch import programs

EVALUATIONS: tuple[str, ...] = ("a", "b", "c", "kinds", "wide")
"""Rings of ``rings.toml``; the last two are for several hyperparameters at a time."""

_POOL = 64
_OTHER_ORDER = 700  # added to a seed: the same start with another data order


@dataclass(frozen=True)
class EvaluationSettings:
    """What is evaluated.

    Attributes:
        ring: One of `EVALUATIONS`.
        tasks: Number of tasks.
        seed: First task; below 1,000,000 for development, from there on for reports.
        hyperparameters: What is steered, the learning rate first; empty: all that the ring's
            families offer. All but the learning rate start by the start distribution, in the pool,
            too.
    """

    ring: str
    tasks: int = 256
    seed: int = 0
    hyperparameters: tuple[str, ...] = ("lr",)


def evaluation_definitions() -> dict[str, Any]:
    """Return the content of ``rings.toml``."""
    return tomllib.loads((Path(__file__).parent / "rings.toml").read_text())


def evaluations_hash() -> str:
    """Return 16 hexadecimal digits that name the rings' definition."""
    return hashlib.sha256((Path(__file__).parent / "rings.toml").read_bytes()).hexdigest()[:16]


def _schedule_digest(ring: str, names: tuple[str, ...], ends: np.ndarray) -> str:
    """Return 8 digits that name what the rows without a policy depend on."""
    told = json.dumps([evaluation_definitions()[ring], names], sort_keys=True)
    return hashlib.sha256(ends.tobytes() + told.encode()).hexdigest()[:8]


def _entries(ring: str) -> list[dict[str, Any]]:
    known = evaluation_definitions()
    if ring not in known:
        raise unknown_name("ring", ring, known)
    return list(known[ring]["families"])


def _family(entry: dict[str, Any], names: tuple[str, ...]) -> Any:
    return family_of(FamilyShare(entry["name"], options=entry.get("options", {})), names)


def check_steered(ring: str, names: tuple[str, ...]) -> None:
    """Check, before anything is computed, that a ring offers what is to be steered.

    Args:
        ring: One of `EVALUATIONS`.
        names: As `EvaluationSettings.hyperparameters`.

    Raises:
        UnknownNameError: There is no such ring, or a family of it lacks a name.
        SpecError: A name is given twice, or the learning rate is not the first.
    """
    for entry in _entries(ring):
        offered = [item.name for item in _family(entry, ()).hyperparameters]
        for name in names:
            if name not in offered:
                raise unknown_name(f"hyperparameter of ring {ring}", name, offered)
    if len(set(names)) < len(names) or names[:1] not in ((), ("lr",)):
        raise SpecError(
            f"hyperparameters: {','.join(names)!r} does not begin with lr, or names one twice; "
            "name each once, lr first"
        )


def _groups(ring: str, names: tuple[str, ...]) -> list[EvaluationGroup]:
    groups: list[EvaluationGroup] = []
    for entry in _entries(ring):
        family = _family(entry, names)
        for variant in entry["variants"]:
            groups.append(
                EvaluationGroup(
                    len(groups),
                    family,
                    programs(family, variant),
                    int(entry["steps"]),
                    int(entry["decisions"]),
                )
            )
    return groups


def _unsteered_rows(
    group: EvaluationGroup, ends: np.ndarray, tasks: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Yield what does not depend on a policy: tuned rate, pool, reference, race, range test."""
    best, rows = tuned(group, ends, tasks)
    yield from rows
    drawn = 10.0 ** np.random.default_rng(tasks.tolist()).uniform(-2, 2, (len(tasks), _POOL))
    many, seeds = np.repeat(tasks, _POOL), np.tile(np.arange(_POOL) + 500, len(tasks))
    lr, factors = np.repeat(best, _POOL) * drawn.reshape(-1), drawn.reshape(-1)
    pool = prepared_runs(group, many, factors, seeds, lr, sample_others(group, many, seeds))
    yield from plain(group, ends, pool, "pool")
    runs = crossed(group, tasks, best, drawn=True)
    for how in ("zero", "race", "lr-finder"):
        yield from plain(group, ends, runs, how)
    at = runs.factors == 1.0
    floor = prepared_runs(
        group,
        runs.tasks[at],
        runs.factors[at],
        runs.seeds[at] + _OTHER_ORDER,
        runs.values[at, 0],
        runs.values[at, 1:],
    )
    for row in plain(group, ends, floor, "floor"):
        yield {**row, "seed": row["seed"] - _OTHER_ORDER}


def _policy_rows(
    group: EvaluationGroup, policy: PolicyFile, tasks: np.ndarray, best: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Yield what a policy does: steered, shuffled observations, its mean schedule replayed.

    Where more than the learning rate is steered, also the runs that steer that one alone.
    """
    spec = spec_for(policy, group)
    whole = crossed(group, tasks, best, drawn=True)
    real = len(whole.tasks)
    _, runs = next(slices(whole))
    parameters = {**policy.parameters, **policy.novelty}
    rows, episodes = steered(group, spec, parameters, runs, "trimtab")
    yield from rows[:real]
    order = np.arange(SIZE)
    order[:real] = np.random.default_rng(int(tasks[0])).permutation(real)
    yield from steered(group, spec, parameters, runs, "shuffled", mode_input=order)[0][:real]
    paths = {f: episodes.offset[:, :real][:, whole.factors == f].mean(1) for f in FACTORS}
    replay = np.stack([paths[factor] for factor in runs.factors], axis=1)
    yield from steered(group, spec, parameters, runs, "open-loop", mode_input=replay)[0][:real]
    if len(spec.hyperparameters) > 1:
        alone = spec_for(policy, group, ("lr",))
        yield from steered(group, alone, parameters, runs, "lr-alone")[0][:real]


def kept_rows(
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


def write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows as one Parquet file, small enough to be kept with the code."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows)
    for name in ("validation", "test", "accuracy", "spent", "rollbacks", "lr", "factor"):
        index = table.column_names.index(name)
        table = table.set_column(index, name, table.column(name).cast(pa.float32()))
    pq.write_table(table, path, compression="zstd")


def evaluate_policy(
    policy: PolicyFile,
    settings: EvaluationSettings,
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
    identity = parameters_digest(policy)[:12]
    groups = _groups(settings.ring, settings.hyperparameters)
    numbers = settings.seed + np.arange(settings.tasks)
    rows: list[dict[str, Any]] = []
    done = 0
    for group in groups:
        ends = window_ends(spec_for(policy, group), group.steps)
        schedule = _schedule_digest(settings.ring, settings.hyperparameters, ends)
        mine = numbers[np.arange(settings.tasks) % len(groups) == group.number]
        for first in range(0, len(mine), BATCH):
            tasks = mine[first : first + BATCH]
            part = f"{group.number}-{tasks[0]}-{len(tasks)}"
            plain = kept_rows(
                place / f"{schedule}-{part}.json", _unsteered_rows, group, ends, tasks
            )
            tuned = {row["task"]: row["lr"] for row in plain if row["method"] == "tuned"}
            best = np.array([tuned[int(task)] for task in tasks])
            steered = kept_rows(
                place / f"{identity}-{schedule}-{part}.json",
                _policy_rows,
                group,
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
