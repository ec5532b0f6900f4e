"""Opening a store's database: addresses, connections, schema, and failures in one clear line.

An SQLite file can be read where nothing may be written beside it.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from trimtab.core.errors import MissingDependencyError, StoreError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine


DEFAULT_STORE = "sqlite:///trimtab.db"

BUSY_SECONDS = 5.0
"""How long opening and finishing wait for a database that another process has locked."""

_READS_AHEAD = b"\x02\x02"  # bytes 18 and 19 of a file with a write-ahead log, see its format
_MOST_IDLE = 8
# Engines that were let go of, without connections: SQLAlchemy keeps the statements that it has
# compiled with the engine, and compiling them anew cost a third of a short study's overhead.
_idle: list[Engine] = []
_idle_lock = threading.Lock()
_address: WeakKeyDictionary[Engine, tuple[str, bool]] = WeakKeyDictionary()

_ELSEWHERE = "choose another store (--store, TRIMTAB_STORE)"

# SQLite's error names, by their beginning -> what it means and what to do.
_SQLITE_FAILURES: dict[str, str] = {
    "SQLITE_BUSY": f"is locked by another process; end that process, or {_ELSEWHERE}",
    "SQLITE_LOCKED": f"is locked by another connection; close it, or {_ELSEWHERE}",
    "SQLITE_CORRUPT": f"is damaged; restore it from a copy, move it away, or {_ELSEWHERE}",
    "SQLITE_NOTADB": f"is not an SQLite database; move it away, or {_ELSEWHERE}",
    "SQLITE_READONLY": f"is read-only; make the file and its folder writable, or {_ELSEWHERE}",
    "SQLITE_PERM": f"may not be opened by this user; change its permissions, or {_ELSEWHERE}",
    "SQLITE_FULL": f"cannot grow: the disk is full; free some space, or {_ELSEWHERE}",
    "SQLITE_CANTOPEN": f"cannot be opened; check its folder and permissions, or {_ELSEWHERE}",
    "SQLITE_IOERR": (
        "cannot be read or written: disk I/O error; check the disk and the limit on the size of "
        f"files (ulimit -f), or {_ELSEWHERE}"
    ),
}


# What a database's driver is imported as -> what is installed for it, where they differ.
_DRIVER_PACKAGES: dict[str, str] = {
    "MySQLdb": "mysqlclient",
    "mysql": "mysql-connector-python",
    "psycopg": "'trimtab[postgres]'",
    "psycopg2": "psycopg2-binary",
}


def store_url(store: str | Path) -> str:
    """Return the database URL of what a user wrote: a URL as it is, else a path to SQLite.

    >>> store_url("runs.db")
    'sqlite:///runs.db'
    """
    text = str(store)
    if not text.strip():
        raise StoreError("store: '' is empty; give a path such as runs.db, or a database URL")
    return text if "://" in text else f"sqlite:///{text}"


def shown(url: str) -> str:
    """Return how a store is called in messages: the path of an SQLite file, no passwords.

    >>> shown("postgresql://me:secret@host/runs")
    'postgresql://me:***@host/runs'
    """
    path = file_of(url)
    return str(path) if path is not None else re.sub(r"://([^:/@]+):[^@]*@", r"://\1:***@", url)


def file_of(url: str) -> Path | None:
    """Return the file of an SQLite URL; None in memory, for URI file names and other databases."""
    if not url.startswith(("sqlite:///", "sqlite+pysqlite:///")):
        return None
    name = url.split(":///", 1)[1].split("?", 1)[0]
    return None if name in ("", ":memory:") or name.startswith("file:") else Path(name)


def explain_failure(error: Exception, url: str) -> StoreError:
    """Return the store's error for a database driver's: what happened, and what to do."""
    original = getattr(error, "orig", None) or error
    name = str(getattr(original, "sqlite_errorname", ""))
    for beginning, words in _SQLITE_FAILURES.items():
        if name.startswith(beginning):
            return StoreError(f"the store {shown(url)} {words}")
    reason = str(original).strip().splitlines()
    return StoreError(
        f"the store {shown(url)} cannot be used: {reason[0] if reason else type(error).__name__}; "
        f"check the address and that the database runs, or {_ELSEWHERE}"
    )


def _missing_driver(error: ImportError, url: str) -> MissingDependencyError:
    """Return the error for a database's driver that cannot be imported."""
    scheme = url.split("://", 1)[0]
    module = (error.name or "").split(".")[0]
    if not module:  # it is there, and lacks a library of its own
        return MissingDependencyError(
            f"the store {shown(url)} needs the driver of {scheme}, which cannot be loaded "
            f"({' '.join(str(error).split())}); install what it names, or {_ELSEWHERE}"
        )
    return MissingDependencyError(
        f"the store {shown(url)} needs {module}, the driver of {scheme}, which is not installed; "
        f"pip install {_DRIVER_PACKAGES.get(module, module)}"
    )


