"""How far a run has come from its first weights, and whether its gradient still points on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

ENTRIES = 2048
"""So many weights, or up to twice as many, are looked at."""

_SUMS = ("pull", "together", "away")


class Travel:
    """Distance and alignment of one run, on the weights that are sampled for statistics anyway.

    At the end of each window of n steps, with h the sum of the last two gradients, y the way from
    the weights before the last step back to the first ones, and u the length of the last update,
    each a sum over sampled entries weighted by what they stand for: the window adds
    n u <h, y> / |h| to N, n u |y| to M, n u to the path L and (n u / |h|) h to the vector S.
    ``alignment`` is <h, y> / (|h| |y|), ``alignment_mean`` N / M, ``distance_ratio``
    (N / |S|_1) / (u / sqrt(P)) with P the number of weights, ``straightness`` |y| / L.
    N over |S|_1 is the estimate that Prodigy makes of the distance to the goal (Mishchenko and
    Defazio, 2023, arXiv 2306.06101), with each gradient weighted by its update's length over its
    own, so that no learning rate enters.

    A restore puts weights back; what was summed up stays.

    Args:
        weights: (entries,) the sampled weights before step 1.
        counts: (entries,) how many weights each stands for; None for one each.
        total: Number of all weights.
    """

    def __init__(self, weights: torch.Tensor, counts: torch.Tensor | None, total: int) -> None:
        every = max(1, weights.numel() // ENTRIES)
        self._kth = slice(None, None, every)
        self.origin = weights[self._kth].clone()
        self._counts = torch.full_like(self.origin, float(every))
        if counts is not None:
            self._counts *= counts[self._kth]
        self.sum, self._together = torch.zeros_like(self.origin), torch.zeros_like(self.origin)
        self.totals = [0.0, 0.0, 0.0]  # N, M and L
        self._per_weight = math.sqrt(max(total, 1))

    def look(self, now: torch.Tensor, before: torch.Tensor | None) -> None:
        """Take in the window's last gradient (entries,), and that of the step before if any."""
        if before is None or before.numel() != now.numel():
            self._together.copy_(now[self._kth])
        else:
            torch.add(now[self._kth], before[self._kth], out=self._together)

    def stand(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """Take in the weights (entries,) before the window's last update; return sums for `add`."""
        back, gradient = self.origin - weights[self._kth], self._together * self._counts
        return {
            "pull": gradient.dot(back),
            "together": gradient.dot(self._together),
            "away": (back * self._counts).dot(back),
        }

    def add(self, sums: Mapping[str, float], steps: int) -> dict[str, float]:
        """Add a window and return what `Metrics` tells of it.

        Args:
            sums: What `stand` gave, as numbers, and the square of the last ``update``'s length.
            steps: Of the window.
        """
        if not all(math.isfinite(sums.get(name, math.nan)) for name in (*_SUMS, "update")):
            return {}
        gradient, away, step = (math.sqrt(sums[name]) for name in ("together", "away", "update"))
        if not gradient * step:
            return {}
        path = steps * step
        self.sum.add_(self._together, alpha=path / gradient)
        parts = (path / gradient * sums["pull"], path * away, path)
        pull, most, way = self.totals = [a + b for a, b in zip(self.totals, parts, strict=True)]
        size = self.sum.abs().dot(self._counts).item()
        if not away * size:
            return {}
        return {
            "alignment": min(max(sums["pull"] / (gradient * away), -1.0), 1.0),
            "alignment_mean": pull / most,
            "distance_ratio": pull / size / (step / self._per_weight),
            "straightness": away / way,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a run has to go on with."""
        return {
            "origin": self.origin.clone(),
            "sum": self.sum.clone(),
            "totals": torch.tensor(self.totals, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        for name in ("origin", "sum"):
            there = getattr(self, name)
            setattr(self, name, state[name].to(there.device, there.dtype).clone())
        self.totals = state["totals"].tolist()
