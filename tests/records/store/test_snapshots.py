"""Nested states survive as bytes, and a file that was changed is refused."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from trimtab.core.errors import StoreError
from trimtab.records.store.snapshots import pack, read_snapshot, unpack, write_snapshot

STATE = {
    "list": [1, 2.5, None, "text", True, float("inf"), 2**100],
    "tuple": (np.arange(6, dtype=np.int64).reshape(2, 3), np.float32(0.1)),
    "empty": {"map": {}, "list": [], "array": np.zeros((0, 3), np.float32)},
    "zero-dim": np.array(3.0),
}


def test_nested_states_survive_as_bytes() -> None:
    found = unpack(pack(STATE))
    assert found["list"] == STATE["list"]
    assert isinstance(found["tuple"], tuple)
    assert np.array_equal(found["tuple"][0], STATE["tuple"][0])
    assert found["tuple"][1] == np.float32(0.1)
    assert found["tuple"][1].dtype == np.float32
    assert found["empty"]["array"].shape == (0, 3)
    assert found["zero-dim"].shape == ()


@pytest.mark.parametrize("odd", [object(), {1: 2}, np.array(["text"]), [{3}]])
def test_what_is_not_plain_is_refused(odd: object) -> None:
    with pytest.raises(StoreError, match=r"^(state|snapshot): "):
        pack({"odd": odd})


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    kept = write_snapshot(tmp_path / "new" / "a.safetensors", STATE)
    assert read_snapshot(kept.path, kept.sha256)["list"][3] == "text"
    data = bytearray(kept.path.read_bytes())
    assert len(data) == kept.size
    data[-1] ^= 1
    kept.path.write_bytes(data)
    with pytest.raises(StoreError, match="was changed after it was written"):
        read_snapshot(kept.path, kept.sha256)
    kept.path.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        read_snapshot(kept.path, kept.sha256)


def test_mutated_bytes_are_a_store_error_or_a_state() -> None:
    whole = pack(STATE)
    generator = np.random.default_rng(0)
    for _ in range(2000):
        data = bytearray(whole)
        for place in generator.integers(0, len(data), int(generator.integers(1, 6))):
            data[place] = int(generator.integers(256))
        cut = len(data) if generator.random() < 0.7 else int(generator.integers(len(data)))
        with suppress(StoreError):
            unpack(bytes(data[:cut]))
