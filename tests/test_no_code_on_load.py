"""Nothing that trimtab reads can execute code: no pickle in any form, proved from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "trimtab"
EXECUTING = frozenset(
    {"_pickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "torch.package"}
)


def keyword(call: ast.Call, name: str) -> object:
    for argument in call.keywords:
        if argument.arg == name and isinstance(argument.value, ast.Constant):
            return argument.value.value
    return None


def dangers(tree: ast.AST) -> Iterator[str]:
    """Yield each import or call by which a file that is read could execute code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = {alias.name for alias in node.names} | {
                alias.name.partition(".")[0] for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            found = {node.module or "", (node.module or "").partition(".")[0]}
        else:
            found = set()
        yield from (f"{node.lineno}: imports {name}" for name in sorted(found & EXECUTING))  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"eval", "exec", "pickle.load", "pickle.loads"}:
                yield f"{node.lineno}: calls {called}"
            if called == "torch.load" and keyword(node, "weights_only") is not True:
                yield f"{node.lineno}: torch.load without weights_only=True"
            if keyword(node, "allow_pickle") is True:
                yield f"{node.lineno}: {called} with allow_pickle=True"


def test_no_source_reads_by_executing() -> None:
    found = {
        str(file.relative_to(SOURCE)): list(dangers(ast.parse(file.read_text(encoding="utf-8"))))
        for file in SOURCE.rglob("*.py")
    }
    assert {file: lines for file, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "def f():\n    import cloudpickle as c",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "exec(text)",
    ],
)
def test_a_danger_is_found(text: str) -> None:
    assert len(list(dangers(ast.parse(text)))) == 1


def test_safe_reading_is_no_danger() -> None:
    safe = "torch.load(path, weights_only=True)\nnp.load(path)\nmodel.eval()\nast.literal_eval(x)"
    assert list(dangers(ast.parse(safe))) == []
