"""Self-contained HTML pages about one run or many, without network access or scripts.

They are readable on phones and in print, dark or light. Every text from a file is escaped; the page's own policy
forbids loading anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from starfire_cli.records.plot import Material
from starfire_cli.report.plot import html_parts, style
from starfire_cli.report.plot.groups import Group
from starfire_cli.report.plot.kinds import KINDS
from starfire_cli.report.plot.saving import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PHONE = 4.1
"""Inches that a picture is drawn wide for narrow screens."""
_DPI = 110
_VARIABLES = {
    style.INK: "--ink",
    style.MUTED: "--muted",
    style.GRID: "--grid",
    style.SHADE: "--shade",
    style.PAPER: "--paper",
}
_STYLE = """
:root{color-scheme:light dark;--ink:#1b1e23;--muted:#656b75;--grid:#d5d9df;--shade:#e6e9ed;--paper:#fff;--link:#1c55cf}
@media screen and (prefers-color-scheme:dark){
:root{--ink:#e8eaed;--muted:#9aa2ad;--grid:#353b44;--shade:#262b32;--paper:#15181c;--link:#8ab4ff}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.2rem 1rem 3rem;max-width:56rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .2rem}h2{font-size:1.1rem;margin:2.2rem 0 .5rem}
p{margin:.4rem 0}.muted,figcaption{color:var(--muted);font-size:.875rem}
pre{background:var(--shade);padding:.7rem .8rem;border-radius:6px;white-space:pre-wrap;font-size:.8125rem}
dl.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.6rem;margin:1rem 0}
dl.facts div{border:1px solid var(--grid);border-radius:6px;padding:.5rem .7rem}
dl.facts dt{color:var(--muted);font-size:.8125rem}
dl.facts dd{margin:0;font-size:1.2rem;font-variant-numeric:tabular-nums}
dl.facts dd small{display:block;font-size:.8125rem;color:var(--muted)}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;min-width:min(100%,22rem)}
th,td{text-align:right;padding:.2rem .7rem .2rem 0;border-bottom:1px solid var(--grid);vertical-align:top}
th:first-child,td:first-child,table.words td{text-align:left}
.runs th:nth-child(2),.runs td:nth-child(2){text-align:left}
@media screen{.runs td{white-space:nowrap}}
td,th{overflow-wrap:normal}table.words td,table.words th{overflow-wrap:anywhere;text-align:left}
thead th{color:var(--muted);font-weight:600;white-space:nowrap}
figure{margin:.5rem 0 1rem}figure svg{width:100%;height:auto;display:block}
.screen-wide{display:block}.screen-narrow{display:none}
details{margin:.6rem 0}summary{cursor:pointer;color:var(--link)}
@media screen and (max-width:600px){.screen-wide{display:none}.screen-narrow{display:block}
table{font-size:.8125rem}td,th{padding-right:.5rem}thead th{white-space:normal}}
@media print{body{max-width:none;padding:0;font-size:10.5pt}h2{break-after:avoid}
figure,tr,dl.facts div{break-inside:avoid}details::details-content{content-visibility:visible;display:block}
pre{border:1px solid var(--grid)}
.unprinted{display:none}figure svg{max-height:23cm}.wide{overflow:visible}summary{color:inherit;list-style:none}}
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title><style>{style}</style></head>
<body><main>
{body}
</main></body></html>
"""


def html_page(
    material: Material, groups: Sequence[Group], figures: Mapping[str, Callable[[float], Figure]], *, command: str = ""
) -> str:
    """The page as text.

    Args:
        material: what there is to tell.
        groups: its runs.
        figures: by kind, drawn for a width in inches.
        command: what made the page.
    """
    title = html_parts.title_of(material, groups)
    body = [
        f"<h1>{escape(title)}</h1>",
        html_parts.subtitle(material, groups),
        html_parts.facts(material, groups),
        *(f'<p class="muted">{escape(note)}</p>' for note in material.notes),
        html_parts.runs_table(groups),
    ]
    for number, (kind, drawn) in enumerate(figures.items()):
        body.append(f'<section><h2 id="{kind}">{escape(KINDS[kind])}</h2>{_figure(kind, drawn, number)}')
        if kind == "robustness":
            body.append(html_parts.robustness_table(material))
        if kind == "layers":
            body.append(html_parts.layer_tables(material))
        body.append("</section>")
    body += [html_parts.sizes_table(material), html_parts.commands(groups), html_parts.configuration(groups)]
    if command:
        body.append(f'<p class="muted">Made by <code>{escape(command)}</code></p>')
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(filter(None, body)))


def _figure(kind: str, drawn: Callable[[float], Figure], number: int) -> str:
    """The figure twice, for wide and for narrow screens; the page shows one of them."""
    versions = (
        f'<div class="screen-{name}">{inline_svg(drawn(width), f"{kind[0]}{number}{name[0]}", KINDS[kind])}</div>'
        for name, width in (("wide", style.WIDE), ("narrow", PHONE))
    )
    return f"<figure>{''.join(versions)}</figure>"


def inline_svg(figure: Figure, prefix: str, title: str) -> str:
    """The figure as an `<svg>` element that takes the page's colours.

    Args:
        figure: the picture.
        prefix: makes its ids different from those of the page's other pictures.
        title: read out where pictures are not seen.
    """
    text = render(figure, "svg", dpi=_DPI, paper=None).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?) ?width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) ?height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(f": {colour}", f": var({variable})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
