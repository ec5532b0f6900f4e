"""Write ``benchmarks/RESULTS.md`` and its picture from finished comparisons.

    trimtab compare --suite fast --jobs 2 --out comparison-fast
    python -m benchmarks.results comparison-fast comparison-real

Each folder is one that ``trimtab compare`` finished; it gives one section, from its Parquet file
alone. The picture is drawn from the first. Losses stand in the same table as wins, and the
sentence about when not to use trimtab is made from the rows. What the README says of it stands
there between ``<!-- results -->`` and ``<!-- /results -->``, and is written anew; with ``--json``
the sentences go to standard output too.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.commands import shown_command
from benchmarks.result_tables import (
    STEERED,
    budget_rows,
    budget_table,
    cost_table,
    methods_table,
    starts_table,
    tasks_table,
)
from trimtab.core.errors import SpecError
from trimtab.records.reports.comparison_charts import compute_picture
from trimtab.records.reports.page import draw
from trimtab.search.comparison.compare import Comparison
from trimtab.search.comparison.cost import cost_answer
from trimtab.search.comparison.figures import comparison_figures
from trimtab.search.comparison.table import read_parquet

__all__ = [
    "Finished",
    "budget_rows",
    "main",
    "read_finished",
    "readme_part",
    "section",
    "when_not",
    "with_part",
]

_CONTROLS = frozenset({"zero", "open-loop", "shuffled"})
_CLOSE = 0.05  # of regret; smaller differences are called equal

_OPENED, _CLOSED = "<!-- results -->", "<!-- /results -->"

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Finished:
    """A finished comparison.

    Attributes:
        comparison: Its rows.
        figures: What is counted from them, the cost answer included.
        versions: What the results depend on, by name.
        about: Command, date, machine and what was left out.
    """

    comparison: Comparison
    figures: Mapping[str, Any]
    versions: Mapping[str, str]
    about: Mapping[str, Any]


def read_finished(folder: Path) -> Finished:
    """Return the comparison that was finished in a folder.

    Raises:
        SpecError: There is none.
    """
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(
            f"{folder} holds no finished comparison ({error}); run its command again, which "
            "repeats nothing"
        ) from error
    comparison, versions = read_parquet(folder / "comparison.parquet")
    figures = comparison_figures(comparison)
    figures["cost"] = cost_answer(figures, about["training_seconds"])
    return Finished(comparison, figures, versions, about)


def when_not(figures: Mapping[str, Any]) -> str:
    """Return the sentence about when not to use trimtab, from what ended with lower regret.

    Methods are compared on the tasks that they were run on; differences under 0.05 of regret are
    called equal. A tuned start is judged by the reference at factor 1.
    """
    reasons = []
    better = []
    for label in figures["methods"]:
        found, beside = figures["regret"].get(label), figures["steered"].get(label)
        name = label.partition(":")[0]
        if name == STEERED or name in _CONTROLS or found is None or beside is None:
            continue
        if beside["regret"] is not None and found["value"] < beside["regret"] - _CLOSE:
            better.append((figures["spent"][label], label, found["value"], beside["regret"]))
    tuned = [
        (name, figures["regret_by_start"].get(name, {}).get("1")) for name in ("reference", STEERED)
    ]
    if all(found is not None for _, found in tuned):
        reference, steered = (float(found["value"]) for _, found in tuned if found is not None)
        if steered > reference - _CLOSE:
            told = "about as well" if steered <= reference + _CLOSE else "worse"
            reasons.append(
                f"your learning rate is tuned already (there it ends {told}: regret {steered:.2f} "
                f"against the plain schedule's {reference:.2f})"
            )
    cheap = [one for one in better if ":" not in one[1]]
    if cheap:
        listed = ", ".join(f"`{label}` {value:.2f}" for _, label, value, _ in sorted(cheap))
        mine = min(one[3] for one in cheap)
        reasons.append(
            f"one of these one-run methods fits your task ({listed}; steered {mine:.2f})"
        )
    dear = sorted(one for one in better if ":" in one[1] and one[0] > 1.5)
    if dear:
        runs, label, value, mine = dear[0]
        reasons.append(
            f"you can pay for {runs:.1f} whole runs or more (`{label}` ends at {value:.2f}, one "
            f"steered run at {mine:.2f})"
        )
    if not reasons:
        return (
            "Nothing that was compared ended clearly better than one steered run, at any budget "
            "that was run; other tasks and larger budgets were not tried."
        )
    return f"Do not use trimtab if {'; or if '.join(reasons)}."


def _name(finished: Finished) -> str:
    words = shlex.split(finished.about["command"])
    if "--suite" in words[:-1]:
        return f"Suite `{words[words.index('--suite') + 1]}`"
    return ", ".join(f"`{name}`" for name in finished.comparison.tasks)


def readme_part(finished: Finished, picture: str, page: str) -> str:
    """Return what the README says of a comparison: picture, cost, and when not to use trimtab.

    Args:
        finished: Where the picture is from.
        picture: Its path, from the README.
        page: The page of results, from the README.
    """
    cost = finished.figures["cost"]
    told = [f"{cost['sentence']} **When not:** {when_not(finished.figures)}"] if cost else []
    seeds = len({entry.seed for entry in finished.comparison.entries})
    count = len(finished.comparison.tasks)
    under = (
        f"{_name(finished)}: {count} task{'s' * (count != 1)}, {seeds} "
        f"seed{'s' * (seeds != 1)}, {finished.about['date']}; every row, losses and "
        f"intervals included, is in [the results]({page})."
    )
    return "\n\n".join([f"![Regret against compute, all methods]({picture})", *told, under])


def with_part(text: str, part: str) -> str:
    """Return a page in which a part stands between its markers.

    Raises:
        SpecError: The markers are not there once each, in their order.
    """
    before, opened, rest = text.partition(_OPENED)
    _, closed, after = rest.partition(_CLOSED)
    if not (opened and closed) or _OPENED in rest or _CLOSED in before + after:
        raise SpecError(
            f"the page has not one {_OPENED} and one {_CLOSED} after it; put these two lines "
            "where the results are to stand"
        )
    return f"{before}{_OPENED}\n\n{part}\n\n{_CLOSED}{after}"


def _under(finished: Finished) -> str:
    """Return what stands under the tables: tasks, seeds, machine, versions, command, date."""
    about = finished.about
    command = shown_command(shlex.split(about["command"]))
    seeds = sorted({entry.seed for entry in finished.comparison.entries})
    left = sorted({f"{one['method']} on {one['task']}" for one in about["left_out"]})
    known = ", ".join(
        f"{name} {value}" for name, value in finished.versions.items() if value != "–"
    )
    return (
        f"Seeds {seeds[0]} to {seeds[-1]}; policy {about['policy']}; {about['machine']}, "
        f"{about['jobs']} at a time; {about['date']}. Intervals are 95 %. "
        f"Left out: {'; '.join(left) or 'nothing'}.\n\n`{command}`\n\n"
        f"<details><summary>Versions</summary>\n\n{known}\n\n</details>"
    )


def section(finished: Finished) -> str:
    """Return one comparison as Markdown."""
    figures = finished.figures
    parts = [f"## {_name(finished)}", methods_table(figures)]
    if starts := starts_table(figures):
        parts += ["### Regret by start factor", starts]
    if rows := budget_rows(finished.comparison, figures):
        parts += ["### Does each search gain from its budget?", budget_table(rows)]
    if figures["cost"]:
        parts += ["### What it costs, and saves", figures["cost"]["sentence"], cost_table(figures)]
        parts += ["### When not to use it", when_not(figures)]
    parts += ["### Tasks", tasks_table(figures), _under(finished)]
    return "\n\n".join(parts)


_HEAD = """# Results

