"""The command line, one file a subject."""

from __future__ import annotations

from trimtab.cli.main import main

__all__ = ["main"]
