"""Forked controllers: the inner choice, moved, and the same wherever they go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trimtab.core.spec import MOVES
from trimtab.search.study.runs import ForkedController

MIDDLE = len(MOVES) // 2


class Still:
    """Chooses no move and counts how often it was asked."""

    name, guarded = "still", True

    def __init__(self) -> None:
        self.count = 0

    def reset(self, *, seed: int) -> None:
        self.count = 0

    def act(self, observation: np.ndarray) -> np.ndarray:
        self.count += 1
        return np.array([MIDDLE, MIDDLE, 1], np.float32)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = int(state["count"])


def act(controller: ForkedController) -> list[float]:
    return [float(value) for value in controller.act(np.zeros(3, np.float32))]


def test_moves_are_shifted_for_a_while_and_restore_is_left() -> None:
    forked = ForkedController(Still(), shift=2.0)
    assert [act(forked) for _ in range(3)] == [
        [MIDDLE + 2, MIDDLE + 2, 1],
        [MIDDLE + 2, MIDDLE + 2, 1],
        [MIDDLE, MIDDLE, 1],
    ]


def test_places_stay_within_the_moves() -> None:
    for shift in (-50.0, 50.0):
        places = act(ForkedController(Still(), shift=shift, noise=3.0))[:2]
        assert all(0 <= place <= len(MOVES) - 1 for place in places)


def test_a_fork_begins_from_the_inner_state_and_goes_on_from_its_own() -> None:
    inner = Still()
    inner.count = 7
    first = ForkedController(Still(), noise=0.5, seed=3)
    first.load_state_dict(inner.state_dict())
    actions = [act(first) for _ in range(4)]
    assert first.state_dict() == {"inner": {"count": 11}, "since_fork": 4}
    again = ForkedController(Still(), noise=0.5, seed=3)
    again.load_state_dict(inner.state_dict())
    assert [act(again) for _ in range(2)] == actions[:2]
    other = ForkedController(Still(), noise=0.5, seed=3)
    other.load_state_dict(again.state_dict())
    assert [act(other) for _ in range(2)] == actions[2:]


def test_what_the_inner_one_has_never_seen_is_novel_to_the_fork() -> None:
    assert not ForkedController(Still()).is_novel(np.zeros(3))
    inner: Any = Still()
    inner.is_novel = lambda observation: True
    assert ForkedController(inner).is_novel(np.zeros(3))
