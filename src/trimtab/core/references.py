"""Reference schedules, by name: the multiplier of a learning rate's start at each step.

With the policy off a run follows its reference exactly; a policy multiplies it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from trimtab.core.errors import SpecError, unknown_name


def warmup_linear(step: int, total_steps: int) -> float:
    """Return ``min(1, (s + 1) / (0.05 T)) (1 - s / T)``: 5 % warm-up, then linear decay to zero."""
    return min(1.0, (step + 1) / (0.05 * total_steps)) * (1.0 - step / total_steps)


def cosine(step: int, total_steps: int) -> float:
    """Return ``(1 + cos(pi s / T)) / 2``, from 1 to 0 (Loshchilov and Hutter, 2017, eq. 5)."""
    return 0.5 * (1.0 + math.cos(math.pi * step / total_steps))


def one_cycle(step: int, total_steps: int) -> float:
    """Return a rise from 1/25 to 1 over 30 % of the steps and a fall to 1e-4/25, both by cosine.

    Source: Smith and Topin, 2018, with the shares that PyTorch's ``OneCycleLR`` takes by default.
    """
    low, end, peak = 1 / 25, 1e-4 / 25, 0.3 * total_steps - 1
    last = total_steps - 1
    if step <= peak:
        share, first, final = step / max(peak, 1e-9), low, 1.0
    else:
        share, first, final = (step - peak) / max(last - peak, 1e-9), 1.0, end
    return final + (first - final) * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))


def constant(step: int, total_steps: int) -> float:  # noqa: ARG001 - one signature for all
    """Return 1 at every step."""
    return 1.0


REFERENCES: dict[str, Callable[[int, int], float]] = {
    "warmup-linear": warmup_linear,
    "cosine": cosine,
    "one-cycle": one_cycle,
    "constant": constant,
}


def reference_multipliers(
    reference: str | Callable[[float], float], total_steps: int
) -> np.ndarray:
    """Return (T,) float64 multipliers of a named schedule or of a function of progress.

    Args:
        reference: A name in `REFERENCES`, or a function of progress in [0, 1).
        total_steps: Number of steps T, at least 1.

    Raises:
        UnknownNameError: No schedule has that name.
        SpecError: The function gives something that is not a finite number of at least 0.
    """
    if isinstance(reference, str):
        if reference not in REFERENCES:
            raise unknown_name("reference", reference, REFERENCES)
        schedule = REFERENCES[reference]
        return np.array([schedule(step, total_steps) for step in range(total_steps)], np.float64)
    values = [_multiplier(reference, step, total_steps) for step in range(total_steps)]
    return np.array(values, np.float64)


def _multiplier(reference: Callable[[float], float], step: int, total_steps: int) -> float:
    must = "the function must take progress in [0, 1) and give finite multipliers of at least 0"
    try:
        given = reference(step / total_steps)
    except Exception as error:
        raise SpecError(
            f"reference: {type(error).__name__} ({error}) at step {step} of {total_steps}; {must}"
        ) from error
    try:
        value = float(given)
    except (TypeError, ValueError) as error:
        raise SpecError(f"reference: {given!r} at step {step} of {total_steps}; {must}") from error
    if not math.isfinite(value) or value < 0:
        raise SpecError(f"reference: {value!r} at step {step} of {total_steps}; {must}")
    return value
