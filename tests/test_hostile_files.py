"""Damaged and forged policies and snapshots: each is refused in words, or is what was written.

The files are read in a process of their own whose memory is limited, that reports every audit
event by which code could be executed, and whose longest read is timed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.core.errors import TrimtabError

QUICK, THOROUGH = 200, 10_000
TIMEOUT = 540
ROOM_BYTES = 512 * 2**20
SLOWEST_SECONDS = 5.0
EXECUTING = (
    "compile",
    "ctypes.dlopen",
    "exec",
    "marshal.loads",
    "os.exec",
    "os.posix_spawn",
    "os.system",
    "pickle.find_class",
    "shutil.",
    "socket.connect",
    "subprocess.Popen",
)

Write = Callable[[Path], None]
Read = Callable[[Path], Any]


# What is attacked: how each kind of file is written and read.


def policy_files() -> tuple[list[Write], Read]:
    from trimtab.controllers.learned import (
        PolicyFile,
        parameter_shapes,
        read_policy,
        write_policy,
    )
    from trimtab.core.features import GLOBAL_FEATURES
    from trimtab.core.spec import ControlSpec

    def policy(seed: int) -> PolicyFile:
        generator = np.random.default_rng(seed)
        n_global = len(GLOBAL_FEATURES)
        shapes = parameter_shapes(3 + seed)
        return PolicyFile(
            name=f"attacked-{seed}",
            spec=ControlSpec(decisions=20 + seed),
            parameters={
                name: generator.normal(size=shape).astype(np.float32)
                for name, shape in shapes.items()
            },
            novelty={
                "novelty_mean": np.zeros(n_global, np.float32),
                "novelty_scale": np.ones(n_global, np.float32),
                "novelty_limit": np.full(1, 12.0, np.float32),
            },
            about={"runs": str(seed)},
        )

    def read(path: Path) -> Any:
        found = read_policy(path)
        arrays = {**found.parameters, **found.novelty}
        return found.name, found.spec, dict(found.about), arrays

    return [lambda path, s=seed: write_policy(path, policy(s)) for seed in (0, 1)], read


def nested_state(array: Callable[[Any], Any], seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "format": 1,
        "session": {"steps": [1, 2.5, None, True, "text"], "pair": (1, seed)},
        "best": {"weights": array(generator.normal(size=(4, 5)).astype(np.float32))},
        "step": array(np.array(seed, np.int64)),
    }


def torch_states() -> tuple[list[Write], Read]:
    import torch

    from trimtab.adapters.torch.state import read_state, write_state

    def write(path: Path, seed: int) -> None:
        write_state(path, nested_state(lambda value: torch.from_numpy(value.copy()), seed))

    def read(path: Path) -> Any:
        return read_state(path)[0]

    return [lambda path, s=seed: write(path, s) for seed in (0, 1)], read


def keras_states() -> tuple[list[Write], Read]:
    from trimtab.adapters.keras.state import read_state, write_state

    weights = "0123456789abcdef"

    def write(path: Path, seed: int) -> None:
        path.unlink(missing_ok=True)
        write_state(path, nested_state(np.asarray, seed), weights)

    return [lambda path, s=seed: write(path, s) for seed in (0, 1)], lambda path: read_state(
        path, weights
    )


def study_snapshots() -> tuple[list[Write], Read]:
    from trimtab.records.store.snapshots import read_snapshot, write_snapshot

    hashes: dict[int, str] = {}

    def write(path: Path, seed: int) -> None:
        hashes[seed] = write_snapshot(path, nested_state(np.asarray, seed)).sha256

    return [lambda path, s=seed: write(path, s) for seed in (0, 1)], lambda path: read_snapshot(
        path, hashes[0]
    )


KINDS = {
    "policy": policy_files,
    "torch": torch_states,
    "keras": keras_states,
    "study": study_snapshots,
}


# How it is attacked.


def mutated(one: bytes, other: bytes, chance: random.Random) -> bytes:
    """Return a file with some of its bits, its length, or its header changed."""
    data = bytearray(one)
    size = 8 + int.from_bytes(one[:8], "little")
    kind = chance.randrange(9)
    if kind == 0:  # single bits anywhere
        for _ in range(chance.choice((1, 1, 1, 2, 8))):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == 1:  # single bits of the header
        for _ in range(chance.choice((1, 1, 2))):
            data[chance.randrange(size)] ^= 1 << chance.randrange(8)
    elif kind == 2:
        del data[chance.randrange(len(data)) :]
    elif kind == 3:
        data += bytes(chance.randrange(256) for _ in range(chance.choice((1, 8, 4096))))
    elif kind == 4:  # one file's header before the other's numbers
        data[size:] = other[8 + int.from_bytes(other[:8], "little") :]
    elif kind == 5:  # a piece of the other file
        first = chance.randrange(len(data))
        piece = other[first : first + chance.choice((1, 16, 400))]
        data[first : first + len(piece)] = piece
    elif kind == 6:  # the length of the header
        length = chance.choice((0, 1, size, 2**16, 2**31, 2**32, 2**63, 2**64 - 1))
        data[:8] = length.to_bytes(8, "little")
    elif kind == 7:  # a digit, a quote or a bracket of the header
        data[8 + chance.randrange(size - 8)] = chance.choice(b'0129",:[]{}e-')
    else:  # numbers alone
        at = size + chance.randrange(max(len(data) - size, 1))
        data[min(at, len(data) - 1)] ^= 1 << chance.randrange(8)
    return bytes(data)


def forged(one: bytes) -> Iterator[bytes]:
    """Yield files that somebody made to do harm."""
    size = int.from_bytes(one[:8], "little")
    header, body = json.loads(one[8 : 8 + size]), one[8 + size :]

    def with_header(text: str | bytes, length: int | None = None) -> bytes:
        raw = text if isinstance(text, bytes) else text.encode()
        return (len(raw) if length is None else length).to_bytes(8, "little") + raw + body

    yield b""
    yield b"\x80\x04cposix\nsystem\n(S'exit 1'\ntR."
    yield b"PK\x03\x04" + body
    yield with_header("[" * 200_000)
    yield with_header("{" * 200_000)
    yield with_header('{"a":' * 100_000 + "1" + "}" * 100_000)
    yield with_header("[]")
    yield with_header('"text"')
    yield with_header('{"__metadata__": []}')
    yield with_header('{"__metadata__": {"format": ' + "9" * 100_000 + "}}")
    yield with_header(b"\xff\xfe{}")
    yield with_header(json.dumps(header), 2**62)
    for shape in ([2**62, 2**62], [-1], [10**30], ["4"], [[4]], None, [2**40]):
        for name in list(header)[1:2]:
            yield with_header(json.dumps({**header, name: {**header[name], "shape": shape}}))
    for offsets in ([0, 2**62], [2**62, 2**63], [8, 0], [-8, 0], [0.5, 4]):
        for name in list(header)[1:2]:
            entry = {**header[name], "data_offsets": offsets}
            yield with_header(json.dumps({**header, name: entry}))
    for dtype in ("I32", "F64", "BOOL", "F8_E4M3", "BF16", "OBJECT", ""):
        yield with_header(
            json.dumps(
                {
                    name: {**entry, "dtype": dtype} if "dtype" in entry else entry
                    for name, entry in header.items()
                }
            )
        )
    metadata = header["__metadata__"]
    deep = "[" * 50_000 + "]" * 50_000
    values = ("", "{}", "[]", "1e999", "NaN", deep, '{"map": 3}', '{"tensor": "none"}', "9" * 5000)
    for key in metadata:
        for value in values:
            yield with_header(json.dumps({**header, "__metadata__": {**metadata, key: value}}))
        rest = {other: text for other, text in metadata.items() if other not in (key, "sha256")}
        yield with_header(json.dumps({**header, "__metadata__": rest}))
        if key != "sha256":
            for value in values:
                changed = {**rest, key: value}
                yield with_header(json.dumps({**header, "__metadata__": changed}))


def same(one: Any, other: Any) -> bool:
    """Return whether two states are equal to the last bit, types included."""
    if hasattr(one, "dtype") and hasattr(one, "shape"):
        return (
            type(one) is type(other)
            and str(one.dtype) == str(other.dtype)
            and np.asarray(one).tobytes() == np.asarray(other).tobytes()
            and tuple(one.shape) == tuple(other.shape)
        )
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def same_content(one: bytes, other: bytes) -> bool:
    """Return whether two files hold the same texts and numbers, in whatever order."""

    def parts(data: bytes) -> Any:
        size = int.from_bytes(data[:8], "little")
        return json.loads(data[8 : 8 + size]), data[8 + size :]

    try:
        return bool(parts(one) == parts(other))
    except (ValueError, RecursionError):
        return False


def attack(kind: str, n_files: int, folder: Path) -> dict[str, Any]:
    """Read so many damaged files; return what came of it. Runs in a process of its own."""
    import resource
    import time

    writers, read = KINDS[kind]()
    path, spare = folder / "file.safetensors", folder / "other.safetensors"
    for number, write in enumerate(writers):
        write((path, spare)[number])
    one, other = path.read_bytes(), spare.read_bytes()
    original = read(path)
    events: list[str] = []
    armed = False

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if armed and event.startswith(EXECUTING):
            events.append(f"{event} {arguments!r}"[:200])

    def outcome(data: bytes) -> str:
        path.write_bytes(data)
        try:
            found = read(path)
        except TrimtabError as error:
            return "refused" if "\n" not in str(error) else "said in several lines"
        return "equal" if same(found, original) else "other"

    outcome(one[:100]), outcome(b"")  # whatever is imported lazily is imported here
    sys.addaudithook(listen)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, used + ROOM_BYTES))
    chance = random.Random(f"{kind}-files")
    counts = {"refused": 0, "equal": 0}
    others: list[str] = []
    slowest = 0.0
    files = [*forged(one), *(mutated(one, other, chance) for _ in range(n_files + n_files // 50))]
    # A large piece of the other file can be all of it, which is not a damaged file.
    files = [data for data in files if not same_content(data, other)]
    assert outcome(one) == "equal"
    armed = True
    for number, data in enumerate(files):
        began = time.process_time()
        came = outcome(data)
        slowest = max(slowest, time.process_time() - began)
        if came in counts:
            counts[came] += 1
        else:
            others.append(f"file {number} of {len(files)}: {came}")
    armed = False
    return {"counts": counts, "others": others[:5], "events": events[:5], "slowest": slowest}


def attacked(kind: str, n_files: int, folder: Path) -> dict[str, int]:
    here = Path(__file__)
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import json, sys, {here.stem} as t; from pathlib import Path\n"
            f"print(json.dumps(t.attack({kind!r}, {n_files}, Path(sys.argv[1]))))",
            str(folder),
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env={**os.environ, "PYTHONPATH": str(here.parent)},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["others"] == [], "read as something else than what was written"
    assert found["events"] == [], "code was executed"
    assert found["slowest"] < SLOWEST_SECONDS
    return dict(found["counts"])


@pytest.mark.parametrize(
    "kind", ["policy", "torch", "study", pytest.param("keras", marks=pytest.mark.framework)]
)
def test_damaged_files_are_refused_or_equal(tmp_path, kind):
    if kind in ("torch", "keras"):
        pytest.importorskip(kind)
    counts = attacked(kind, QUICK, tmp_path)
    assert counts["refused"] > 0.8 * QUICK


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_ten_thousand_damaged_files_are_refused_or_equal(tmp_path, kind):
    if kind in ("torch", "keras"):
        pytest.importorskip(kind)
    counts = attacked(kind, THOROUGH, tmp_path)
    assert sum(counts.values()) > THOROUGH
    assert counts["refused"] > 0.9 * THOROUGH


def test_the_attack_itself_can_fail(tmp_path, monkeypatch):
    """Without its check of the hash, a policy is read with other numbers in it."""
    from trimtab.controllers import learned

    writers, read = policy_files()
    path = tmp_path / "policy.safetensors"
    writers[0](path)
    original, data = read(path), path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    body = bytearray(data[8 + size :])
    body[40] ^= 1
    path.write_bytes(data[: 8 + size] + bytes(body))
    with pytest.raises(TrimtabError, match=r"was changed after it was written .sha256"):
        learned.read_policy(path)
    kept = header["__metadata__"].pop("sha256")
    with monkeypatch.context() as patched:
        patched.setattr(learned, "_digest", lambda *_: kept)
        assert not same(read(path), original)
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + size :])
    with pytest.raises(TrimtabError, match=r"the file says none"):
        learned.read_policy(path)
