"""A golden trace of a run: what was seen, applied, and why, in 20 decisions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.core.episodes import Episode, drawn_episode, spec_of
from trimtab.core.features import observation_table
from trimtab.core.guard import describe_reason
from trimtab.core.spec import ACTION_KINDS


def told(episode: Episode, *, in_full: bool = False) -> str:
    """Return a run as text, in full with its observations.

    Four decimals are above the rounding of float32 on any machine.
    """
    names = [row["name"] for row in observation_table(episode.spec)]
    lines = []
    for k, observation in enumerate(episode.observations):
        if k:
            values, reason = episode.values[k - 1], episode.reasons[k - 1]
            offsets = " ".join(f"{offset:+.4f}" for offset in values.offset)
            lines.append(f"apply {k - 1}: offset {offsets}; restore {values.restore:.0f}")
            for item, bits in zip(episode.spec.hyperparameters, reason, strict=True):
                if bits:
                    lines.append(f"  {item.name}: {describe_reason(int(bits))}")
        lines.append(f"observe {k}: reward {episode.rewards[k]:+.4f}")
        if not in_full:
            continue
        lines += [
            f"  {name} {value:+.4f}"
            for name, value in zip(names, observation + 0.0, strict=True)
            if abs(value) >= 5e-5 and ".kind." not in name
        ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("actions", ACTION_KINDS)
def test_trace_of_twenty_decisions_stays(actions: str, golden: Callable[[str, str], None]) -> None:
    episode = drawn_episode(spec_of(2, actions=actions), seed=7, faults=0.04)

    golden(f"decisions-{actions}.txt", told(episode, in_full=actions == "multi-discrete"))


def test_trace_meets_what_the_guard_does() -> None:
    texts = "".join(
        told(drawn_episode(spec_of(2, actions=actions), seed=7, faults=0.04))
        for actions in ACTION_KINDS
    )

    for words in ("rolled back", "learning rate cut", "move limited"):
        assert words in texts


def test_same_seed_gives_the_same_run_bit_for_bit() -> None:
    one, other = (drawn_episode(spec_of(2), seed=7, faults=0.04) for _ in range(2))

    np.testing.assert_array_equal(one.observations, other.observations)
    assert one.rewards == other.rewards
