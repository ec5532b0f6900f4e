"""What MkDocs cannot do by itself: one page for each real task, made while the site is built.

Each page is made from what the task says of itself. Its picture comes from a tiny run
(`draw_task.py`, in a process of its own) and is kept in ``.cache/docs``, so that the next build
takes it from there. ``TRIMTAB_DOCS_PICTURES=0`` leaves the pictures out.
"""

from __future__ import annotations

import hashlib
import html
import importlib.metadata
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from trimtab.core.errors import TrimtabError
from trimtab.core.registry import GROUPS, make_task, names

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache" / "docs"
PROGRAM = Path(__file__).with_name("draw_task.py")
_TASK_IMPORT = re.compile(r"^from (trimtab\.tasks[\w.]*) import (.*)", re.M)
SECONDS_A_TASK = 900
TABLE_MARK = "<!-- the table of tasks, made by docs_hooks/site.py -->"
log = logging.getLogger("mkdocs.hooks.tasks")


@dataclass(frozen=True)
class TaskPage:
    """What is known of one task.

    Attributes:
        name: Its registered name.
        home: ``module:attribute``.
        described: Variant -> what the task says of itself; empty if it cannot be loaded.
        problem: Why it cannot.
    """

    name: str
    home: str
    described: Mapping[str, Mapping[str, Any]]
    problem: str = ""

    @property
    def source(self) -> str:
        """Where the page lies, relative to the documentation's folder."""
        return f"tasks/{self.slug}.md"

    @property
    def slug(self) -> str:
        """The name, fit for a file."""
        return self.name.replace("/", "-")


# --- what MkDocs calls ------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the tasks' pages into the navigation, in the place of the entry ``Tasks``."""
    entries = [{name: f"tasks/{name.replace('/', '-')}.md"} for name in real_tasks()]
    for entry in config.nav or []:
        if isinstance(entry, dict) and "Tasks" in entry:
            entry["Tasks"] = ["tasks/index.md", *entries]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the tasks' pages and pictures."""
    pages = [look_up(name) for name in real_tasks()]
    shown: Sequence[Mapping[str, Any] | None] = [None] * len(pages)
    if os.environ.get("TRIMTAB_DOCS_PICTURES", "1") != "0":
        with ThreadPoolExecutor(max_workers=2) as pool:
            shown = list(pool.map(shown_by, pages))
    for page, seen in zip(pages, shown, strict=True):
        files.append(File.generated(config, page.source, content=page_text(page, seen)))
        if seen and seen.get("has_picture"):
            picture = (cache_folder(page) / "shown.png").read_bytes()
            files.append(File.generated(config, f"tasks/{page.slug}.png", content=picture))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put the table of tasks where the page asks for it."""
    if page.file.src_uri != "tasks/index.md":
        return markdown
    return markdown.replace(TABLE_MARK, task_table([look_up(name) for name in real_tasks()]))


# --- what is known ----------------------------------------------------------------------------


def real_tasks() -> list[str]:
    """Return the names of the registered tasks with real data."""
    return [name for name in names("task") if not name.startswith("simulated/")]


def look_up(name: str) -> TaskPage:
    """Return what a task says of itself in each of its variants, or why it cannot be asked."""
    (entry,) = importlib.metadata.entry_points(group=GROUPS["task"], name=name)
    try:
        first = make_task(name).describe()  # type: ignore[attr-defined]
        described = {
            variant: make_task(name, variant=variant).describe()  # type: ignore[attr-defined]
            for variant in first["variants"]
        }
    except TrimtabError as error:
        return TaskPage(name, entry.value, {}, str(error))
    return TaskPage(name, entry.value, described)


def cache_folder(page: TaskPage) -> Path:
    """Return where a task's picture is kept; another folder once task or drawing has changed."""
    parts = [path.read_bytes() for path in [*sources(page.home.partition(":")[0]), PROGRAM]]
    return CACHE / f"{page.slug}-{hashlib.sha256(b''.join(parts)).hexdigest()[:12]}"


def sources(module: str) -> list[Path]:
    """Return the files of a module and of all task modules that it is made of, sorted."""
    found: set[Path] = set()
    wanted = [module]
    while wanted:
        path = ROOT / "src" / wanted.pop().replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if path not in found and path.exists():
            found.add(path)
            for part, names in _TASK_IMPORT.findall(path.read_text("utf-8")):
                wanted += [part, *(f"{part}.{name}" for name in re.findall(r"\w+", names))]
    return sorted(found)


