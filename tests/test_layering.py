"""Who may import whom, proved from the syntax trees.

The table is that of CONTRIBUTING.md, "Where things go".

An import counts wherever it stands: at module level, inside a function, under ``TYPE_CHECKING`` or
as a constant handed to ``import_module``.
"""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "trimtab"

# Part of the package -> the parts that it may import besides itself.
_BELOW_THREE = frozenset({"core", "controllers", "records", "envs", "adapters", "tasks", "rescue"})
LAYERS = {
    "core": frozenset[str](),
    "policies": frozenset[str](),
    "controllers": frozenset({"core"}),
    "records": frozenset({"core"}),
    "envs": frozenset({"core"}),
    "adapters": frozenset({"core", "defaults", "rescue"}),
    "rescue": frozenset({"core"}),
    "testing": frozenset({"core"}),
    "tasks": frozenset({"core", "adapters"}),
    "agents": _BELOW_THREE | {"defaults"},
    "search": _BELOW_THREE | {"defaults"},
}
# They wire the rest together: anything, but inside functions only.
COMPOSITION_ROOTS = frozenset({"__init__", "__main__", "cli", "defaults"})

# What loads in milliseconds and is installed with trimtab.
LIGHT = {
    "core": {"numpy"},
    "policies": set[str](),
    "controllers": {"numpy", "safetensors"},
    "records": {"numpy", "rich", "safetensors"},
    "envs": {"numpy", "gymnasium"},
    "adapters": {"numpy", "safetensors"},
    "testing": {"numpy"},
    "rescue": {"numpy"},
    "tasks": {"numpy", "safetensors"},
    "agents": {"numpy", "gymnasium", "rich", "safetensors"},
    "search": {"numpy", "rich", "safetensors"},
    "cli": {"numpy", "rich", "typer"},
    "defaults": {"numpy"},
    "__init__": set[str](),
    "__main__": set[str](),
}

# Heavy package -> the files that may import it at module level. Elsewhere it is imported inside
# functions; in core, controllers and policies not at all.
HEAVY_FILES = {
    "accelerate": ("adapters/transformers/*.py",),
    "alembic": (
        "records/store/*.py",
        "records/store/migrations/*.py",
        "records/store/migrations/versions/*.py",
    ),
    "altair": ("records/reports/*.py",),
    "jax": (
        "envs/simulators/*.py",
        "envs/simulators/families/*.py",
        "agents/*.py",
        "agents/*/*.py",
    ),
    "keras": ("adapters/keras/*.py", "tasks/*.py", "tasks/keras/*.py"),
    "lightning": ("adapters/lightning/*.py",),
    "optax": (
        "envs/simulators/*.py",
        "envs/simulators/families/*.py",
        "agents/*.py",
        "agents/*/*.py",
    ),
    "peft": ("adapters/transformers/*.py", "tasks/*.py", "tasks/torch/*.py"),
    "pyarrow": (),
    "ray": ("adapters/ray/*.py", "search/methods/ray_tune.py", "search/engines/ray.py"),
    "sb3_contrib": ("agents/sb3/*.py",),
    "sqlalchemy": (
        "records/store/*.py",
        "records/store/migrations/*.py",
        "records/store/migrations/versions/*.py",
    ),
    "stable_baselines3": ("agents/sb3/*.py",),
    "tensorflow": ("adapters/keras/*.py",),
    "torch": (
        "adapters/torch/*.py",
        "adapters/transformers/*.py",
        "adapters/lightning/*.py",
        "agents/*.py",
        "agents/sb3/*.py",
        "tasks/*.py",
        "tasks/torch/*.py",
    ),
    "transformers": ("adapters/transformers/*.py", "tasks/*.py", "tasks/torch/*.py"),
}
WITHOUT_HEAVY = frozenset({"core", "controllers", "policies"})

# A task's file declares one of these frameworks by importing it; what is built on a framework
# (Transformers on PyTorch) counts as that framework.
FRAMEWORK_OF = {
    "jax": "jax",
    "keras": "keras",
    "lightning": "torch",
    "peft": "torch",
    "tensorflow": "keras",
    "torch": "torch",
    "torchmetrics": "torch",
    "transformers": "torch",
}

