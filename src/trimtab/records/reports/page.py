"""A run's report: one HTML file that holds all it shows, and asks the network for nothing."""

from __future__ import annotations

import html
import json
import math
import time
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from trimtab.core.errors import SpecError
from trimtab.core.guard import count_undone
from trimtab.records.reports.run_charts import (
    THEMES,
    charts_of,
    figures_of,
    label_of,
    require_report_extra,
    spelled,
    steered_names,
)
from trimtab.records.store.rows import DecisionRecord, RunRecord

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
_POLICY += "script-src 'unsafe-inline' 'unsafe-eval'"  # Vega compiles its expressions
_EXPORTS = "window.vegaEmbed = vegaEmbed;"


def write_report(path: Path, record: RunRecord, other: RunRecord | None = None) -> None:
    """Write a run's report to a file, replacing it.

    Args:
        path: The HTML file.
        record: The run.
        other: A run to show beside it.

    Raises:
        MissingDependencyError: The extra ``report`` is not installed.
        SpecError: The file cannot be written.
    """
    write_file(path, report_html(record, other).encode())


def write_picture(path: Path, record: RunRecord, other: RunRecord | None = None) -> None:
    """Write the charts of a report as one picture on white.

    Args:
        path: File that ends in ``.png`` or ``.svg``.
        record: The run.
        other: A run to show beside it.

    Raises:
        MissingDependencyError: The extra ``report`` is not installed.
        SpecError: The ending is another one, or the file cannot be written.
    """
    require_report_extra()
    draw(path, sheet_of(charts_of(record, other)))


def draw(path: Path, chart: dict[str, Any]) -> None:
    """Write a Vega-Lite specification as a picture on white.

    Args:
        path: File that ends in ``.png`` or ``.svg``.
        chart: The specification, without colours of its own theme.

    Raises:
        MissingDependencyError: The extra ``report`` is not installed.
        SpecError: The ending is another one, or the file cannot be written.
    """
    require_report_extra()
    kind = path.suffix.lower()
    if kind not in (".png", ".svg"):
        raise SpecError(f"{path}: a picture ends in .png or .svg, not {kind!r}; rename it")
    import altair
    import vl_convert

    spec = chart | {"$schema": altair.SCHEMA_URL}
    config = THEMES["light"] | {"background": "white", "padding": 24}
    config["font"] = "Helvetica, Arial, sans-serif"
    if kind == ".svg":
        drawn = vl_convert.vegalite_to_svg(spec, vl_version=_vega_lite(), config=config)
        write_file(path, drawn.encode())
    else:
        write_file(path, vl_convert.vegalite_to_png(spec, _vega_lite(), scale=2, config=config))


def report_html(record: RunRecord, other: RunRecord | None = None) -> str:
    """Return the page; every name that a user chose is escaped.

    Raises:
        MissingDependencyError: The extra ``report`` is not installed.
    """
    require_report_extra()
    return page(
        record.title,
        f"{_header(record, other)}{_figures(record, other)}",
        charts_of(record, other),
        f"<h2>Decisions</h2>{decisions_table(record)}<h2>The run</h2>{_about(record, other)}",
    )


def page(
    title: str, above: str, charts: list[dict[str, Any]], below: str, *, style: str = ""
) -> str:
    """Return a page that holds all it shows: HTML above and below its charts.

    Args:
        title: Escaped here.
        above: HTML before the charts.
        charts: Vega-Lite specifications.
        below: HTML after them.
        style: Further rules of CSS.
    """
    boxes = "".join(
        f'<div class="chart"><div id="chart-{index}"></div></div>' for index in range(len(charts))
    )
    assets = Path(__file__).with_name("assets")
    script = (assets / "report.js").read_text(encoding="utf-8")
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{_text(title)}</title>",
            f"<style>{(assets / 'report.css').read_text(encoding='utf-8')}{style}</style></head>",
            f"<body><main>{above}",
            f'<section class="charts">{boxes}</section>',
            "<noscript><p>The charts need JavaScript; the table below does not.</p></noscript>",
            below,
            "<footer>Made by trimtab. This file holds all that it shows.</footer></main>",
            _embedded("charts", charts),
            _embedded("themes", THEMES),
            f"<script>{_library()}</script><script>{script}</script></body></html>",
        ]
    )


