"""What moved a learned policy at each decision: its answer with and without groups of features.

A group is occluded by setting its features to 0, which stands for "not measured", at the decision
and at all decisions before it, so that the recurrent state does not hold it either (Zeiler &
Fergus, 2014, arXiv 1311.2901, on images). What the expected move loses by that is the group's
effect. It says what the answer rests on, not why it is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.controllers.learned import LearnedController, forward, token_block
from trimtab.core.array_namespace import SCALAR_NUMPY
from trimtab.core.features import GLOBAL_FEATURES, observation_table
from trimtab.core.spec import MOVES, ControlSpec

GROUPS: Mapping[str, tuple[str, ...]] = {
    "level of the validation loss": ("val", "best", "val_over_best", "gap", "since_best"),
    "change of the validation loss": ("val_change", "val_change_before", "val_trend"),
    "training loss": ("train", "train_change", "slope", "train_drift"),
    "noise": ("val_noise", "step_noise"),
    "gradients and updates": (
        *("grad", "grad_change", "grad_cosine", "grad_known"),
        *("update", "update_change"),
    ),
    "steps left": (
        *("progress", "log_decisions_left", "inverse_decisions_left"),
        *("window_share", "first"),
    ),
    "going back": ("since_restore", "restores", "divergences", "restore_due"),
    "where the value stands": (
        *("offset", "effective", "to_high", "to_low"),
        *("range_above", "range_below", "range_width"),
    ),
    "distance from the first weights": (
        *("alignment", "alignment_mean", "alignment_sign"),
        *("distance", "straightness", "distance_known"),
    ),
    "what earlier moves brought": (
        *("last_reward", "move", "move_before", "from_best", "from_highest", "from_safe"),
        *("from_harmful", "harm_seen", "credit", "since_move"),
    ),
}
"""Features of an observation by what they tell of; a hyperparameter's kind belongs to none."""


@dataclass(frozen=True)
class Explanation:
    """What a policy's answer at one decision rests on.

    Attributes:
        probabilities: (H, 7) float, of each hyperparameter's moves, in the order of ``MOVES``.
        effects: Group -> (H,) float: how much higher the expected move is with the group than
            without it, in coordinate units; decades for a learning rate.
        move: (H,) float, the expected move in these units.
    """

    probabilities: np.ndarray
    effects: Mapping[str, np.ndarray]
    move: np.ndarray


def explain(
    controller: LearnedController, spec: ControlSpec, observations: Sequence[np.ndarray]
) -> list[Explanation]:
    """Return what each answer rests on, for all decisions of a run from its first.

    Args:
        controller: The policy; its own memory is neither read nor changed.
        spec: Of the run.
        observations: (n,) float32 each, as they were recorded.
    """
    units = spec.move_units.astype(np.float64)
    probabilities = _probabilities(controller.parameters, observations, ())
    moves = [each @ np.asarray(MOVES) * units for each in probabilities]
    without = {
        name: _probabilities(
            controller.parameters,
            observations,
            places_of(name, spec),
        )
        for name in GROUPS
    }
    return [
        Explanation(
            probabilities[at],
            {
                name: moves[at] - each[at] @ np.asarray(MOVES) * units
                for name, each in without.items()
            },
            moves[at],
        )
        for at in range(len(observations))
    ]


def places_of(group: str, spec: ControlSpec) -> list[int]:
    """Return where a group's features stand in an observation under a spec."""
    names = [str(row["name"]).rpartition(".")[2] for row in observation_table(spec)]
    return [at for at, name in enumerate(names) if name in GROUPS[group]]


def _probabilities(
    parameters: Mapping[str, Any], observations: Sequence[np.ndarray], places: Sequence[int]
) -> list[np.ndarray]:
    """Return each decision's (H, 7) probabilities, with features set to 0 all along."""
    hidden: Any = None
    found: list[np.ndarray] = []
    for observation in observations:
        seen = np.array(observation, np.float32)
        seen[list(places)] = 0.0
        if hidden is None:
            tokens = (len(seen) - len(GLOBAL_FEATURES)) // token_block(parameters)
            hidden = np.zeros((tokens, parameters["gate_h"].shape[0]), np.float32)
        logits, _, hidden = forward(parameters, seen, hidden, SCALAR_NUMPY)
        likely = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
        found.append(likely / likely.sum(-1, keepdims=True))
    return found