# Folder -> the folders that nothing in it may import, wherever the import stands.
APART = {
    "search/methods": ("search/study", "search/comparison"),
    "search/engines": ("search/study", "search/comparison"),
}
# A framework's own adapters are a folder of its name. What several share stands in ``adapters``
# itself and knows none of them; a framework's folder knows its own and what it is built on.
BUILT_ON = {
    "keras": frozenset[str](),
    "lightning": frozenset({"torch"}),
    "ray": frozenset[str](),
    "torch": frozenset[str](),
    "transformers": frozenset({"torch"}),
}

# Core has no I/O, no clock and no randomness of its own.
NOT_IN_CORE = frozenset(
    {
        "asyncio",
        "datetime",
        "glob",
        "io",
        "logging",
        "multiprocessing",
        "os",
        "pathlib",
        "random",
        "secrets",
        "shutil",
        "socket",
        "sqlite3",
        "subprocess",
        "tempfile",
        "threading",
        "time",
        "urllib",
        "uuid",
    }
)

# The one file of core that speaks: a warning is logged where warnings are errors.
TELLING = {"core/notices.py": {"logging", "os"}}


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, where, and whether it runs when the file is loaded."""

    module: str
    line: int
    is_at_load: bool

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def imports(tree: ast.AST, is_at_load: bool = True) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, is_at_load)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(f"{node.module}.{alias.name}", node.lineno, is_at_load)
        elif isinstance(node, ast.If) and is_type_checking(node.test):
            for child in node.body:
                yield from imports(ast.Module([child], []), is_at_load=False)
            for child in node.orelse:
                yield from imports(ast.Module([child], []), is_at_load)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, is_at_load=False)
        else:
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                for argument in node.args[:1]:
                    if isinstance(argument, ast.Constant):
                        yield Import(str(argument.value), node.lineno, is_at_load)
            yield from imports(node, is_at_load)


def part_of(path: PurePosixPath) -> str:
    return path.parts[0].removesuffix(".py")


def may_import_at_load(path: PurePosixPath, package: str) -> bool:
    if package in LIGHT[part_of(path)]:
        return True
    if package in HEAVY_FILES:
        is_named = any(path.match(pattern) for pattern in HEAVY_FILES[package])
        return is_named and path.name != "__init__.py"
    return part_of(path) == "tasks" and path.name != "__init__.py"  # data packages


def layer_fault(path: PurePosixPath, found: Import) -> str | None:
    """Say what is wrong with an import of another part of trimtab, if anything."""
    here, parts = part_of(path), found.module.split(".")
    there = parts[1] if len(parts) > 1 else "__init__"
    if here in COMPOSITION_ROOTS:
        is_fine = not found.is_at_load or there in {here, "core"}
        return None if is_fine else f"imports trimtab.{there} outside a function"
    if there in {here, "__version__"} or there in LAYERS[here]:
        return None
    return f"imports trimtab.{there}; {here} may import {', '.join(sorted(LAYERS[here])) or 'none'}"


def folder_fault(path: PurePosixPath, found: Import) -> str | None:
    """Say what is wrong with an import between two folders of one part, if anything."""
    there = PurePosixPath(*found.module.split(".")[1:])
    for folder, others in APART.items():
        if path.is_relative_to(folder):
            for other in others:
                if there.is_relative_to(other):
                    return f"imports {found.module}; {folder} may import nothing of {other}"
    if path.parts[0] != "adapters" or there.parts[:1] != ("adapters",):
        return None
    here, other = (framework_of("".join(one.with_suffix("").parts[1:2])) for one in (path, there))
    if other and not here:
        return f"imports {found.module}; what frameworks share may import none of them"
    if other and here and other not in {here, *BUILT_ON[here]}:
        return f"imports {found.module}; {here} is not built on {other}"
    return None


def framework_of(name: str) -> str | None:
    """Return the framework that a file or folder of ``adapters`` belongs to."""
    prefix = name.partition("_")[0]  # of a former place
    return prefix if prefix in BUILT_ON else None


def package_fault(path: PurePosixPath, found: Import) -> str | None:
    """Say what is wrong with an import of somebody else's package, if anything."""
    here = part_of(path)
    if str(path) in TELLING and found.package in TELLING[str(path)]:
        return None
    if here == "core" and found.package in NOT_IN_CORE:
        return f"imports {found.package}; core has no I/O, clock or randomness"
    if found.package in sys.stdlib_module_names:
        return None
    if here in WITHOUT_HEAVY and found.package not in LIGHT[here]:
        return f"imports {found.package}; {here} may import {', '.join(sorted(LIGHT[here]))}"
    if found.is_at_load and not may_import_at_load(path, found.package):
        return f"imports {found.package} outside a function"
    return None


