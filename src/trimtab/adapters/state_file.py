"""The state of a steered run as one safetensors file, whatever its arrays are; nothing is pickled.

A framework says how its arrays are written and what their bytes are, and adds its own random state
to that of Python and NumPy; all else stands here.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from trimtab.core.nested_state import ArrayBytes, StateForm


@dataclass(frozen=True)
class StateFile:
    """How the states of one framework's runs are written and read.

    Attributes:
        form: Takes states apart, and names the kind of file.
        framework: What safetensors calls the arrays that it gives back: ``"pt"`` or ``"np"``.
        save: Its function that writes them: arrays by name, a path, and ``metadata=``.
        bytes_of: Returns an array as bytes, for the file's hash.
    """

    form: StateForm
    framework: str
    save: Callable[..., None]
    bytes_of: Callable[[Any], ArrayBytes]

    def write_partial(self, path: Path, state: Mapping[str, Any], **texts: str) -> tuple[Path, str]:
        """Write a state beside its path; return where it lies, to be moved, and its plain part.

        Args:
            path: Where it is going to be; the folder exists.
            state: Mappings with text keys, lists, tuples, numbers, texts, None and arrays.
            texts: Further metadata.

        Raises:
            AdapterError: Something else is in the state.
            OSError: The file cannot be written.
        """
        plain, arrays = self.form.take_apart(state)
        partial = path.with_name(f"{path.name}.partial")
        metadata = {"format": self.form.format, "state": plain, **texts}
        metadata["sha256"] = self.form.digest(metadata, self._bytes(arrays))
        try:
            self.save(arrays, partial, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from error
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        return partial, plain

    def read(self, path: Path, where: str) -> tuple[dict[str, Any], str]:
        """Return the state in a file, with arrays in main memory, and its plain part.

        Args:
            path: The file.
            where: What messages begin with.

        Raises:
            AdapterError: The file is missing, damaged, changed after it was written, or not one of
                these.
        """
        form = self.form
        with form.refusing(where, OSError, SafetensorError):
            with safe_open(path, framework=self.framework) as file:
                metadata = file.metadata() or {}
                form.require_format(where, metadata)
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            form.require_content(where, metadata, self._bytes(arrays))
            plain = metadata["state"]
            return dict(form.put_together(plain, arrays)), plain

    def text(self, path: Path, key: str) -> str:
        """Return one text of a file's metadata; empty if there is none, or no such file."""
        try:
            with safe_open(path, framework=self.framework) as file:
                return str((file.metadata() or {}).get(key, ""))
        except (OSError, SafetensorError):
            return ""

    def _bytes(self, arrays: Mapping[str, Any]) -> Iterator[tuple[str, ArrayBytes]]:
        return ((name, self.bytes_of(array)) for name, array in arrays.items())


def random_state() -> dict[str, Any]:
    """Return the state of the two global generators of this process."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - the user's
    version, numbers, gauss_next = random.getstate()
    return {
        "python": [version, list(numbers), gauss_next],
        "numpy": [str(kind), np.asarray(keys).tolist(), position, has_gauss, gauss],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned, or what earlier versions kept of a Keras run."""
    version, numbers, gauss_next = _in_order(state["python"])
    random.setstate((version, tuple(map(int, numbers)), gauss_next))
    kind, keys, position, has_gauss, gauss = _in_order(state["numpy"])
    np.random.set_state(  # noqa: NPY002 - the user's
        (kind, np.asarray(keys, np.uint32), position, has_gauss, gauss)
    )


def _in_order(kept: Any) -> list[Any]:
    # Version 0.1 wrote mappings for Keras, whose entries stand in this very order.
    return list(kept.values() if isinstance(kept, Mapping) else kept)
