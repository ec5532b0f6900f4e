"""The catalogue of tasks says what the tasks say, and spares their frameworks."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from trimtab.cli import catalogue, options
from trimtab.cli.lists import describe
from trimtab.core.registry import make_task, names, place_of

FILE = Path(str(resources.files("trimtab.cli").joinpath("catalogue.json")))
OWN = [name for name in names("task") if (place_of("task", name) or "").startswith("trimtab.")]

# What a fresh interpreter has after a task was made, beyond what the command line has.
_MODULES = """
import json, sys
import trimtab.cli.main
from trimtab.core.registry import make_task
before = set(sys.modules)
make_task({name!r}, default_member=0)
tops = {{module.partition(".")[0] for module in set(sys.modules) - before}}
print(json.dumps(sorted(tops & {{"torch", "jax", "keras", "tensorflow", "optax", "peft",
    "transformers", "scipy", "sklearn", "pandas", "torchmetrics", "efficientnet_lite_pytorch"}})))
"""


def entry_of(name: str) -> dict[str, object]:
    usual = describe(make_task(name, default_member=0))
    rows = {"": usual | {"name": name}}
    for variant in usual.get("variants") or []:
        rows[variant] = describe(options.find_task(name, variant)) | {"name": name}
    ran = subprocess.run(
        [sys.executable, "-c", _MODULES.format(name=name)],
        capture_output=True,
        text=True,
        check=True,
    )
    return {"place": place_of("task", name), "modules": json.loads(ran.stdout), "rows": rows}


def written(entries: dict[str, dict[str, object]]) -> str:
    """One row a line, so that a change shows where it is."""
    lines = []
    for name, entry in entries.items():
        head = {key: entry[key] for key in ("place", "modules")}
        rows = entry["rows"]
        assert isinstance(rows, dict)
        told = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
        lines.append(f'{json.dumps(name)}: {json.dumps(head)[:-1]}, "rows": {{\n{told}}}}}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


@pytest.mark.framework
def test_the_catalogue_says_what_each_task_says(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        FILE.write_text(written({name: entry_of(name) for name in OWN}), encoding="utf-8")
        catalogue._catalogue.cache_clear()
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    assert list(kept) == OWN
    for name in OWN:
        rows = kept[name]["rows"]
        for variant in rows:
            task = options.find_task(name, variant or None)
            assert rows[variant] == json.loads(json.dumps(describe(task) | {"name": name})), name


def test_listing_loads_no_framework() -> None:
    listed = (
        "import sys; sys.argv = ['trimtab', 'tasks', '--json']\n"
        "from trimtab.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'jax', 'keras', 'tensorflow', 'sklearn', 'scipy', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    ran = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True)
    rows = json.loads(ran.stdout)
    assert {row["name"] for row in rows} >= set(OWN)
    assert set(json.loads(ran.stderr.splitlines()[-1].replace("'", '"'))) <= set(missing_here())


def missing_here() -> list[str]:
    """What may be loaded all the same: a task that lacks a package speaks for itself."""
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    complete = all(catalogue.rows_by_variant(name) is not None for name in kept)
    return [] if complete else ["torch", "jax", "keras", "tensorflow", "sklearn", "scipy", "pandas"]


def test_a_task_that_another_package_registers_under_the_name_speaks_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogue, "place_of", lambda kind, name: "other.place:Adult")
    assert catalogue.rows_by_variant("tabular/adult") is None


def test_a_task_that_lacks_a_package_speaks_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "find_spec", lambda module: None)
    assert catalogue.rows_by_variant("tabular/adult") is None
    assert catalogue.rows_by_variant("no/such") is None