def open_engine(store: str | Path, *, write: bool) -> Engine:
    """Return an engine that connects on first use; whoever has done with it calls `close_engine`.

    SQLite writes ahead (WAL) with ``synchronous=NORMAL``, so that a commit costs no wait for the
    disk and a crash of the process loses nothing; transactions are begun by SQLAlchemy, with the
    write lock taken at once.

    Raises:
        StoreError: The address is none, or its file or folder does not exist.
        MissingDependencyError: The database's driver is not installed.
    """
    from sqlalchemy import create_engine, event
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    url = store_url(store)
    path = file_of(url)
    if path is not None and not write and not path.exists():
        raise StoreError(f"there is no store at {path}; run something first, or {_ELSEWHERE}")
    if path is not None and not path.parent.is_dir():
        raise StoreError(
            f"the store's folder {path.parent} does not exist; create it, or {_ELSEWHERE}"
        )
    if path is not None and path.is_dir():
        raise StoreError(f"the store {path} is a folder; name a file in it, such as {path}/runs.db")
    # SQLAlchemy makes a file's path absolute once: after a change of folder, it is another file.
    address = (url if path is None else f"{url} {path.absolute()}", write)
    with _idle_lock:
        for known in _idle:
            if _address.get(known) == address:
                _idle.remove(known)
                return known
    sqlite = url.startswith("sqlite")
    options: dict[str, Any] = {"connect_args": {"check_same_thread": False}} if sqlite else {}
    if path is not None and not write and not may_write_beside(path):
        options["poolclass"] = NullPool  # it may be taken for unchanging for a moment only
    try:
        engine = create_engine(url, **options)
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise StoreError(
            f"the store {shown(url)!r} is no database address ({error}); "
            "give a path such as runs.db, or a URL such as postgresql+psycopg://user@host/name"
        ) from error
    except ImportError as error:
        raise _missing_driver(error, url) from error
    if path is not None and not write:
        _read_where_nothing_is_written(engine, path)
    if sqlite:

        @event.listens_for(engine, "connect")
        def configure(connection: Any, _: Any) -> None:
            _configure_sqlite(connection, write=write)

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    _address[engine] = address
    return engine


def close_engine(engine: Engine) -> None:
    """Let go of an engine and its connections; `open_engine` may give it to somebody else then."""
    engine.dispose()
    with _idle_lock:
        if engine not in _idle:
            _idle.append(engine)
            del _idle[:-_MOST_IDLE]


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


def _read_where_nothing_is_written(engine: Engine, path: Path) -> None:
    """Let an engine that reads do so in a folder without permission to write, too."""
    from sqlalchemy import event

    @event.listens_for(engine, "do_connect")
    def connect(_: Any, __: Any, ___: Any, options: dict[str, Any]) -> Any:
        address = reading_address(path)
        return None if address is None else sqlite3.connect(address, uri=True, **options)


def _configure_sqlite(connection: Any, *, write: bool) -> None:
    connection.isolation_level = None  # the driver begins nothing on its own
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    cursor.execute("PRAGMA foreign_keys = ON")
    if write and _may_be_ours(cursor):
        mode = cursor.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode == "wal":
            cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


def _may_be_ours(cursor: Any) -> bool:
    """Whether a database is empty or a store; that of something else keeps its way of writing."""
    found = cursor.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return not found or {("runs",), ("alembic_version",)} <= set(found)


def prepare_schema(engine: Engine, url: str, *, write: bool) -> None:
    """Create the tables in an empty database, or bring older ones to this code's schema.

    Raises:
        StoreError: The schema is newer than this code, the database is of something else, or it
            cannot be read or written.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from trimtab.records.store.models import SCHEMA_VERSION

    try:
        with engine.connect() as connection:
            with connection.begin():
                found = _schema_version(connection, url)
            if found == SCHEMA_VERSION:
                return
            if found is not None and found > SCHEMA_VERSION:
                raise StoreError(
                    f"the store {shown(url)} was written by a newer trimtab (schema {found}, this "
                    f"one knows up to {SCHEMA_VERSION}); upgrade trimtab, or {_ELSEWHERE}"
                )
            if not write:
                state = "holds no runs" if found is None else f"has the older schema {found}"
                raise StoreError(
                    f"the store {shown(url)} {state}; run something with --store {shown(url)} first"
                )
            with connection.begin():
                if _schema_version(connection, url) != SCHEMA_VERSION:
                    _migrate(connection)
    except SQLAlchemyError as error:
        raise explain_failure(error, url) from error


def _schema_version(connection: Connection, url: str) -> str | None:
    """Return the database's revision; None if it is empty."""
    from sqlalchemy import inspect, text

    tables = set(inspect(connection).get_table_names())
    if "alembic_version" in tables:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if found is not None and "runs" in tables:
            return str(found)
    if tables:
        raise StoreError(
            f"the store {shown(url)} is the database of something else (it has the tables "
            f"{', '.join(sorted(tables)[:4])}); {_ELSEWHERE}"
        )
    return None


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