def write_file(path: Path, content: bytes) -> None:
    """Write what was made to a file, replacing it.

    Raises:
        SpecError: The file cannot be written.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise SpecError(
            f"{path} cannot be written ({error.strerror or error}); write elsewhere with --out"
        ) from error


@cache
def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, about 0.9 MB."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle(_EXPORTS, vl_version=_vega_lite())
    return bundle.replace("</script", "<\\/script")


def _vega_lite() -> str:
    """Return the version of Vega-Lite that the charts are written for, as vl-convert names it."""
    import altair
    import vl_convert

    wanted = altair.SCHEMA_VERSION.lstrip("v").split(".")
    have: list[str] = vl_convert.get_vegalite_versions()
    same = [version for version in have if version.split(".")[0] == wanted[0]]
    exact = ".".join(wanted[:2])
    return exact if exact in have else (same or have)[-1]


def sheet_of(charts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return all charts as one specification, two in a row."""
    apart = dict.fromkeys(("color", "shape", "strokeDash"), "independent")
    datasets: dict[str, Any] = {}
    sized: list[dict[str, Any]] = []
    for chart in charts:
        datasets |= chart.get("datasets", {})
        kept = {key: value for key, value in chart.items() if key not in ("$schema", "datasets")}
        sized.append(kept | {"width": 460})
    resolve = {"legend": apart, "scale": apart}
    rows = [
        {"hconcat": sized[at : at + 2], "spacing": 48, "resolve": resolve}
        for at in range(0, len(sized), 2)
    ]
    return {"vconcat": rows, "spacing": 36, "resolve": resolve, "datasets": datasets}


def _embedded(name: str, value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(character, code)
    return f'<script type="application/json" id="{name}">{text}</script>'


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _number(value: Any, digits: int = 4) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{max(digits - 2, 1)}e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.{digits}g}"


def _header(record: RunRecord, other: RunRecord | None) -> str:
    head = record.head
    variant = f" ({head['variant']})" if head["variant"] else ""
    words = [f"{_text(head['policy'])} on the reference {_text(head['reference'])}"]
    starts = ", ".join(f"{name} {_number(value)}" for name, value in head["start"].items())
    scale = head["start_scale"]
    factor = f", {_number(scale)} times the tuned one" if scale is not None else ""
    words.append(f"from {_text(starts)}{factor}")
    words.append(f"seed {head['seed']}")
    words.append(f"{len(record.decisions)} decisions over {head['total_steps']} steps")
    if head["watch_only"]:
        words.append("watching only: nothing was changed")
    if other is not None:
        words.append(f"beside {_text(other.title)}")
    began = time.strftime("%d %B %Y, %H:%M UTC", time.gmtime(head["started_at"]))
    number = "" if record.id is None else f"run {record.id} · "
    return (
        f'<header><div class="mark">trimtab · {number}{began}</div>'
        f"<h1>{_text(head['task'])}{_text(variant)}"
        f'<span class="badge {_text(record.status)}">{_text(record.status)}</span></h1>'
        f"<p>{'; '.join(words)}.</p></header>"
    )


