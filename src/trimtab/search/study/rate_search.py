"""Looking for the best peak of a schedule around one that a steered run has found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["next_decade"]

_STEP = 0.3  # decades to a neighbour that was not tried yet
_NEAR = 0.05  # decades within which two peaks are the same place
_AGAIN = 0.1  # decades aside, where the best place was tried already
_SMALLEST = 1e-300


def next_decade(tried: Sequence[tuple[float, float]], taken: Sequence[float] = ()) -> float:
    """Return where to look next, in decades from the found rate.

    First the found rate itself; then 0.3 decades to either side of the best place, until it has a
    neighbour there; then the lowest point of the parabola through the best place and its
    neighbours, in the log of the loss; a tenth of a decade aside where that was tried already.

    Args:
        tried: Decades from the found rate, and the loss there; infinite for a run that was lost.
        taken: Decades of runs that are under way, whose losses are not known yet.

    >>> next_decade([]), next_decade([(0.0, 2.0)]), next_decade([(0.0, 2.0)], [0.3])
    (0.0, 0.3, -0.3)
    """
    if not tried:
        return 0.0 if not taken else _aside(0.0, list(taken))
    losses: dict[float, float] = {}
    for place, loss in tried:
        losses[place] = min(loss, losses.get(place, np.inf))
    best = min(losses, key=lambda place: (losses[place], abs(place)))
    known = [*losses, *taken]
    above = [place for place in known if place > best + _NEAR]
    below = [place for place in known if place < best - _NEAR]
    if not above:
        return best + _STEP
    if not below:
        return best - _STEP
    above = [place for place in above if place in losses]
    below = [place for place in below if place in losses]
    lowest = best
    if above and below:
        lowest = _lowest_point([max(below), best, min(above)], losses)
    return _aside(lowest, known)


def _lowest_point(places: Sequence[float], losses: dict[float, float]) -> float:
    """Return the lowest point of the parabola through three places, the middle one lowest."""
    values = np.array([losses[place] for place in places])
    if not np.all(np.isfinite(values)):
        return places[1]
    curve = np.polyfit(places, np.log(np.maximum(values, _SMALLEST)), 2)
    if not curve[0] > 0:
        return places[1]
    return float(np.clip(-curve[1] / (2 * curve[0]), places[0], places[2]))


def _aside(place: float, known: Sequence[float]) -> float:
    """Return a place, or the nearest one by its side that was not tried yet."""
    for distance in range(2 * len(known) + 2):
        for sign in (1, -1):
            at = place + sign * distance * _AGAIN
            if all(abs(at - other) >= _NEAR for other in known):
                return at
    return place
