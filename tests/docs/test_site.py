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
