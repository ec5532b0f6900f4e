"""Every name that is offered exists, and every name that exists is offered or private."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import trimtab
from trimtab.core import registry
from trimtab.core.errors import MissingDependencyError

SOURCE = Path(__file__).parents[1] / "src" / "trimtab"
FILES = sorted(SOURCE.rglob("*.py"))
# Modules that have a page of their own in docs/reference list what the page shows.
PAGES = {
    line.split()[1]
    for page in (SOURCE.parents[1] / "docs" / "reference").glob("*.md")
    for line in page.read_text(encoding="utf-8").splitlines()
    if line.startswith("::: ")
}


def module_of(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def bound_names(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the names that a module's top level binds, conditional blocks included."""
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Assign():
                yield from (
                    name.id
                    for target in node.targets
                    for name in ast.walk(target)
                    if isinstance(name, ast.Name)
                )
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Import() | ast.ImportFrom():
                yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
            case ast.If() | ast.Try():
                yield from bound_names(node.body)
                yield from bound_names(node.orelse)
            case _:
                pass


def exported_names(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def public_definitions(tree: ast.Module) -> list[str]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [n.name for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_what_a_module_lists_is_what_it_has(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    exported, public = exported_names(tree), public_definitions(tree)
    if module_of(file) in PAGES:
        assert exported is not None, f"has a page, but lists none of {public}"
        assert set(public) - set(exported) == set(), "public, but not in __all__"
    elif file.name != "__init__.py":
        assert exported is None, "lists names, but has no page in docs/reference"
    assert set(exported or ()) - set(bound_names(tree.body)) == set(), "listed, but nowhere defined"


# What a user meets. A name more or less is a change of the contract.
FACE = [
    "ControlSpec",
    "Controller",
    "Decision",
    "Hyperparameter",
    "Metrics",
    "Rescue",
    "Snapshot",
    "StaticChoice",
    "SteeredValue",
    "Summary",
    "Task",
    "TorchController",
    "TrainingRun",
    "TrimtabError",
    "TuneResult",
    "__version__",
    "agents",
    "hyperparameter",
    "resume",
    "run_task",
    "tune",
]


def test_the_package_shows_these_names_and_nothing_else() -> None:
    assert trimtab.__all__ == sorted(trimtab.__all__) == FACE
    assert dir(trimtab) == FACE


def test_every_name_of_the_package_is_explained() -> None:
    page = SOURCE.parents[1] / "docs" / "reference" / "index.md"
    rows = re.findall(r"^\| \[`(\w+)`\]", page.read_text(encoding="utf-8"), re.M)
    assert sorted([*rows, "__version__"]) == FACE


@pytest.mark.parametrize("name", FACE)
def test_every_name_of_the_package_can_be_used(name: str) -> None:
    if name in ("SteeredValue", "TorchController"):
        pytest.importorskip("torch")
    assert getattr(trimtab, name) is not None


def test_every_name_of_the_package_is_the_one_that_type_checkers_see() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        alias.name: alias.name if node.module == "trimtab" else node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == dict(trimtab._HOMES) | {"agents": "agents"}
    assert sorted([*seen, "__version__"]) == FACE


def test_a_framework_that_is_missing_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("trimtab.adapters.torch")]:
        monkeypatch.delitem(sys.modules, name)
    message = r"^trimtab\.TorchController needs the package 'torch', .*'trimtab\[torch\]'$"
    with pytest.raises(MissingDependencyError, match=message):
        _ = trimtab.TorchController


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'trimtab' has no attribute 'tasque'"):
        trimtab.tasque  # noqa: B018


def test_the_version_is_the_installed_one() -> None:
    assert trimtab.__version__ == importlib.metadata.version("trimtab")


BUILT_IN = [
    (kind, entry)
    for kind, group in registry.GROUPS.items()
    for entry in importlib.metadata.entry_points(group=group)
    if entry.dist is not None and entry.dist.name == "trimtab"
]
ENTRY_IDS = [f"{kind} {entry.name}" for kind, entry in BUILT_IN]


@pytest.mark.parametrize(("kind", "entry"), BUILT_IN, ids=ENTRY_IDS)
def test_every_built_in_entry_names_something_that_exists(
    kind: str, entry: importlib.metadata.EntryPoint
) -> None:
    module = SOURCE.parent.joinpath(*entry.module.split("."))
    if kind == "policy":
        assert (module / f"{entry.name}.safetensors").is_file()
        assert (module / f"{entry.name}.md").is_file()
        return
    file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
    assert entry.attr in set(bound_names(ast.parse(file.read_text(encoding="utf-8")).body))


@pytest.mark.framework
@pytest.mark.parametrize(("kind", "entry"), BUILT_IN, ids=ENTRY_IDS)
def test_every_built_in_entry_loads(kind: str, entry: importlib.metadata.EntryPoint) -> None:
    assert registry.lookup(kind, entry.name) is not None


def test_the_installed_entries_are_those_of_the_checkout() -> None:
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
    declared = {
        (group, name, value)
        for group, entries in project["entry-points"].items()
        for name, value in entries.items()
    }
    installed = {(entry.group, entry.name, entry.value) for _, entry in BUILT_IN}
    remedy = "run pip install --no-deps -e . in this checkout"
    assert {entry for entry in declared if entry[0].startswith("trimtab.")} == installed, remedy
