"""Where the rows of an evaluation are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.controllers.learned import PolicyFile

__all__ = ["kept_rows", "policy_identity", "write_parquet"]


def kept_rows(
    file: Path, make: Callable[..., Iterator[dict[str, Any]]], *arguments: Any
) -> list[dict[str, Any]]:
    """Return the rows in a file, made and written at once if it is not there."""
    if file.exists():
        return list(json.loads(file.read_text()))
    rows = list(make(*arguments))
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(rows))
    partial.replace(file)
    return rows


def policy_identity(policy: PolicyFile) -> str:
    """Return 12 hexadecimal digits that name a policy's arrays."""
    arrays = [
        np.ascontiguousarray(policy.parameters[k]).tobytes() for k in sorted(policy.parameters)
    ]
    return hashlib.sha256(b"".join(arrays)).hexdigest()[:12]


def write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows as one Parquet file, small enough to be kept with the code."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows)
    for name in ("validation", "test", "accuracy", "spent", "rollbacks", "lr", "factor"):
        index = table.column_names.index(name)
        table = table.set_column(index, name, table.column(name).cast(pa.float32()))
    pq.write_table(table, path, compression="zstd")
