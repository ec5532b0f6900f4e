"""Nested plain states as JSON text beside named arrays, and back: one form for all our files.

What differs from file to file is what an array is there, and how a bad file is told. Nothing in a
file is executed, whatever is wrong with one comes out as a single error, and one hash over texts
and arrays shows that a file is what was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trimtab.core.errors import TrimtabError

if TYPE_CHECKING:
    from collections.abc import Iterator


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


def array_bytes(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, ArrayBytes]]:
    """Yield NumPy arrays as `content_digest` takes them."""
    for name, one in arrays.items():
        yield name, ArrayBytes(str(one.dtype), one.shape, np.ascontiguousarray(one).tobytes())


def safetensors_header(data: bytes, longest: int = 2**27) -> Any:
    """Return what the header of a safetensors file says, unchecked; its texts are in it.

    Args:
        data: The file, or what there is of it.
        longest: Bytes of the header that are looked at.

    Raises:
        ValueError: There is no JSON where the header has to be.
    """
    size = min(int.from_bytes(data[:8], "little"), longest)
    return json.loads(data[8 : 8 + size])


def is_pickle_or_zip(data: bytes) -> bool:
    """Return whether a file begins as a pickle or a zip archive does, and not as safetensors.

    A safetensors file begins with the length of its header in eight bytes, of which the first may
    be that of a pickle, 128, and the second its protocol.
    """
    if data[:2] == b"PK":
        return True
    has_short_header = len(data) > 8 and not any(data[4:8]) and data[8:9] == b"{"
    return data[:1] == b"\x80" and not has_short_header


# What damaged files and plain data of the wrong shape raise on their way back.
_ODD = (
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    RecursionError,
    MemoryError,
    OverflowError,
)


@dataclass(frozen=True)
class StateForm:
    """How states are kept in one kind of file.

    A file's metadata hold the ``"format"``, the ``"state"`` as JSON, whatever else is text, and
    where the file has to prove itself the ``"sha256"`` over all of that and the arrays.

    Attributes:
        format: Name of the form, which a file of it carries.
        tag_of: Returns under which tag a value is put aside as an array; "" if it is none.
        aside: By tag, what is put aside of such a value.
        back: By tag, what an array that was put aside becomes again.
        error: Raised for what cannot be kept, and for files that are refused.
        advice: What to do about a file that is refused.
        has_text_keys: Whether a mapping's keys have to be texts; else they become texts.
        keeps_integers: Whether a mapping whose keys are all integers gets them back.
    """

    format: str
    tag_of: Callable[[Any], str]
    aside: Mapping[str, Callable[[Any], Any]]
    back: Mapping[str, Callable[[Any], Any]]
    error: type[TrimtabError]
    advice: str
    has_text_keys: bool = False
    keeps_integers: bool = False

    def take_apart(self, state: Any) -> tuple[str, dict[str, Any]]:
        """Return a state as JSON text, and its arrays by name.

        Args:
            state: Mappings, lists, tuples, numbers, texts, None and what ``tag_of`` knows.

        Raises:
            TrimtabError: Something else is in it; of the kind ``error``.
        """
        arrays: dict[str, Any] = {}
        return json.dumps(self._plain(state, arrays)), arrays

    def put_together(self, text: str, arrays: Mapping[str, Any]) -> Any:
        """Return the state that `take_apart` took apart.

        Raises:
            LookupError: An array is missing, or something else of Python's: see `refusing`.
        """
        return self._full(json.loads(text), arrays)

    def digest(self, texts: Mapping[str, str], arrays: Iterable[tuple[str, ArrayBytes]]) -> str:
        """Return the hash of a file's texts, but for the hash itself, and its arrays."""
        return content_digest({k: v for k, v in texts.items() if k != "sha256"}, arrays)

    def require_format(self, where: str, metadata: Mapping[str, str]) -> None:
        """Check that a file is of this form.

        Raises:
            TrimtabError: It is of another one, or of none.
        """
        found = metadata.get("format")
        if found != self.format:
            raise self.error(
                f"{where}: its format is {found!r}, expected {self.format!r}; it was not written "
                "by this version of trimtab"
            )

    def require_content(
        self, where: str, metadata: Mapping[str, str], arrays: Iterable[tuple[str, ArrayBytes]]
    ) -> None:
        """Check by its hash that a file holds what was written.

        Raises:
            TrimtabError: It was changed, or has no hash.
        """
        if metadata.get("sha256") != self.digest(metadata, arrays):
            raise self.error(
                f"{where}: it was changed after it was written (its hash is another); {self.advice}"
            )

    @contextmanager
    def refusing(self, where: str, *more: type[Exception]) -> Iterator[None]:
        """Tell whatever a damaged file raises as one error of ours.

        Args:
            where: The file, as messages begin with it.
            more: Errors of the library that reads it.

        Raises:
            TrimtabError: Something in the block failed.
        """
        caught: tuple[type[Exception], ...] = (*_ODD, *more)
        try:
            yield
        except TrimtabError:
            raise
        except caught as error:
            words = " ".join(str(error).split())[:200] or type(error).__name__
            raise self.error(
                f"{where}: no state can be read there ({words}); {self.advice}"
            ) from error

    def _plain(self, value: Any, arrays: dict[str, Any]) -> Any:
        tag = self.tag_of(value)
        if tag:
            name = f"{tag[0]}{len(arrays)}"
            arrays[name] = self.aside[tag](value)
            return {tag: name}
        if isinstance(value, Mapping):
            odd = [key for key in value if not isinstance(key, str)]
            if odd and self.has_text_keys:
                raise self.error(f"state: the key {odd[0]!r} is no text; use texts")
            numbered = self.keeps_integers and odd and all(type(key) is int for key in value)
            plain = {str(key): self._plain(item, arrays) for key, item in value.items()}
            return {"numbered" if numbered else "map": plain}
        if isinstance(value, tuple):
            return {"tuple": [self._plain(item, arrays) for item in value]}
        if isinstance(value, list):
            return [self._plain(item, arrays) for item in value]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise self.error(
            f"state: {value!r} ({type(value).__name__}) cannot be kept in a file; "
            "only numbers, texts, lists, mappings and arrays can"
        )

    def _full(self, value: Any, arrays: Mapping[str, Any]) -> Any:
        if isinstance(value, list):
            return [self._full(item, arrays) for item in value]
        if not isinstance(value, dict):
            return value
        for tag, made in self.back.items():
            if tag in value:
                return made(arrays[value[tag]])
        if "tuple" in value:
            return tuple(self._full(item, arrays) for item in value["tuple"])
        if "numbered" in value:
            return {int(key): self._full(item, arrays) for key, item in value["numbered"].items()}
        return {key: self._full(item, arrays) for key, item in value["map"].items()}


def numpy_form(
    format: str,
    error: type[TrimtabError],
    advice: str,
    *,
    aside: Callable[[Any], np.ndarray] = lambda value: np.array(value, order="C"),
    has_text_keys: bool = False,
    keeps_integers: bool = False,
) -> StateForm:
    """Return a form whose arrays are NumPy's, its single numbers included.

    Args:
        format: See `StateForm`, as for the others.
        error: Raised for what is refused.
        advice: What to do about a refused file.
        aside: Returns the array, contiguous, that is kept of an array or number.
        has_text_keys: Whether keys have to be texts.
        keeps_integers: Whether integer keys come back as such.
    """

    def tag_of(value: Any) -> str:
        if isinstance(value, np.ndarray):
            return "array"
        return "scalar" if isinstance(value, np.generic) else ""

    return StateForm(
        format=format,
        tag_of=tag_of,
        aside={"array": aside, "scalar": aside},
        back={"array": np.copy, "scalar": lambda array: array[()]},
        error=error,
        advice=advice,
        has_text_keys=has_text_keys,
        keeps_integers=keeps_integers,
    )