Written by `python -m benchmarks.results`; do not edit. Definitions are in
[measures](../docs/measures.md), the rivals' settings in [rivals](../docs/rivals.md). Rows are
sorted by regret: what stands above `trimtab` ended better than it. *trimtab on the same tasks* is
one steered run's regret where a method ran on some tasks only.

![Regret against compute, all methods]({picture})"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folders", nargs="+", type=Path, help="finished by trimtab compare")
    parser.add_argument("--out", type=Path, default=_HERE / "RESULTS.md")
    parser.add_argument(
        "--picture", type=Path, default=_HERE.parent / "docs" / "images" / "compute.png"
    )
    parser.add_argument("--readme", type=Path, default=_HERE.parent / "README.md")
    parser.add_argument("--json", action="store_true", help="print the README's sentences")
    options = parser.parse_args(arguments)
    try:
        finished = [read_finished(folder) for folder in options.folders]
        picture, page = (_from(options.readme, path) for path in (options.picture, options.out))
        part = readme_part(finished[0], picture, page)
        readme = with_part(options.readme.read_text(encoding="utf-8"), part)
    except (SpecError, OSError) as error:
        parser.exit(2, f"{error}\n")
    drawn = compute_picture(finished[0].figures)
    if drawn is not None:
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        draw(options.picture, drawn)
    head = _HEAD.format(picture=_from(options.out, options.picture))
    sections = "\n\n".join([head, *(section(one) for one in finished)])
    options.out.write_text(sections + "\n", encoding="utf-8")
    options.readme.write_text(readme, encoding="utf-8")
    if options.json:
        first = finished[0].figures
        cost = first["cost"]["sentence"] if first["cost"] else None
        print(json.dumps({"cost": cost, "when_not": when_not(first)}, indent=2))
        return
    print(f"wrote {options.out}, {options.picture} and {options.readme}")


def _from(page: Path, path: Path) -> str:
    """Return a path as a page refers to it."""
    return Path(os.path.relpath(path.resolve(), page.resolve().parent)).as_posix()


if __name__ == "__main__":
    main()