def effects(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the calls by which core would do I/O or draw random numbers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"open", "print", "input"} or called.startswith(
                ("np.random.", "numpy.random.")
            ):
                yield node.lineno, f"calls {called}; core has no I/O, clock or randomness"


def faults(source: Path) -> list[str]:
    """Return one line for every import under ``source`` that the table forbids."""
    lines: list[str] = []
    for file in sorted(source.rglob("*.py")):
        path = PurePosixPath(file.relative_to(source).as_posix())
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if part_of(path) not in LAYERS.keys() | COMPOSITION_ROOTS:
            lines.append(f"{path}: {part_of(path)} is in no layer; give it one")
            continue
        found = list(imports(tree))
        for one in found:
            if one.package == "trimtab":
                fault = layer_fault(path, one) or folder_fault(path, one)
            else:
                fault = package_fault(path, one)
            if fault:
                lines.append(f"{path}:{one.line}: {fault}")
        if part_of(path) == "core":
            lines += [f"{path}:{line}: {fault}" for line, fault in effects(tree)]
        if part_of(path) == "policies" and len(tree.body) > 1:
            lines.append(f"{path}: policies holds data, no code")
        frameworks = {FRAMEWORK_OF[one.package] for one in found if one.package in FRAMEWORK_OF}
        if part_of(path) == "tasks" and len(frameworks) > 1:
            lines.append(f"{path}: a task has one framework, not {', '.join(sorted(frameworks))}")
    return lines