def shown_by(page: TaskPage) -> Mapping[str, Any] | None:
    """Return what a tiny run shows, from the cache or by running it; None if it cannot be run."""
    if page.problem:
        return None
    folder = cache_folder(page)
    found = folder / "shown.json"
    if not found.exists():
        for outdated in CACHE.glob(f"{page.slug}-*"):
            shutil.rmtree(outdated, ignore_errors=True)
        command = [sys.executable, "-W", "ignore", str(PROGRAM), page.name, str(folder)]
        quiet = {
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
            "KERAS_BACKEND": "tensorflow",
            "HF_HUB_OFFLINE": "1",
        }
        log.info("running %s for its page", page.name)
        try:
            ended = subprocess.run(
                command,
                env=os.environ | quiet,
                capture_output=True,
                text=True,
                check=False,
                timeout=SECONDS_A_TASK,
            )
        except subprocess.TimeoutExpired:
            return {"missing": f"a tiny run took more than {SECONDS_A_TASK} s on a busy machine"}
        if ended.returncode:
            log.warning(_FAILED, page.name, _last_line(ended.stderr), page.name)
            return None
    shown: Mapping[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    if "missing" in shown:
        found.unlink()  # it may be installed before the next build
    return shown


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


_FAILED = (
    "%s: its picture could not be made: %s; see all of it with `python docs_hooks/draw_task.py "
    "%s FOLDER`, or build without pictures: TRIMTAB_DOCS_PICTURES=0 make docs"
)


# --- pages ------------------------------------------------------------------------------------


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table; what stands in its cells is taken as text."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [html.escape(str(cell)).replace("|", "&#124;") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def task_table(pages: Sequence[TaskPage]) -> str:
    """Return the table of all tasks, each linked to its page."""
    lines = ["| task | kind | metric | licence |", "|---|---|---|---|"]
    for page in pages:
        usual = page.described.get("default", {})
        lines.append(
            f"| [{page.name}]({page.slug}.md) | {usual.get('kind', '–')} "
            f"| {usual.get('metric', '–')} | {usual.get('licence', 'package not installed')} |"
        )
    return "\n".join(lines)


def page_text(page: TaskPage, shown: Mapping[str, Any] | None) -> str:
    """Return one task's page."""
    module, _, attribute = page.home.partition(":")
    parts = [f"# {page.name}", f"```console\n$ trimtab run {page.name} --variant small\n```"]
    if page.problem:
        parts.append(f'!!! note "Not installed where this site was built"\n    {page.problem}')
    parts += _shown_parts(page, shown)
    if page.described:
        parts += _described_parts(page)
    parts.append(
        f"## Description\n\n::: {module}.{attribute}\n    options:\n      heading_level: 3\n"
        "      show_root_heading: false\n      members: false\n"
    )
    return "\n\n".join(parts)


def _shown_parts(page: TaskPage, shown: Mapping[str, Any] | None) -> list[str]:
    if shown is None:
        return []
    if "missing" in shown:
        return [f'!!! note "No picture"\n    {shown["missing"]}']
    parts = []
    if shown["has_picture"]:
        parts.append(f"![Test examples and answers]({page.slug}.png)")
    if "rows" in shown:
        parts.append(markdown_table(shown["columns"], shown["rows"]))
    if parts:
        parts.append(_WHAT_IS_SHOWN)
    names_of_metrics = [name for name in shown["after"] if name != "examples"]
    parts.append(
        markdown_table(
            ["test examples", *names_of_metrics],
            [
                [when, *(f"{shown[key][name]:.3g}" for name in names_of_metrics)]
                for when, key in (("before that run", "before"), ("after it", "after"))
            ],
        )
    )
    sizes = ", ".join(f"{split} {count}" for split, count in shown["sizes"].items())
    parts.append(f"Examples in the splits of `tiny`: {sizes}. Other sizes: see the description.")
    return parts


def _described_parts(page: TaskPage) -> list[str]:
    usual = page.described.get("default") or next(iter(page.described.values()))
    facts = [
        ("kind", usual["kind"]),
        ("metric", usual["metric"]),
        ("licence", usual["licence"]),
        *([("to know", usual["notice"])] if usual.get("notice") else []),
        ("can be steered", ", ".join(item["name"] for item in usual["hyperparameters"])),
    ]
    variants = [
        [name, it["total_steps"], it["batch_size"], f"{it['seconds']:g}", f"{it['tuned_lr']:g}"]
        for name, it in page.described.items()
    ]
    manual = usual["manual"]
    recipe = [(name, f"{value:g}") for name, value in manual["values"].items()]
    return [
        "## Facts",
        markdown_table(["", ""], facts),
        markdown_table(["variant", "steps", "batch size", "seconds a run", "lr*"], variants),
        "Seconds: a whole run with 21 validations on one quiet core, what is cached at hand. "
        "lr*: what [starts](../measures.md) are counted from.",
        "## Manual recipe",
        "What `trimtab compare --methods manual` uses.",
        markdown_table(["value", ""], [*recipe, ("schedule", manual["reference"])]),
        f"Source: {html.escape(manual['source'])}.",
    ]


_WHAT_IS_SHOWN = (
    "Test examples of the `tiny` variant, and what the network says of them after one run of the "
    "reference schedule from lr* (seed 0, at least 100 steps): to see what the task is, not what "
    "can be reached."
)
