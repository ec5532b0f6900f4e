"""What each step's loss and gradient norm say: usual, a spike, or a lasting rise."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from enum import Enum

LENGTH = 50
"""Steps that are remembered, and told in an event."""

_FEW = 3  # steps before anything is called unusual
_ENOUGH = 10  # steps before noise is known
_RECENT = 5
_LONG = 20


class Signal(Enum):
    """How a step compares with those before it."""

    USUAL = 0
    LOSS_SPIKE = 1
    GRADIENT_SPIKE = 2
    RISE = 3
    EARLY = 4  # higher than the few losses so far; only good batches can say what that means


class StepHistory:
    """The losses and gradient norms of recent healthy steps, and what is unusual beside them.

    A spike is far above everything that was seen in the last 50 steps, so that small batches and
    dropout make none: more than three times the median and eight robust standard deviations above
    it, and four times as far above it as the highest of them. A rise is a mean of five steps 1.25
    times the median and four standard errors above it; a lasting one is of ten, and six. From the
    fourth to the tenth step a spike is a hundred times above what was seen, and half as much again
    is early.

    Attributes:
        losses: Of up to 50 steps.
        norms: Their gradient norms.
    """

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=LENGTH)
        self.norms: deque[float] = deque(maxlen=LENGTH)
        self._limits: tuple[float, float, float, float] | None = None
        self._age = 0

    @property
    def spread(self) -> float:
        """Robust standard deviation of the losses; 0 while too few are known."""
        if len(self.losses) < _ENOUGH:
            return 0.0
        return _spread(self.losses, _median(self.losses))

    def judge(self, loss: float, norm: float) -> Signal:
        """Return how a step with finite loss and norm compares with those before it."""
        if len(self.losses) < _ENOUGH:
            return self._judge_early(loss, norm)
        if self._limits is None or self._age >= _RECENT:
            self._limits, self._age = self._limits_now(), 0
        highest_loss, highest_norm, middle, spread = self._limits
        if loss > highest_loss:
            return Signal.LOSS_SPIKE
        if norm > highest_norm:
            return Signal.GRADIENT_SPIKE
        if loss <= middle:
            return Signal.USUAL
        if self._rises(loss, middle, spread, _RECENT, errors=4.0):
            return Signal.RISE
        return Signal.USUAL

    def _judge_early(self, loss: float, norm: float) -> Signal:
        if len(self.losses) < _FEW:
            return Signal.USUAL
        middle, highest = _median(self.losses), max(self.losses)
        if loss > highest + 100.0 * max(abs(middle), highest - middle):
            return Signal.LOSS_SPIKE
        if norm > (self._highest_norm() or math.inf):
            return Signal.GRADIENT_SPIKE
        if loss > middle + max(0.5 * abs(middle), 3.0 * (highest - middle)):
            return Signal.EARLY
        return Signal.USUAL

    def rises_for_long(self, loss: float) -> bool:
        """Return whether a rise is no chance, whatever the noise."""
        middle = _median(self.losses)
        return self._rises(loss, middle, _spread(self.losses, middle), 2 * _RECENT, errors=6.0)

    def mean(self) -> float:
        """Return the mean loss of the last 20 steps; nan while there are fewer."""
        if len(self.losses) < _LONG:
            return math.nan
        return sum(list(self.losses)[-_LONG:]) / _LONG

    def _rises(
        self, loss: float, middle: float, spread: float, steps: int, *, errors: float
    ) -> bool:
        recent = [*list(self.losses)[1 - steps :], loss]
        rise = sum(recent) / len(recent) - middle
        return rise > max(0.25 * abs(middle), errors * spread / math.sqrt(len(recent)))

    def add(self, loss: float, norm: float) -> None:
        """Remember a healthy step."""
        self.losses.append(loss)
        self.norms.append(norm)
        self._age += 1

    def settle(self) -> None:
        """Forget the last steps, which were those of a state that has been left."""
        for _ in range(min(_RECENT, len(self.losses) - _ENOUGH)):
            self.losses.pop()
            self.norms.pop()
        self._limits = None

    def forget(self) -> None:
        """Begin anew: what comes now is not to be compared with what was."""
        self.losses.clear()
        self.norms.clear()
        self._limits = None

    def _limits_now(self) -> tuple[float, float, float, float]:
        middle = _median(self.losses)
        spread = _spread(self.losses, middle)
        reach = max(self.losses) - middle
        # So many times the highest of n draws: once in ten million, of an exponential tail.
        times = 7.0 / math.log10(len(self.losses))
        loss = middle + max(8.0 * spread, 2.0 * abs(middle), times * reach)
        return loss, self._highest_norm() or math.inf, middle, spread

    def _highest_norm(self) -> float:
        return max(1e3 * _median(self.norms), 1e2 * max(self.norms))


def _median(values: Sequence[float] | deque[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


def _spread(values: deque[float], middle: float) -> float:
    return 1.4826 * _median([abs(value - middle) for value in values])
