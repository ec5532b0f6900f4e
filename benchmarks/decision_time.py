"""What one decision of the shipped policy takes: observe, forward pass, apply, record in memory.

A whole run's decisions are taken by a `Session` with the `LearnedController`, in NumPy and without
any training between them; windows are one step long, since what is logged a step is
`benchmarks.overhead`'s matter. Once with one hyperparameter, once with a hundred.

    python -m benchmarks.decision_time
    python -m benchmarks.decision_time --json

``milliseconds`` is the median over decisions of the thread's processor time, which other processes
change little; ``wall_milliseconds`` the median on the wall. Aimed at: 1 ms with 1 token, 5 ms with
100.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import UTC, datetime
from time import perf_counter, thread_time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from trimtab.core.hyperparameters import Hyperparameter, hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.references import reference_multipliers
from trimtab.core.session import Session
from trimtab.defaults import controller_for

BARS = {1: 1.0, 100: 5.0}
"""Tokens -> milliseconds that a decision may take."""

DECISIONS = 40


def offered(n_tokens: int) -> tuple[Hyperparameter, ...]:
    """Return the learning rate and ``n_tokens - 1`` factors of layers' rates."""
    others = (
        hyperparameter(f"rate.{i}", 1.0, kind="other", low=0.01, high=100.0)
        for i in range(n_tokens - 1)
    )
    return (hyperparameter("lr", 1e-3), *others)


def windows(seed: int) -> list[Metrics]:
    """Return what the windows of a run measured: a loss that falls, with noise."""
    generator = np.random.default_rng(seed)
    loss = np.exp(
        -np.linspace(0, 1, DECISIONS + 1) + 0.05 * generator.standard_normal(DECISIONS + 1)
    )
    before = Metrics(val_loss=loss[0], charge=10.0)
    later = [
        Metrics(
            train_loss=value,
            train_loss_first=1.02 * value,
            train_loss_change=-0.02 * value,
            train_loss_std=0.1 * value,
            val_loss=value,
            grad_norm=1.0 + generator.random(),
            grad_cosine=generator.uniform(-1, 1),
            update_ratio=1e-3,
            steps=1.0,
            charge=42.0,
        )
        for value in loss[1:]
    ]
    return [before, *later]


def measure(n_tokens: int, policy: str, n_runs: int) -> dict[str, Any]:
    """Return the median time of a decision with this many tokens, and of its forward pass."""
    spec, controller = controller_for(policy, offered(n_tokens), decisions=DECISIONS)
    reference = reference_multipliers("warmup-linear", DECISIONS)
    used, wall, forward = [], [], []
    for run in range(n_runs + 1):
        session = Session(spec, controller, total_steps=DECISIONS, reference=reference)
        for metrics in windows(run):
            began, began_wall = thread_time(), perf_counter()
            decision = session.step(metrics)
            spent, spent_wall = thread_time() - began, perf_counter() - began_wall
            if decision is not None and decision.note:  # a failing controller would be quick
                raise SystemExit(f"{policy}: {decision.note}")
            if run and decision is not None:  # the first run warms up
                used.append(spent)
                wall.append(spent_wall)
        for decision in session.summary.decisions[:: DECISIONS // 4]:
            began = thread_time()
            controller.act(decision.observation)
            forward.append(thread_time() - began)
    median = float(np.median(used)) * 1e3
    return {
        "tokens": n_tokens,
        "milliseconds": median,
        "wall_milliseconds": float(np.median(wall)) * 1e3,
        "forward_milliseconds": float(np.median(forward)) * 1e3,
        "decisions": len(used),
        "bar_milliseconds": BARS.get(n_tokens),
        "within_bar": None if n_tokens not in BARS else median < BARS[n_tokens],
    }


def main(arguments: list[str] | None = None) -> int:
    """Print the figures; with ``--json`` as one document on standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decision_time", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--policy", default="trimtab-1", help="shipped name, or policy file")
    parser.add_argument("--tokens", default="1,100", help="numbers of hyperparameters")
    parser.add_argument("--runs", type=int, default=20, help="runs of 40 decisions")
    given = parser.parse_args(arguments)
    rows = [measure(int(count), given.policy, given.runs) for count in given.tokens.split(",")]
    if given.json:
        about = {
            "policy": given.policy,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "machine": platform.processor() or platform.machine(),
            "load_average": os.getloadavg()[0],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        json.dump({"decisions": rows, **about}, sys.stdout, indent=1)
        sys.stdout.write("\n")
        return 0
    for row in rows:
        bar = "" if row["bar_milliseconds"] is None else f"  (bar {row['bar_milliseconds']:g})"
        print(
            f"{row['tokens']:>4} tokens  {row['milliseconds']:.3f} ms{bar}, "
            f"forward pass {row['forward_milliseconds']:.3f}, wall {row['wall_milliseconds']:.3f}"
        )
    print(f"{given.policy}, NumPy {np.__version__}, load average {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