def _figures(record: RunRecord, other: RunRecord | None) -> str:
    """Return the row of cards: metrics of the best weights, then what the run cost."""
    split = "test" if record.figures.get("test") else "validation"
    beside = {} if other is None else figures_of(other)
    cards = [
        (f"{split} {spelled(name)}", _number(value), beside.get(name))
        for name, value in figures_of(record).items()
        if name not in ("examples", "step")
    ][:4]
    costs = (("steps", "spent_steps"), ("whole runs", "spent"), ("seconds", "seconds"))
    for label, key in (*costs, ("rolled back", "rollbacks")):
        if key in record.figures:
            value = record.figures[key]
            shown = f"{value:.1f}" if key == "seconds" else _number(value, 3)
            cards.append((label, shown, None if other is None else other.figures.get(key)))
    undone, others = (
        None if each is None else count_undone(item.reasons for item in each.decisions)
        for each in (record, other)
    )
    if undone or others:
        cards.append(("short windows undone", _number(undone), others))
    best = (record.figures.get("best") or {}).get("step")
    if best is not None:
        cards.append(("best at step", _number(best), None))
    other_label = "" if other is None else label_of(other, record)
    return '<section class="figures">{}</section>'.format(
        "".join(
            f'<div class="figure"><div class="name">{_text(name)}</div>'
            f'<div class="value">{value}</div><div class="beside">'
            + ("" if theirs is None else f"{_text(other_label)} {_number(theirs, 3)}")
            + "</div></div>"
            for name, value, theirs in cards
        )
    )


def decisions_table(record: RunRecord) -> str:
    """Return the table of a run's decisions as HTML, each with what it earned and why."""
    names = steered_names(record)
    heads = ["#", "step", "validation", "training", "earned"]
    columns = "".join(f'<th class="n">{head}</th>' for head in heads)
    columns += "".join(f'<th class="n">{_text(name)}</th>' for name in names) + "<th>why</th>"
    rows: list[str] = []
    held: Mapping[str, float] = record.head["start"]
    for item, following in zip_longest(record.decisions, record.decisions[1:]):
        earned = following.reward if following else (record.figures.get("last") or {}).get("reward")
        rows.append(_decision(item, earned, names, held))
        held = item.applied
    body = "".join(rows) or f'<tr><td colspan="{len(heads) + len(names) + 1}">none yet</td></tr>'
    return f'<div class="sheet"><table><thead><tr>{columns}</tr></thead>{body}</table></div>'


def _decision(
    item: DecisionRecord, earned: Any, names: Iterable[str], held: Mapping[str, float]
) -> str:
    cells = [
        str(item.decision + 1),
        str(item.step),
        _number(float(item.metrics.val_loss)),
        _number(float(item.metrics.train_loss)),
        f"{earned:+.3f}" if isinstance(earned, float) and math.isfinite(earned) else "–",
    ]
    line = "".join(f'<td class="n">{cell}</td>' for cell in cells)
    for name in names:
        now, before = item.applied[name], held[name]
        turn = "up" if now > before * 1.001 else "down" if now < before * 0.999 else ""
        arrow = {"up": " ↑", "down": " ↓", "": "  "}[turn]
        line += f'<td class="n {turn}">{_number(now, 3)}{arrow}</td>'
    why = item.why or "as proposed"
    if item.terminated:
        why += "; given up"
    return f"<tr{' class=back' if item.restored else ''}>{line}<td>{_text(why)}</td></tr>"


def _about(record: RunRecord, other: RunRecord | None) -> str:
    head = record.head
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    took = ""
    if head.get("finished_at"):
        took = f", {head['finished_at'] - head['started_at']:.1f} s"
    rows: list[tuple[str, str]] = [
        *((f"notice ({_text(name)})", _text(words)) for name, words in head["notices"].items()),
        ("command", f"<code>{_text(head['command'])}</code>"),
        ("seed", _text(head["seed"])),
        ("versions", _text(versions)),
        ("commit", f"<code>{_text(head['git_commit'] or '–')}</code>"),
        ("contract", f"<code>{_text(head['spec_hash'])}</code>"),
        ("host", f"{_text(head['host'])}{took}"),
    ]
    if other is not None:
        rows.append(
            ("beside", f"{_text(other.title)}, <code>{_text(other.head['command'])}</code>")
        )
    items = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
    return f'<div class="sheet"><dl>{items}</dl></div>'
