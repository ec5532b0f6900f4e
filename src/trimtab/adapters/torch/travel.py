"""How far a run has come from its first weights, and whether its gradient still points on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

_KEPT = ("origin", "sum", "pull", "most", "path")


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
        self._counts = counts
        self.origin, self.sum = weights.clone(), torch.zeros_like(weights)
        self.pull = self.most = self.path = weights.new_zeros(())
        self._per_weight = math.sqrt(max(total, 1))
        self._together = torch.zeros_like(weights)
        self._sums: dict[str, torch.Tensor] = {}

    def look(self, now: torch.Tensor, before: torch.Tensor | None) -> None:
        """Take in the window's last gradient (entries,), and that of the step before if any."""
        if before is None or before.numel() != now.numel():
            self._together.copy_(now)
        else:
            torch.add(now, before, out=self._together)

    def stand(self, weights: torch.Tensor) -> None:
        """Take in the weights (entries,) before the window's last update."""
        back = self.origin - weights
        weighted = back if self._counts is None else back * self._counts
        gradient = self._together
        if self._counts is not None:
            gradient = gradient * self._counts
        self._sums = {
            "pull": weighted.dot(self._together),
            "away": weighted.dot(back).sqrt(),
            "together": gradient.dot(self._together).sqrt(),
        }

    def take_step(self, update: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
        """Add a window and return what `told_of` reads, on the device.

        Args:
            update: () square of the last update's length.
            steps: Of the window.
        """
        if not self._sums:
            return {}
        pull, away, together = (self._sums[name] for name in ("pull", "away", "together"))
        step = update.sqrt().to(self.path.dtype)
        sound = (together > 0) & (step > 0) & torch.isfinite(step) & torch.isfinite(together)
        path = torch.where(sound, step * steps, 0.0)
        share = torch.where(sound, path / together, 0.0)
        self.sum = torch.where(sound, self.sum + share * self._together, self.sum)
        self.pull = self.pull + torch.where(sound, share * pull, 0.0)
        self.most = self.most + torch.where(sound, path * away, 0.0)
        self.path = self.path + path
        size = self.sum.abs() if self._counts is None else self.sum.abs() * self._counts
        self._sums = {}
        return {
            "alignment": torch.where(sound, pull / (together * away), math.nan),
            "alignment_mean": self.pull / self.most,
            "distance_ratio": self.pull / size.sum() / (step / self._per_weight),
            "straightness": torch.where(away > 0, away / self.path, math.nan),
        }

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what a run has to go on with."""
        return {name: getattr(self, name).clone() for name in _KEPT}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        for name in _KEPT:
            there = getattr(self, name)
            setattr(self, name, state[name].to(there.device, there.dtype).clone())


def told_of(sums: Mapping[str, float]) -> dict[str, float]:
    """Return fields of `Metrics` from what `Travel.take_step` gave, as numbers."""
    names = ("alignment", "alignment_mean", "distance_ratio", "straightness")
    found = {name: sums.get(name, math.nan) for name in names}
    if not all(map(math.isfinite, found.values())):
        return {}
    return found | {"alignment": min(max(found["alignment"], -1.0), 1.0)}