def import_graph(source: Path) -> dict[str, set[str]]:
    """Return each module of trimtab with the modules of trimtab that it imports anywhere.

    Aside are the names that ``trimtab`` itself loads when they are first used.
    """
    files = {module_name(source, file): file for file in source.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        found = imports(ast.parse(file.read_text(encoding="utf-8")))
        wanted = [one.module for one in found if one.is_at_load or name != "trimtab"]
        graph[name] = set(known(wanted, files)) - {name}
    return graph


def module_name(source: Path, file: Path) -> str:
    parts = ("trimtab", *file.relative_to(source).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def known(wanted: Iterable[str], files: Iterable[str]) -> Iterator[str]:
    names = set(files)
    for module in wanted:
        parent = module.rpartition(".")[0]
        if module in names:
            yield module
        elif parent in names:
            yield parent


def test_every_import_goes_downwards() -> None:
    assert faults(SOURCE) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graphlib.TopologicalSorter(import_graph(SOURCE)).prepare()


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("core/a.py", "from trimtab.records import store", "core may import none"),
        ("core/a.py", "def f():\n    import scipy", "imports scipy; core may import numpy"),
        ("core/a.py", "import time", "no I/O, clock or randomness"),
        ("core/a.py", "import numpy as np\nnp.random.normal()", "calls np.random.normal"),
        ("core/a.py", "def f():\n    open('x')", "calls open"),
        ("envs/a.py", "def f():\n    from trimtab.tasks import x", "envs may import core"),
        ("envs/a.py", "def f():\n    import_module('trimtab.tasks')", "envs may import core"),
        (
            "envs/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import trimtab.search",
            "imports trimtab.search",
        ),
        ("envs/a.py", "from trimtab import Task", "imports trimtab.Task"),
        ("envs/a.py", "import jax", "imports jax outside a function"),
        ("controllers/a.py", "def f():\n    import torch", "controllers may import numpy"),
        ("adapters/a.py", "class A:\n    import torch", "imports torch outside a function"),
        ("adapters/keras/a.py", "import torch", "imports torch outside a function"),
        ("tasks/a.py", "import torch\ndef f():\n    import jax", "one framework, not jax, torch"),
        ("agents/__init__.py", "import torch", "imports torch outside a function"),
        ("search/a.py", "from trimtab.agents import x", "imports trimtab.agents"),
        (
            "cli.py",
            "import trimtab.records.store.store",
            "imports trimtab.records outside a function",
        ),
        ("cli/a.py", "import torch", "imports torch outside a function"),
        ("core/a.py", "import trimtab.cli.a", "core may import none"),
        ("defaults.py", "import sqlalchemy", "imports sqlalchemy outside a function"),
        ("policies/a.py", "x = 1\ny = 2", "policies holds data, no code"),
        ("extras/a.py", "", "extras is in no layer"),
        (
            "search/methods/a.py",
            "def f():\n    from trimtab.search.study.tune import tune",
            "search/methods may import nothing of search/study",
        ),
        (
            "search/methods/a.py",
            "from trimtab.search.comparison.jobs import run_job",
            "search/methods may import nothing of search/comparison",
        ),
        (
            "search/engines/b/a.py",
            "from trimtab.search import study",
            "search/engines may import nothing of search/study",
        ),
        (
            "adapters/a.py",
            "def f():\n    import trimtab.adapters.keras.state",
            "what frameworks share may import none of them",
        ),
        ("adapters/a.py", "from trimtab.adapters import torch", "may import none of them"),
        ("adapters/keras/a.py", "from trimtab.adapters.torch import x", "not built on torch"),
        ("adapters/torch/a.py", "import trimtab.adapters.lightning.b", "not built on lightning"),
        ("adapters/a.py", "from trimtab.adapters.torch.depth import x", "may import none of them"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, text: str, fault: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert fault in "\n".join(faults(tmp_path))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("records/a.py", "from trimtab import __version__"),
        ("core/a.py", "import numpy as np\nfrom trimtab.core import b\nx: np.random.Generator"),
        ("envs/simulators/a.py", "import jax\nfrom trimtab.core import b"),
        ("adapters/torch/a.py", "import torch\ndef f():\n    import trimtab.defaults"),
        ("tasks/a.py", "import transformers\nimport torch\nimport elpv_dataset"),
        (
            "search/study/a.py",
            "import trimtab.search.comparison.jobs, trimtab.search.methods.base.a",
        ),
        ("search/methods/a.py", "from trimtab.search.study_rows import x"),
        ("adapters/keras/a.py", "import trimtab.adapters.a, trimtab.adapters.keras.b"),
        ("adapters/lightning/a.py", "from trimtab.adapters.torch.state import x"),
        ("adapters/keras_values.py", "from trimtab.adapters.keras.values import *"),
        ("adapters/a.py", "from trimtab.adapters.torches import x"),
        ("search/a.py", "def f():\n    import ray\n    import trimtab.tasks"),
        ("cli/a.py", "from trimtab.cli import b, c\nfrom trimtab.core import b"),
        ("cli/a.py", "import typer\ndef f():\n    import trimtab.search, torch"),
    ],
)
def test_an_allowed_import_is_no_fault(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert faults(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        "from trimtab.core.a import x",
        "def f():\n    from trimtab.core.a import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from trimtab.core.a import x",
    ],
)
def test_a_circle_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "a.py").write_text("from trimtab.core import b")
    (tmp_path / "core" / "b.py").write_text(text)
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(import_graph(tmp_path)).prepare()


def test_the_lazy_names_of_the_package_close_no_circle(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "__init__.py").write_text("def f():\n    import trimtab.core.a")
    (tmp_path / "core" / "a.py").write_text("from trimtab import __version__")
    graphlib.TopologicalSorter(import_graph(tmp_path)).prepare()
