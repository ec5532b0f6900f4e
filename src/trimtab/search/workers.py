"""Units done side by side by processes that are started for them, and end with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trimtab.core.errors import StoreError
from trimtab.search.engines.base import Done
from trimtab.search.engines.local import LocalEngine

__all__ = ["Done", "run_all"]


def run_all(
    function: Callable[..., Any], work: Sequence[tuple[Any, ...]], jobs: int
) -> Iterator[Done]:
    """Yield what a function returns for each tuple of arguments, as it comes.

    The function, its arguments and results have to be importable or plain, since every process
    is a new interpreter. If the caller stops early, the processes are ended at once.

    Args:
        function: Done in other processes.
        work: Arguments, taken in this order.
        jobs: Processes at a time.

    Raises:
        StoreError: A process died, for example for want of memory.
    """
    with LocalEngine(jobs) as engine:
        for done in engine.run(function, work):
            if done.died:
                raise StoreError(
                    f"{done.error}; what was done is kept: run the same command again, with fewer "
                    "--jobs if memory was short"
                )
            yield done
