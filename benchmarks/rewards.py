"""The same agent trained with each reward, side by side, for ``docs/rewards.md``.

    python -m benchmarks.rewards --minutes 15 --out rewards

Each reward gets the same settings, the same seeds and the same number of simulated steps: what
``--minutes`` allow at the speed that a short trial of the first reward shows, fixed in
``plan.json`` before the first training. ``relative`` makes a reference run beside each run, so
it gets half of the iterations. Then each policy is evaluated on ring a, every one on
the same tasks, starts and data. Interrupted, the same command goes on where it stopped.

On several cores, ``--only`` trains some of the rewards in one process and others in another; the
command without it evaluates them all.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.commands import called
from trimtab.cli.learn import prepare_jax

if TYPE_CHECKING:
    from trimtab.agents.evaluation.runs import EvaluationGroup
    from trimtab.agents.training.settings import LearnSettings

__all__ = [
    "REWARDS",
    "collapse_share",
    "iterations_of",
    "main",
    "recommendation",
    "settings_for",
    "table",
    "write",
]

REWARDS: tuple[str, ...] = ("best-so-far", "log-loss", "relative", "cost-aware", "final")
"""Rewards that need no function of the user's; the first is the shipped policy's."""

_TRIAL = 6  # iterations; the first ones compile and are not counted
_RING = "a"
_MARKS = ("<!-- results -->", "<!-- end of results -->")
_PAGE = Path(__file__).parents[1] / "docs" / "rewards.md"


def settings_for(reward: str, iterations: int, batch: int = 32) -> LearnSettings:
    """Return the settings of one training: those of the shipped policy on ring a's shapes.

    Args:
        reward: A name in `REWARDS`.
        iterations: The same for all rewards.
        batch: Tasks of an iteration, each with 8 runs.
    """
    from trimtab.agents.training.settings import FamilyShare, LearnSettings

    return LearnSettings(
        name=reward,
        seed=3,
        iterations=iterations,
        tasks=batch,
        decisions=(20,),
        steps_per_decision=(8.0, 8.0),
        families=(FamilyShare("simulated/mlp", variants=(0, 2, 4, 7)),),
        spec={"hyperparameters": ["lr"], "reward": reward},
    )


def _iterations(out: Path, minutes: float, batch: int) -> int:
    """Return how many iterations every reward gets, measured once."""
    from trimtab.agents.training.learn import learn

    plan = out / "plan.json"
    if plan.exists():
        kept = json.loads(plan.read_text(encoding="utf-8"))
        if (kept["minutes"], kept["batch"]) != (minutes, batch):
            raise SystemExit(
                f"{out} holds a study of {kept['minutes']:g} minutes and batches of "
                f"{kept['batch']}; give the same, or another --out"
            )
        return int(kept["iterations"])
    trial = replace(settings_for(REWARDS[0], _TRIAL, batch), name="trial")
    learn(trial, out / "trial", resume=True, on_progress=_show)
    curves = (out / "trial" / "curves.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = np.diff([json.loads(line)["seconds"] for line in curves])
    each = float(np.min(seconds))  # the fastest one compiled nothing
    count = max(_TRIAL, round(minutes * 60 / each))
    told = {"minutes": minutes, "batch": batch, "iterations": count, "seconds_each": each}
    plan.write_text(json.dumps(told), encoding="utf-8")
    return count


def iterations_of(reward: str, iterations: int) -> int:
    """Return a reward's iterations, where ``iterations`` of the others cost as many steps."""
    return iterations // 2 if reward == "relative" else iterations


def _trained(reward: str, iterations: int, batch: int, out: Path) -> Path:
    """Return the file of a reward's policy, trained to its last iteration."""
    from trimtab.agents.training.checkpoints import iterations_done
    from trimtab.agents.training.learn import learn

    iterations = iterations_of(reward, iterations)
    folder = out / reward
    done = iterations_done(folder)
    if done < iterations:
        print(f"{reward}: {done} of {iterations} iterations", file=sys.stderr)
        learn(settings_for(reward, iterations, batch), folder, resume=True, on_progress=_show)
    return folder / f"{reward}.safetensors"


def _show(progress: Any) -> None:
    figures = progress.figures
    print(
        f"{progress.iteration}/{progress.of} {progress.seconds:.0f} s "
        f"return {figures['return']:.3f}",
        file=sys.stderr,
    )


