"""Reading an SQLite file in a folder that nothing can be written to."""

from __future__ import annotations

import os
from pathlib import Path

from trimtab.core.errors import StoreError

__all__ = ["may_write_beside", "reading_address"]

_READS_AHEAD = b"\x02\x02"  # bytes 18 and 19 of a file with a write-ahead log, see its format


def may_write_beside(path: Path) -> bool:
    """Return whether this process may make files in a file's folder."""
    folder = path.resolve().parent
    return os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def reading_address(path: Path) -> str | None:
    """Return the URI by which a file is read where nothing can be written beside it.

    With a write-ahead log SQLite makes a file beside the database even to read. Where it cannot,
    a database without such a log is read as one that nobody changes. One that has its log and the
    log's index is read as usual.

    Args:
        path: An SQLite file.

    Returns:
        The URI; None where the file is opened as usual.

    Raises:
        StoreError: Only its log holds what was written last, and its index cannot be made.
    """
    if may_write_beside(path):
        return None
    real = path.resolve()
    try:
        with real.open("rb") as file:
            is_logged = file.read(20)[18:] == _READS_AHEAD
        log, index = (real.with_name(f"{real.name}-{end}") for end in ("wal", "shm"))
        if not is_logged or index.exists():
            return None
        if not log.exists() or log.stat().st_size == 0:
            return f"{real.as_uri()}?immutable=1"
    except OSError:
        return None  # SQLite says what is wrong with it
    raise StoreError(
        f"the store {path} lies in a folder that cannot be written to, and its last rows are in "
        f"{log.name} only, which SQLite reads with a file of its own beside it; copy {path.name} "
        f"and {log.name} into a folder of yours and name that copy (--store, TRIMTAB_STORE), or "
        "have somebody who may write there run trimtab studies once"
    )
