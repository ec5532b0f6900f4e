"""What every report is made of: one page that asks the network for nothing, and how charts look.

The page, its header, cards, tables and lists; the theme of all charts and what they share; the
same charts as a picture.
"""

from __future__ import annotations

import html
import importlib.util
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from trimtab.core.errors import MissingDependencyError, SpecError
from trimtab.records.array_files import write_whole

Row = dict[str, Any]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
_POLICY += "script-src 'unsafe-inline' 'unsafe-eval'"  # Vega compiles its expressions
_EXPORTS = "window.vegaEmbed = vegaEmbed;"
_FONT = "Inter, 'Segoe UI', 'Helvetica Neue', Helvetica, 'Liberation Sans', Arial, sans-serif"


def _theme(ink: str, faint: str, grid: str, colours: list[str], best: str) -> dict[str, Any]:
    return {
        "background": None,
        "font": _FONT,
        "view": {"stroke": None},
        "line": {"strokeJoin": "round", "strokeCap": "round"},
        "range": {"category": colours},
        "axis": {
            "labelColor": faint,
            "titleColor": faint,
            "titleFontWeight": "normal",
            "titleFontSize": 12,
            "labelFontSize": 11,
            "gridColor": grid,
            "domain": False,
            "ticks": False,
            "labelPadding": 8,
            "titlePadding": 10,
        },
        "axisX": {"grid": False, "domain": True, "domainColor": grid},
        "legend": {
            "labelColor": ink,
            "labelFontSize": 12,
            "labelLimit": 260,
            "orient": "top",
            "direction": "horizontal",
            "title": None,
            "symbolStrokeWidth": 2.5,
            "symbolSize": 130,
            "offset": 6,
        },
        "title": {
            "color": ink,
            "subtitleColor": faint,
            "anchor": "start",
            "fontSize": 15,
            "subtitleFontSize": 12,
            "fontWeight": 600,
            "offset": 12,
            "subtitlePadding": 5,
        },
        "style": {
            "reference": {"color": faint, "strokeWidth": 1.5, "strokeDash": [1, 4]},
            "best": {"color": best, "strokeWidth": 2.5},
            "steered": {"color": colours[0]},
            "event": {"color": best},
            "number": {"color": "#ffffff" if ink < "#8" else "#10161d", "fontWeight": 700},
            "faint": {"color": faint},
        },
    }


THEMES: dict[str, dict[str, Any]] = {
    "light": _theme("#1d2733", "#667383", "#e6eaef", ["#0b6e99", "#b0763a"], "#d1495b"),
    "dark": _theme("#e8edf3", "#93a1b2", "#28323e", ["#58b6de", "#dba365"], "#ff7b8b"),
}
"""Vega configurations by name."""


def require_report_extra() -> None:
    """Check that the extra ``report`` is installed.

    Raises:
        MissingDependencyError: It is not.
    """
    missing = [name for name in ("altair", "vl_convert") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"a report needs {' and '.join(missing)}; run: pip install 'trimtab[report]'"
        )


# The page.


def document(
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
    marks = [bool((chart.get("usermeta") or {}).get("folded")) for chart in charts]
    made = [_box(index, chart) for index, chart in enumerate(charts)]
    boxes = "".join(box for box, is_folded in zip(made, marks, strict=True) if not is_folded)
    rest = "".join(box for box, is_folded in zip(made, marks, strict=True) if is_folded)
    folded = fold("More pictures", f'<section class="charts">{rest}</section>') if rest else ""
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{text(title)}</title>",
            f"<style>{asset('report.css')}{style}</style></head>",
            f"<body><main>{above}",
            f'<section class="charts">{boxes}</section>{folded}',
            "<noscript><p>The charts need JavaScript; the table below does not.</p></noscript>",
            below,
            "<footer>Made by trimtab. This file holds all that it shows.</footer></main>",
            _embedded("charts", charts),
            _embedded("themes", THEMES),
            f"<script>{_library()}</script><script>{asset('report.js')}</script></body></html>",
        ]
    )


def fold(words: str, content: str) -> str:
    """Return HTML that is shown when its words are clicked."""
    return f'<details class="fold"><summary>{text(words)}</summary>{content}</details>'


def _box(index: int, chart: dict[str, Any]) -> str:
    """Return the place of a chart; its title stands above as text, which wraps on a telephone."""
    title = chart.get("title") or {}
    words = title.get("subtitle") or ""
    below = words if isinstance(words, str) else " ".join(words)
    caption = f"<h3>{text(title.get('text', ''))}</h3><p>{text(below)}</p>" if title else ""
    wide = " wide" if (chart.get("usermeta") or {}).get("wide") else ""
    return f'<div class="chart{wide}">{caption}<div id="chart-{index}"></div></div>'