def _groups() -> list[EvaluationGroup]:
    """Return the architectures of the ring."""
    from trimtab.agents.evaluation.evaluate import evaluation_definitions
    from trimtab.agents.evaluation.runs import EvaluationGroup
    from trimtab.agents.training.settings import FamilyShare
    from trimtab.agents.training.task_sampling import family_of
    from trimtab.envs.simulators.batch import programs

    groups: list[EvaluationGroup] = []
    for entry in evaluation_definitions()[_RING]["families"]:
        family = family_of(FamilyShare(entry["name"]), ("lr",))
        for variant in entry["variants"]:
            place = (len(groups), family, programs(family, variant))
            groups.append(EvaluationGroup(*place, int(entry["steps"]), int(entry["decisions"])))
    return groups


def collapse_share(offset: np.ndarray, factors: np.ndarray, ends: np.ndarray) -> float:
    """Return the share of runs whose learning rate collapsed early.

    A rate has collapsed where its median over the steps of the run's first third lies more than
    a decade below the tuned rate's own schedule.

    Args:
        offset: (K, B) decades that each window's rate is off its start.
        factors: (B,) start over the tuned rate.
        ends: (K,) steps at which windows end.
    """
    lengths = np.diff(np.concatenate([[0], ends]))
    by_step = np.repeat(np.asarray(offset, float), lengths, axis=0)[: max(int(ends[-1]) // 3, 1)]
    return float(np.mean(np.median(by_step, axis=0) + np.log10(factors) < -1.0))


def _collapse(path: Path, rows: Sequence[Mapping[str, Any]], batch: int) -> float:
    """Return `collapse_share` over the ring's tasks of which rows were made."""
    from trimtab.agents.evaluation.runs import SIZE, crossed, slices, spec_for, steered
    from trimtab.controllers.learned import read_policy
    from trimtab.core.spec import window_ends

    policy = read_policy(path)
    tuned = {
        (int(row["bucket"]), int(row["task"])): row["lr"]
        for row in rows
        if row["method"] == "tuned"
    }
    shares, counts = [], []
    for group in _groups():
        tasks = np.array(sorted(task for number, task in tuned if number == group.number))
        spec = spec_for(policy, group)
        for first in range(0, len(tasks), batch):
            some = tasks[first : first + batch]
            best = np.array([tuned[group.number, int(task)] for task in some])
            whole = crossed(group, some, best)
            real = min(len(whole.tasks), SIZE)
            _, runs = next(slices(whole))
            parameters = {**policy.parameters, **policy.novelty}
            _, episodes = steered(group, spec, parameters, runs, "trimtab")
            offset = episodes.offset[:, :real, 0]
            ends = window_ends(spec, group.steps)
            shares.append(collapse_share(offset, whole.factors[:real], ends))
            counts.append(real)
    return float(np.average(shares, weights=counts))


def _evaluated(path: Path, out: Path, tasks: int, seed: int) -> dict[str, Any]:
    """Return the figures of one policy, kept in a file of their own."""
    import pyarrow.parquet as pq

    from trimtab.agents.evaluation.evaluate import EvaluationSettings, evaluate_policy
    from trimtab.agents.evaluation.runs import BATCH
    from trimtab.controllers.learned import read_policy

    kept = out / f"figures-{path.stem}-{tasks}-{seed}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    figures = evaluate_policy(read_policy(path), EvaluationSettings(_RING, tasks, seed), out)
    rows = pq.read_table(out / f"ring-{_RING}.parquet").to_pylist()
    tests = {
        method: np.array([row["test"] for row in rows if row["method"] == method], float)
        for method in ("trimtab", "zero")
    }
    found = {
        **figures,
        "collapse": _collapse(path, rows, BATCH),
        "test": _geometric_mean(tests["trimtab"]),
        "test_reference": _geometric_mean(tests["zero"]),
    }
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def _geometric_mean(values: np.ndarray) -> float:
    """Return the geometric mean of what is finite and positive; rings end in losses of any size."""
    good = values[np.isfinite(values) & (values > 0)]
    return float(np.exp(np.mean(np.log(good)))) if good.size else math.nan


def _interval(found: Mapping[str, float], digits: int = 2) -> str:
    return f"{found['value']:.{digits}f} ({found['low']:.{digits}f} .. {found['high']:.{digits}f})"


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the rewards side by side, the lowest regret first."""
    heads = (
        "reward",
        "final test loss",
        "regret",
        "n*",
        "collapsed",
        "harm over floor",
        "diverged",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for name in sorted(found, key=lambda one: found[one]["regret"]["value"]):
        one = found[name]
        cells = (
            f"`{name}`",
            f"{one['test']:.3g}",
            _interval(one["regret"]),
            _interval(one["n_star"], 1),
            f"{100 * one['collapse']:.0f} %",
            _interval(one["harm_over_floor"]),
            f"{100 * one['diverged']['value']:.0f} %",
        )
        lines.append(f"| {' | '.join(cells)} |")
    reference = next(iter(found.values()))["test_reference"]
    lines.append(f"| *the reference, unsteered* | {reference:.3g} | | | | | |")
    return "\n".join(lines)


def recommendation(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return which reward to train with, as far as the intervals of the regret tell them apart."""
    order = sorted(found, key=lambda one: found[one]["regret"]["value"])
    best = order[0]
    limit = found[best]["regret"]["high"]
    level = [name for name in order if found[name]["regret"]["low"] <= limit]
    worse = [name for name in order if name not in level]
    told = f"**Recommendation.** `{best}` ended lowest"
    others = [f"`{name}`" for name in level if name != best]
    if others:
        told += f"; these runs do not tell it from {', '.join(others)}"
        if REWARDS[0] in level and best != REWARDS[0]:
            told += f", so there is no reason here to leave `{REWARDS[0]}`"
    if worse:
        told += (
            f". Avoid {', '.join(f'`{name}`' for name in worse)}: clearly worse at equal compute"
        )
    return f"{told}."


def write(page: Path, text: str) -> None:
    """Put a text between the page's marks.

    Raises:
        ValueError: The page has no marks.
    """
    before, first, rest = page.read_text(encoding="utf-8").partition(_MARKS[0])
    _, second, after = rest.partition(_MARKS[1])
    if not (first and second):
        raise ValueError(f"{page} has no {_MARKS[0]} ... {_MARKS[1]}; put them back")
    page.write_text(f"{before}{first}\n\n{text}\n\n{second}{after}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate what is missing, then print the table and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--minutes", type=float, default=15.0, help="of training, each reward")
    parser.add_argument("--tasks", type=int, default=64, help="tasks of the evaluation")
    parser.add_argument("--seed", type=int, default=1_000_000, help="first of these tasks")
    parser.add_argument("--batch", type=int, default=32, help="tasks of an iteration")
    parser.add_argument("--only", default="", help="train just these, by commas, and stop")
    parser.add_argument("--out", type=Path, default=Path("rewards"))
    parser.add_argument("--page", type=Path, default=_PAGE)
    parser.add_argument("--no-page", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    chosen = [name for name in options.only.split(",") if name]
    for name in chosen:
        if name not in REWARDS:
            parser.error(f"--only: {name!r} is none of {', '.join(REWARDS)}")
    prepare_jax()
    options.out.mkdir(parents=True, exist_ok=True)
    iterations = _iterations(options.out, options.minutes, options.batch)
    trained = {
        reward: _trained(reward, iterations, options.batch, options.out)
        for reward in chosen or REWARDS
    }
    if chosen:
        return
    found = {
        reward: _evaluated(path, options.out, options.tasks, options.seed)
        for reward, path in trained.items()
    }
    settings = settings_for(REWARDS[0], iterations, options.batch)
    runs = iterations * settings.tasks * settings.siblings
    under = (
        f"Each reward: {iterations} iterations, {runs:,} simulated runs (`relative`: half of "
        f"them, each with a reference run beside it), seed {settings.seed}; "
        f"ring a, {options.tasks} tasks from {options.seed}, 5 start factors, 2 seeds. "
        f"{platform.machine()}, Python {platform.python_version()}. "
        f"{time.strftime('%d %B %Y')}: `{called('benchmarks.rewards', arguments)}`."
    )
    text = "\n\n".join([table(found), recommendation(found), under])
    print(text)
    (options.out / "settings.json").write_text(json.dumps(asdict(settings), default=list))
    if not options.no_page:
        write(options.page, text)


if __name__ == "__main__":
    main()
