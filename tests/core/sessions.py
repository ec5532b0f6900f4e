"""Steered runs over random windows, for the tests of the session."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.core.episodes import random_metrics, spec_of
from trimtab.core.decision import Decision, Recorder, Summary
from trimtab.core.metrics import Metrics
from trimtab.core.protocols import Controller
from trimtab.core.references import reference_multipliers
from trimtab.core.session import Session
from trimtab.core.spec import ControlSpec

TOTAL = 200
seeds = st.integers(0, 2**32 - 1)


def session_of(
    controller: Controller | None,
    spec: ControlSpec | None = None,
    total: int = TOTAL,
    **options: Any,
) -> Session:
    reference = reference_multipliers("warmup-linear", total)
    return Session(spec or spec_of(), controller, total_steps=total, reference=reference, **options)


class Windows:
    """What a run of windows measures; every generator is the same for the same seed."""

    def __init__(self, seed: int, faults: float = 0.0) -> None:
        self.generator = np.random.default_rng(seed)
        self.faults = faults

    def start(self) -> Metrics:
        return Metrics(val_loss=2.3)

    def after(self, session: Session) -> Metrics:
        faults = self.faults
        metrics = random_metrics(self.generator, session.decisions_made, faults)
        steps = session.window()
        return metrics._replace(steps=steps, charge=32.0 * steps)


def train(session: Session, windows: Windows) -> list[Decision]:
    """Train to the end and return the decisions."""
    if not session.carry.started:
        session.step(windows.start())
    while not session.finished:
        session.step(windows.after(session))
    return session.summary.decisions


def plain(decision: Decision) -> dict[str, Any]:
    """Return a decision as data that can be compared."""
    fields = dict(vars(decision))
    for name in ("observation", "action", "offset", "metrics"):
        fields[name] = None if fields[name] is None else np.asarray(fields[name]).tolist()
    return json.loads(json.dumps(fields).replace("NaN", "null"))


class Log(Recorder):
    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.ends: list[str] = []

    def decision(self, decision: Decision) -> None:
        self.decisions.append(decision)

    def finish(self, summary: Summary, status: str) -> None:
        self.ends.append(status)