def asset(name: str) -> str:
    """Return a script or a style sheet of the reports' pages."""
    return (Path(__file__).with_name("assets") / name).read_text(encoding="utf-8")


@cache
def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, about 0.9 MB."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle(_EXPORTS, vl_version=_vega_lite())
    return bundle.replace("</script", "<\\/script")


def _embedded(name: str, value: Any) -> str:
    data = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        data = data.replace(character, escaped)
    return f'<script type="application/json" id="{name}">{data}</script>'


def text(value: Any) -> str:
    """Return a text as HTML that shows it as it is."""
    return html.escape(str(value), quote=True)


def code(value: Any) -> str:
    """Return a text as HTML that shows it as code."""
    return f"<code>{text(value)}</code>"


def figure(value: Any) -> str:
    """Return a figure in four digits; a dash for what is no finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return "–"
    return f"{value:.4g}"


def header(mark: str, title: str, words: str, status: str = "") -> str:
    """Return the head of a page; all is escaped here.

    Args:
        mark: What kind of report it is, and when its subject began.
        title: Of the page.
        words: The sentence below it.
        status: Shown beside the title; none if empty.
    """
    badge = f'<span class="badge {text(status)}">{text(status)}</span>' if status else ""
    return (
        f'<header><div class="mark">trimtab · {text(mark)}</div><h1>{text(title)}{badge}</h1>'
        f"<p>{text(words)}</p></header>"
    )


def cards(rows: Iterable[tuple[str, str, str]]) -> str:
    """Return a row of cards, each a name, a value and what stands below it; all is escaped here."""
    shown = (
        f'<div class="figure"><div class="name">{text(name)}</div>'
        f'<div class="value">{text(value)}</div><div class="beside">{text(beside)}</div></div>'
        for name, value, beside in rows
    )
    return f'<section class="figures">{"".join(shown)}</section>'


def cells(values: Iterable[str], kind: str | None = None, tag: str = "td") -> str:
    """Return cells of a table, given as HTML.

    Args:
        values: One a cell.
        kind: Class of the cells, ``"n"`` for numbers.
        tag: ``"th"`` for heads.
    """
    opened = f"<{tag}>" if kind is None else f'<{tag} class="{kind}">'
    return "".join(f"{opened}{value}</{tag}>" for value in values)


def heads(words: Iterable[str], numbers: Iterable[str] = (), last: Iterable[str] = ()) -> str:
    """Return the heads of columns of words, then of numbers, then of words; escaped here."""
    first, middle, end = (map(text, names) for names in (words, numbers, last))
    return cells(first, tag="th") + cells(middle, "n", "th") + cells(end, tag="th")


def table(head: str, rows: Iterable[str]) -> str:
    """Return a table of the cells of its head and of whole rows."""
    body = "".join(rows) or f'<tr><td colspan="{head.count("<th")}">none yet</td></tr>'
    return f'<div class="sheet"><table><thead><tr>{head}</tr></thead>{body}</table></div>'


def details(rows: Iterable[tuple[str, str]]) -> str:
    """Return a list of names, which are escaped here, and of what they mean as HTML."""
    items = "".join(f"<dt>{text(name)}</dt><dd>{value}</dd>" for name, value in rows)
    return f'<div class="sheet"><dl>{items}</dl></div>'


# Charts.


def specification(chart: Any, width: int | str = "container") -> dict[str, Any]:
    """Return a chart of Altair as the plain data of Vega-Lite, without a theme, 300 pixels high.

    Args:
        chart: One that says its own height has it.
        width: In pixels, or as wide as its container.
    """
    made: dict[str, Any] = chart.properties(width=width).to_dict()
    made.pop("config", None)
    return {"height": 300, **made}


def inline(rows: Iterable[Mapping[str, Any]]) -> Any:
    """Return rows as data that is part of a chart."""
    import altair as alt

    return alt.InlineData(values=[dict(row) for row in rows])


def chart_title(words: str, subtitle: str | Sequence[str]) -> Any:
    """Return a chart's title with what is said below it."""
    import altair as alt

    return alt.TitleParams(words, subtitle=subtitle)


# Pictures and files.


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


def _vega_lite() -> str:
    """Return the version of Vega-Lite that the charts are written for, as vl-convert names it."""
    import altair
    import vl_convert

    wanted = altair.SCHEMA_VERSION.lstrip("v").split(".")
    have: list[str] = vl_convert.get_vegalite_versions()
    same = [version for version in have if version.split(".")[0] == wanted[0]]
    exact = ".".join(wanted[:2])
    return exact if exact in have else (same or have)[-1]


def write_file(path: Path, content: bytes) -> None:
    """Write what was made to a file whole, replacing it.

    Raises:
        SpecError: The file cannot be written.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise SpecError(
            f"{path} cannot be written ({error.strerror or error}); write elsewhere with --out"
        ) from error
