"""`trimtab export`: which files it writes, and what it refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("folder")


def test_the_help_is_the_golden_text(trimtab, golden):
    golden("cli-help-export.txt", trimtab("export", "--help")[1])


def test_every_target_is_written_and_named(trimtab):
    asked = ("run", "tiny:make", "--policy", "random", "--hyperparameters", "lr,momentum")
    schedule = json.loads(trimtab(*asked, "--json")[1])["schedule"]
    to = "json,torch,keras,transformers,optax"
    status, out, _ = trimtab("export", "1", "--to", to, "--all-steps", "--json")
    files = {target: Path(file) for target, file in json.loads(out)["files"].items()}
    assert status == 0
    assert list(files) == to.split(",")
    assert {file.parent for file in files.values()} == {Path("trimtab-run-1").resolve()}
    values = json.loads(files["json"].read_text())["values"]
    assert values == {name: [row[name] for row in schedule] for name in ("lr", "momentum")}
    for target in to.split(",")[1:]:
        compile(files[target].read_text(), target, "exec")


def test_a_folder_can_be_chosen_and_the_newest_run_named(trimtab):
    trimtab("run", "tiny:make", "--policy", "none", "--store", "other.db")
    status, out, _ = trimtab("export", "latest", "--store", "other.db", "--out", "here/inside")
    assert (status, out) == (0, "wrote here/inside/schedule.json\n")
    assert Path("here/inside/schedule.json").is_file()


def test_lines_that_no_store_took_are_exported(trimtab):
    trimtab("run", "tiny:make", "--policy", "random", "--store", "kept.db")
    trimtab("export", "1", "--store", "kept.db", "--out", "from-store")
    from trimtab.records.store.encoding import to_json
    from trimtab.records.store.store import Store, _as_text

    with Store("kept.db") as store:
        (head,) = store.rows(_select("runs"))
        rows = store.rows(_select("decisions"))
    kept = [{k: v for k, v in row.items() if k not in ("id", "run_id")} for row in rows]
    lines = [{"run": head}, *({"decision": _as_text(row)} for row in kept)]
    Path("lost.jsonl").write_text("".join(f"{to_json(line)}\n" for line in lines))
    status, out, _ = trimtab("export", "lost.jsonl", "--store", "none.db")
    assert (status, out) == (0, "wrote trimtab-lost/schedule.json\n")
    one, other = (Path(f) / "schedule.json" for f in ("from-store", "trimtab-lost"))
    assert one.read_text() == other.read_text()


def _select(table: str) -> object:
    from sqlalchemy import select

    from trimtab.records.store import models

    return select(getattr(models, table))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("export latest --to pytorch", 2, "unknown export 'pytorch'; did you mean 'torch'?"),
        ("export latest --to ,", 2, "nothing is asked for; name some of json, torch"),
        ("export latest --store none", 2, "none keeps no record to export"),
        ("export 7", 1, "has no run '7' (the last ones: 1); give a number, or latest"),
        ("export latest --out file", 2, "file: the export cannot be written"),
        ("export", 2, "missing argument"),
        ("export 1 --out=", 2, "'' names no folder; name one, or . for the working one"),
    ],
)
def test_a_wrong_request_is_one_line(trimtab, arguments, status, message):
    trimtab("run", "tiny:make", "--policy", "none")
    Path("file").write_text("")
    ended, out, err = trimtab(*arguments.split(" "))
    assert (ended, out) == (status, "")
    assert message in err
    assert err.count("\n") == 1
