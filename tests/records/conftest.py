"""An empty store, of each kind of database."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.postgresql_server import new_database, postgres

__all__ = ["postgres", "store"]


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of an empty store, of each kind of database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'runs.db'}"
    return new_database(request.getfixturevalue("postgres"))
