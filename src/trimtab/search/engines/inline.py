"""The engine of tasks that only this process has: one unit after the other, right here."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from trimtab.search.engines.base import Done

__all__ = ["InlineEngine"]


class InlineEngine:
    """Does units in the calling process; see `trimtab.search.engines.base.Engine`."""

    name = "inline"
    jobs = 1

    def run(self, function: Callable[..., Any], units: Sequence[tuple[Any, ...]]) -> Iterator[Done]:
        """Yield what ``function(*unit)`` returns for each unit, in the order given."""
        for place, unit in enumerate(units):
            try:
                done = Done(place, function(*unit))
            except Exception as error:  # noqa: BLE001 - told as the other engines tell it
                words = f"{type(error).__name__}: {' '.join(str(error).split())}"
                done = Done(place, None, words, traceback.format_exc())
            yield done

    def close(self) -> None:
        """Do nothing: there is no worker."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
