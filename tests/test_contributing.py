"""CONTRIBUTING.md's map of folders is written from the code: docstrings and the table of layers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_layering import COMPOSITION_ROOTS, LAYERS, SOURCE

PAGE = SOURCE.parents[1] / "CONTRIBUTING.md"
HEAD = "| in `src/trimtab` | holds | may import of trimtab |\n|---|---|---|\n"


def summary_of(file: Path) -> str:
    """Return the first sentence of a file's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert text, f"{file} has no docstring; its first line says what is in there"
    return text.partition("\n\n")[0].replace("\n", " ").removesuffix(".")


def folders(source: Path) -> Iterator[tuple[str, Path]]:
    """Yield each folder with Python code, and the file that says what is in there."""
    for folder in sorted({file.parent for file in source.rglob("*.py")} - {source}):
        yield folder.relative_to(source).as_posix(), folder / "__init__.py"


def single_files(source: Path) -> Iterator[tuple[str, Path]]:
    """Yield each part that is a file."""
    for file in sorted(source.glob("*.py")):
        if not file.stem.startswith("__"):
            yield file.name, file


def may_import(name: str) -> str:
    """Return what a part may import; a folder inside of one has a word of its own or none."""
    part = name.removesuffix(".py")
    if part in COMPOSITION_ROOTS:
        return "anything, inside functions"
    if part in LAYERS:
        return ", ".join(f"`{one}`" for one in sorted(LAYERS[part])) or "nothing"
    return ""


def folder_map(source: Path) -> str:
    """Return the table, lowest layers first."""
    order = {name: place for place, name in enumerate(LAYERS)}
    rows = sorted(
        [*folders(source), *single_files(source)],
        key=lambda row: (order.get(row[0].partition("/")[0].removesuffix(".py"), 99), row[0]),
    )
    lines = [f"| `{name}` | {summary_of(file)} | {may_import(name)} |" for name, file in rows]
    return HEAD + "\n".join(lines) + "\n"


def test_the_map_of_folders_is_that_of_the_code(request: pytest.FixtureRequest) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, head, rest = text.partition(HEAD)
    assert head, f"CONTRIBUTING.md has no table that begins with\n{HEAD}"
    table, _, after = rest.partition("\n\n")
    wanted = folder_map(SOURCE)
    if request.config.getoption("--update-golden"):
        PAGE.write_text(f"{before}{wanted}\n{after}", encoding="utf-8")
        return
    assert head + table + "\n" == wanted, "run pytest --update-golden, and read what has changed"


def test_each_folder_is_named_once(tmp_path: Path) -> None:
    for name in ("core", "records", "records/store", "cli", "defaults.py"):
        file = tmp_path / name if name.endswith(".py") else tmp_path / name / "__init__.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'"""What {name} is.\n\nMore of it.\n"""')
    assert folder_map(tmp_path).removeprefix(HEAD).splitlines() == [
        "| `core` | What core is | nothing |",
        "| `records` | What records is | `core` |",
        "| `records/store` | What records/store is |  |",
        "| `cli` | What cli is | anything, inside functions |",
        "| `defaults.py` | What defaults.py is | anything, inside functions |",
    ]


def test_a_folder_without_a_word_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "__init__.py").write_text("x = 1")
    with pytest.raises(AssertionError, match="has no docstring"):
        folder_map(tmp_path)
