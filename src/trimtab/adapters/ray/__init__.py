"""Steering Ray Tune's trials.

The scheduler is loaded when it is used: a member of a population needs no Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.adapters.ray.scheduler import TrimtabScheduler as TrimtabScheduler

__all__ = ["TrimtabScheduler"]


def __getattr__(name: str) -> Any:
    if name != "TrimtabScheduler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trimtab.adapters.ray.scheduler import TrimtabScheduler

    return TrimtabScheduler
