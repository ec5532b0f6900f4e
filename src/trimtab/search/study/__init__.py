"""A study: one task, a budget of several runs, kept in a store."""

from __future__ import annotations

from trimtab.search.study.tune import resume, tune

__all__ = ["resume", "tune"]
