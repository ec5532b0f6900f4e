"""The page on trainers says what their tests show, and the lines that these run.

``pytest tests/trainers/test_table.py --update-golden`` writes it anew.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.trainers.claims import CLAIMS

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "trainers.md"
BEGIN, END = "<!-- made by tests/trainers/test_table.py -->\n", "<!-- end of what is made -->\n"
MODULES = sorted(set(HERE.glob("test_*.py")) - {Path(__file__)})
LINES = re.compile(r"^ *# lines to write\n(.*?)^ *# end of lines\n", re.MULTILINE | re.DOTALL)


def literal(tree: ast.Module, name: str) -> dict[str, str]:
    """Return a dictionary that a module names, or an empty one."""
    scope = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    value = scope.get(name)
    if isinstance(value, ast.Call):  # dict.fromkeys(claims, reason)
        return dict.fromkeys(ast.literal_eval(value.args[0]), ast.literal_eval(scope["REASON"]))
    return {} if value is None else ast.literal_eval(value)


def lines_of(text: str) -> str:
    """Return the lines to write, each call in one line, without what is for the test alone."""
    found = LINES.search(text)
    assert found, "no '# lines to write' ... '# end of lines'"
    kept = [line for line in found[1].splitlines() if not line.endswith("# test")]
    edge = min(len(line) - len(line.lstrip()) for line in kept)
    joined = "\n".join(line[edge:] for line in kept)
    joined = re.sub(r"(?<=[(,])\n\s*", " ", joined).replace("( ", "(").replace(",\n)", ")")
    joined = re.sub(r",?\s*\*\*(?:probe\.)?options,?", "", joined)
    joined = re.sub(r"\n\)", ")", joined).replace(" )", ")")
    joined = joined.replace("probe.checkpoint", "checkpoint")
    return re.sub(r"for step in probe\.steps\(\)", "for step in range(STEPS)", joined)


def ours(lines: str) -> list[str]:
    """Return the lines that trimtab is the reason for."""
    return [line for line in lines.splitlines() if not line.endswith("# loop")]


def entry(module: Path) -> tuple[str, str, dict[str, str], str]:
    """Return a trainer's name, what is trained, what is refused and why, and the lines."""
    text = module.read_text(encoding="utf-8")
    tree = ast.parse(text)
    name, _, what = (ast.get_docstring(tree) or "").partition(": ")
    return name, what.replace("``", "`"), literal(tree, "REFUSED"), lines_of(text)


def entries() -> list[tuple[str, str, dict[str, str], str]]:
    return sorted((entry(module) for module in MODULES), key=lambda row: row[0].lower())


def page() -> str:
    """Return the table, and each trainer's lines below it."""
    rows = [f"| trainer | {' | '.join(CLAIMS)} |", "|---" * (len(CLAIMS) + 1) + "|"]
    parts = []
    for name, what, refused, lines in entries():
        cells = ["–" if claim in refused else "yes" for claim in CLAIMS]
        rows.append(f"| [{name}](#{anchor(name)}) | {' | '.join(cells)} |")
        shown = "\n".join(line.removesuffix("  # loop") for line in lines.splitlines())
        reasons: dict[str, list[str]] = {}
        for claim, reason in refused.items():
            reasons.setdefault(reason, []).append(claim)
        why = "".join(f"\n\nNot {', '.join(c)}: {reason}." for reason, c in reasons.items())
        parts.append(f"## {name}\n\n{what[:1].upper()}{what[1:]}\n\n```python\n{shown}\n```{why}\n")
    return "\n".join(rows) + "\n\n" + "\n".join(parts)


def anchor(heading: str) -> str:
    return re.sub(r"\s+", "-", heading.lower())


def test_the_page_is_that_of_the_tests(request: pytest.FixtureRequest) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    inside, _, after = rest.partition(END)
    if request.config.getoption("--update-golden"):
        PAGE.write_text(f"{before}{BEGIN}{page()}{END}{after}", encoding="utf-8")
        return
    assert inside == page(), "run pytest --update-golden, and read what has changed"


def test_sixteen_trainers_take_at_most_five_lines_each() -> None:
    found = entries()
    assert len(found) == 16
    assert {name: lines for name, _, _, lines in found if len(ours(lines)) > 5} == {}


@pytest.mark.parametrize("module", MODULES, ids=[module.stem for module in MODULES])
def test_each_claim_is_tested_or_refused(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    refused = literal(ast.parse(text), "REFUSED")
    if not refused:
        assert 'parametrize("claim", CLAIMS)' in text
    elif refused.keys() != CLAIMS.keys():
        assert "[claim for claim in CLAIMS if claim not in REFUSED]" in text
    assert not refused or "def test_refused_" in text
