"""One hash over texts and arrays, by which a file shows that it is what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

__all__ = ["ArrayBytes", "content_digest"]


class ArrayBytes(NamedTuple):
    """An array of any framework, as bytes.

    Attributes:
        dtype: Name of its type.
        shape: Its shape.
        data: Its numbers, contiguous: anything with a buffer.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Any


def content_digest(texts: Mapping[str, str], arrays: Iterable[tuple[str, ArrayBytes]]) -> str:
    """Return the SHA-256, in hex, of named texts and arrays; their order does not matter.

    Every part is preceded by its length, so that no two contents are hashed as the same bytes.

    >>> content_digest({"a": "bc"}, []) == content_digest({"ab": "c"}, [])
    False
    """
    digest = hashlib.sha256()

    def take(part: Any) -> None:
        with memoryview(part) as view:
            digest.update(view.nbytes.to_bytes(8, "little"))
            digest.update(view.cast("B") if view.nbytes else b"")

    for name in sorted(texts):
        take(b"text")
        take(name.encode())
        take(texts[name].encode())
    for name, array in sorted(arrays, key=lambda pair: pair[0]):
        take(b"array")
        take(name.encode())
        take(f"{array.dtype} {array.shape}".encode())
        take(array.data)
    return digest.hexdigest()
