"""Snapshots of runs as files: nested plain data and arrays in safetensors, checked by their hash.

Nothing is pickled, and nothing in a file is executed when it is read.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trimtab.core.errors import SpecError, StoreError
from trimtab.core.nested_state import numpy_form
from trimtab.records import array_files
from trimtab.records.store.database import file_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RUN_FOLDER = re.compile(r"run-[0-9]{6,}")


class SnapshotFile(NamedTuple):
    """A file that was written.

    Attributes:
        path: Where it lies.
        size: In bytes.
        sha256: Of its content, in hex.
    """

    path: Path
    size: int
    sha256: str


def check_study_name(name: str) -> str:
    """Return a study's name if it can be the name of a folder.

    Raises:
        SpecError: It could lead out of its folder, or is no portable file name.
    """
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise SpecError(
            f"study {name!r}: a name has 1 to 100 letters, digits, '-', '_' and '.', begins with "
            "a letter or digit and does not end with '.'; choose such a name"
        )
    return name


def snapshot_folder(url: str, study: str) -> Path:
    """Return the folder of a study's snapshots: beside an SQLite file, else in the working folder.

    ``TRIMTAB_SNAPSHOTS`` names another place, such as a disk that all machines of a cluster share.
    In a place that several stores may use, each store has a folder of its own, so that studies of
    one name in two databases never touch each other's files.

    Raises:
        SpecError: The study's name is not allowed.
    """
    elsewhere = os.environ.get("TRIMTAB_SNAPSHOTS")
    beside = file_of(url)
    if elsewhere:
        root = Path(elsewhere) / _name_of_store(url)
    elif beside is not None:
        root = beside.with_name(f"{beside.name}.snapshots")
    else:
        root = Path("trimtab.snapshots") / _name_of_store(url)
    return root.absolute() / check_study_name(study)


def _name_of_store(url: str) -> str:
    """Return a folder's name for a store: its database's, and digits of where that is.

    Who connects, and with what password, makes no difference.
    """
    from sqlalchemy.engine import make_url

    path = file_of(url)
    if path is not None:
        name, place = path.name, str(path.absolute())
    else:
        parts = make_url(url)
        host = parts.host or str(parts.query.get("host", ""))
        name = parts.database or "database"
        place = f"{parts.get_backend_name()}://{host}:{parts.port or ''}/{name}"
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".")[:60]
    return f"{plain or 'store'}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def write_snapshot(path: Path, state: Any) -> SnapshotFile:
    """Write a state, whole or not at all, into a folder that is made if it is missing.

    Raises:
        StoreError: The state holds something that cannot be kept, or the disk does not take it.
    """
    data = pack(state)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise StoreError(
            f"snapshot {path} cannot be written ({error.strerror or error}); free some space, or "
            "set TRIMTAB_SNAPSHOTS to a folder elsewhere"
        ) from error
    return SnapshotFile(path, len(data), hashlib.sha256(data).hexdigest())


def read_snapshot(path: Path, sha256: str) -> Any:
    """Return the state in a file whose hash is the expected one.

    Raises:
        StoreError: The file is missing, is not what was written, or cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(
            f"snapshot {path} cannot be read ({error.strerror or error}); "
            "put it back, or resume from an earlier one"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise StoreError(
            f"snapshot {path} was changed after it was written (sha256 {found[:12]}, expected "
            f"{sha256[:12]}); it is refused"
        )
    return unpack(data, f"snapshot {path}")


def is_snapshot_of(path: Path, study: str) -> bool:
    """Whether a path is named and placed as `write_snapshot` is asked to for a study.

    A database says where the files are, and it may be another's: nothing else is ever removed.
    """
    *_, folder, run, name = ("", "", "", *path.parts)
    return (
        path.is_absolute()
        and ".." not in path.parts
        and folder == study
        and _RUN_FOLDER.fullmatch(run) is not None
        and name.endswith(".safetensors")
    )


def remove_snapshot(path: Path, study: str) -> None:
    """Remove the file of a study's snapshot if it is one, and is there.

    Raises:
        StoreError: The file cannot be removed.
    """
    try:
        if is_snapshot_of(path, study):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"snapshot {path} cannot be removed ({error.strerror or error}); make its folder "
            "writable"
        ) from error


def pack(state: Any) -> bytes:
    """Return a state as the bytes of a safetensors file; see `trimtab.records.array_files`.

    Raises:
        StoreError: Something is in it that cannot be kept, or a key that is no text.
    """
    return array_files.pack(state, _FORM, is_sealed=False)  # the database has a hash of it all


def unpack(data: bytes, where: str = "snapshot") -> Any:
    """Return the state in the bytes that `pack` gave; messages call them ``where``.

    Raises:
        StoreError: They are not such bytes.
    """
    return array_files.unpack(data, _FORM, where, is_sealed=False)


def _array(value: Any) -> np.ndarray:
    array = np.array(value, order="C")
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise StoreError(f"snapshot: an array of {array.dtype} cannot be kept; use numbers")
    return array


_FORM = numpy_form(
    "trimtab-snapshot-1", StoreError, "resume from an earlier one", aside=_array, has_text_keys=True
)
