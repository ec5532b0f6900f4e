"""The pages that are made while the site is built tell what a task says of itself, or why not."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trimtab.core.errors import MissingDependencyError

pytest.importorskip("mkdocs")

ROOT = Path(__file__).parents[2]
SHOWN = {
    "sizes": {"train": 8, "test": 2},
    "before": {"loss": 2.0, "examples": 2.0},
    "after": {"loss": 0.5, "examples": 2.0},
    "columns": ["text", "is", "said"],
    "rows": [["a | <b>", "grain", "ship"]],
    "has_picture": True,
}


@pytest.fixture(scope="module")
def site() -> ModuleType:
    place = ROOT / "docs_hooks" / "site.py"
    spec = importlib.util.spec_from_file_location("site_hooks", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}

    assert pages - listed == set()


def test_each_real_task_gets_an_entry_under_tasks(site):
    config = {"Tasks": "tasks/index.md"}
    site.on_config(type("Config", (), {"nav": [{"Home": "index.md"}, config]})())
    entries: Any = config["Tasks"]

    assert entries[0] == "tasks/index.md"
    assert {"vision/animals": "tasks/vision-animals.md"} in entries
    assert not any("simulated" in str(entry) for entry in entries)


def test_a_page_shows_facts_recipe_and_what_a_run_showed(site):
    pytest.importorskip("torch")
    text = site.page_text(site.look_up("vision/animals"), SHOWN)

    assert "![Test examples and answers](vision-animals.png)" in text
    assert "| before that run | 2 |" in text
    assert "MIT (animal-mnist)" in text
    assert "| schedule | cosine |" in text
    assert "::: trimtab.tasks.animals.Animals" in text


def test_what_stands_in_a_cell_cannot_break_the_page(site):
    assert "a &#124; &lt;b&gt;" in site.markdown_table(["text"], SHOWN["rows"])


def test_a_task_that_cannot_be_loaded_has_a_page_that_says_why(site, monkeypatch):
    def missing(*_: Any, **__: Any) -> None:
        raise MissingDependencyError("vision/animals: animal-mnist is not installed")

    monkeypatch.setattr(site, "make_task", missing)
    page = site.look_up("vision/animals")

    assert "animal-mnist is not installed" in site.page_text(page, site.shown_by(page))
    assert "vision-animals.md" in site.task_table([page])


def test_data_that_are_not_installed_are_named_in_the_place_of_a_picture(site):
    pytest.importorskip("torch")
    shown = {"missing": "pip install --no-deps animal-mnist"}

    text = site.page_text(site.look_up("vision/animals"), shown)
    assert "No picture" in text
    assert "pip install --no-deps animal-mnist" in text
    assert ".png" not in text


def test_a_picture_is_made_again_once_anything_that_the_task_is_made_of_has_changed(site):
    names = {path.name for path in site.sources("trimtab.tasks.nuclei")}

    assert names >= {"nuclei.py", "segmentation.py", "efficientnet.py", "cache.py"}
    assert "letters.py" not in names
    assert "splits.py" in {path.name for path in site.sources("trimtab.tasks.torch.run")}


def test_what_a_task_is_made_of_is_found_in_folders_too(site, monkeypatch, tmp_path):
    tasks = tmp_path / "src" / "trimtab" / "tasks"
    (tasks / "torch" / "deep").mkdir(parents=True)
    (tasks / "a.py").write_text("from trimtab.tasks.torch import deep, b\n")
    (tasks / "torch" / "__init__.py").write_text("")
    (tasks / "torch" / "b.py").write_text("from trimtab.tasks.torch.deep.c import (\n    x,\n)\n")
    (tasks / "torch" / "deep" / "__init__.py").write_text("")
    (tasks / "torch" / "deep" / "c.py").write_text("")
    monkeypatch.setattr(site, "ROOT", tmp_path)

    found = [path.relative_to(tasks).as_posix() for path in site.sources("trimtab.tasks.a")]
    inits = ["torch/__init__.py", "torch/b.py", "torch/deep/__init__.py", "torch/deep/c.py"]
    assert found == ["a.py", *inits]


def test_a_picture_that_fails_says_what_to_do(site, monkeypatch, tmp_path, caplog):
    pytest.importorskip("torch")
    broken = tmp_path / "draw.py"
    broken.write_text("raise ValueError('no such colour')\n", encoding="utf-8")
    monkeypatch.setattr(site, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(site, "PROGRAM", broken)

    with caplog.at_level("WARNING", logger="mkdocs.hooks.tasks"):
        assert site.shown_by(site.look_up("vision/animals")) is None
    assert (
        "vision/animals: its picture could not be made: ValueError: no such colour" in caplog.text
    )
    assert "TRIMTAB_DOCS_PICTURES=0 make docs" in caplog.text


def test_a_picture_is_kept_and_an_outdated_one_thrown_away(site, monkeypatch, tmp_path):
    pytest.importorskip("torch")
    program = tmp_path / "draw.py"
    lines = [
        "import sys, pathlib",
        "folder = pathlib.Path(sys.argv[2])",
        "folder.mkdir(parents=True)",
        "(folder / 'shown.json').write_text('{\"sizes\": {}}')",
    ]
    program.write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(site, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(site, "PROGRAM", program)
    page = site.look_up("vision/animals")
    (tmp_path / "cache" / "vision-animals-old").mkdir(parents=True)

    assert site.shown_by(page) == {"sizes": {}}
    kept = site.cache_folder(page)
    (kept / "shown.json").write_text('{"sizes": {"train": 1}}', encoding="utf-8")
    assert site.shown_by(page) == {"sizes": {"train": 1}}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [kept.name]
