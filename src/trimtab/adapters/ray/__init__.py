"""Steering Ray Tune's trials."""

from __future__ import annotations

from trimtab.adapters.ray.scheduler import TrimtabScheduler

__all__ = ["TrimtabScheduler"]
