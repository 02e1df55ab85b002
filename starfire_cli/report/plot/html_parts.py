"""Parts of HTML pages: results, tables, settings; every text from a file is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from starfire_cli.records.plot import Material, NetworkPicture, RunHistory
from starfire_cli.report.plot import style
from starfire_cli.report.plot.groups import Group, percent_text, pretty_title
from starfire_cli.text import counted, printable, shape_text, size_text

_FEW = 6  # networks whose tables of layers are named one by one


def title_of(material: Material, groups: Sequence[Group]) -> str:
    """The page's title: the run's name, or a summary of the material."""
    if len(material.runs) == 1:
        return printable(material.runs[0].name, 80)
    if material.runs:
        return f"{len(material.runs)} runs of {_count(len(groups), 'experiment')}"
    return ", ".join(printable(str(n.inspection.path), 80) for n in material.networks[:2]) or "Accuracy under attack"


def subtitle(material: Material, groups: Sequence[Group]) -> str:
    """Method, network, data, epochs and seed of a single run."""
    if len(material.runs) != 1:
        return ""
    run, words = groups[0].first, [groups[0].label]
    words += [text for text in (run.model, run.data) if text != "?"]
    words += [counted(run.epochs, "epoch")] if run.epochs else []
    words += [f"seed {run.seed}"] if run.seed is not None else []
    return f'<p class="muted">{escape(" · ".join(words))}</p>'


def facts(material: Material, groups: Sequence[Group]) -> str:
    """The headline numbers."""
    shown: list[tuple[str, str, str]] = []
    if len(material.runs) == 1:
        run = material.runs[0]
        best = run.best()
        if best is not None:
            shown.append(("top-1", _percent(best["val_top1"]), f"epoch {best['epoch']:.0f}, the best"))
            if "sparsity_prunable" in best:
                beneath = f"{_percent(best['sparsity_total'])} of all parameters" if "sparsity_total" in best else ""
                shown.append(("sparsity", _percent(best["sparsity_prunable"]), beneath))
        if not run.finished:
            done = run.rows[-1]["epoch"] if run.rows else 0
            shown.append(("state", f"epoch {done:.0f}", f"of {run.epochs or '?'}, in progress or stopped"))
    if len(material.networks) == 1:
        network = material.networks[0]
        found = network.inspection
        times = found.bytes_dense / max(1, network.size)
        shown.append(
            ("packed", size_text(network.size), f"{'' if network.packed else 'estimated, '}{times:.1f} x smaller")
        )
        if found.macs is not None:
            dense, left = found.macs
            shown.append(("multiply-accumulates", _number(left), f"of {_number(dense)} dense"))
    if not shown:
        return ""
    cards = (f"<div><dt>{a}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in shown)
    return f'<dl class="facts">{"".join(cards)}</dl>'


def runs_table(groups: Sequence[Group]) -> str:
    """A table with a row a run, where there are several."""
    runs = [(group, run) for group in groups for run in group.runs]
    if len(runs) < 2:
        return ""
    rows = []
    for group, run in runs:
        best, last = run.best() or {}, run.rows[-1] if run.rows else {}
        done = f"{last.get('epoch', 0):.0f}"
        rows.append(
            (
                group.label,
                style.shorten(printable(run.name), 40),
                "" if run.seed is None else str(run.seed),
                _percent(best.get("val_top1")),
                f"{best['epoch']:.0f}" if best else "",
                _percent(last.get("val_top1")),
                _percent(best.get("sparsity_prunable")),
                done if run.finished else f"{done} of {run.epochs or '?'}",
            )
        )
    heads = ("experiment", "run", "seed", "best top-1", "at epoch", "last top-1", "sparsity", "epochs")
    return f'<h2>Runs</h2><div class="runs">{table(heads, rows)}</div>'


def robustness_table(material: Material) -> str:
    """A table of top-1 by size of the perturbation, with intervals."""
    rows = [
        (
            pretty_title(curve.title),
            curve.attack,
            f"{point.eps:.4g}",
            _percent(point.top1),
            _interval(point),
            str(curve.images),
        )
        for curve in material.curves
        for point in curve.points
    ]
    warnings = "".join(
        f'<p class="muted">{escape(pretty_title(curve.title))}: {escape(text)}</p>'
        for curve in material.curves
        for text in curve.warnings
    )
    heads = ("network", "attack", "eps", "top-1", "95 % interval", "images")
    return collapsible("The numbers", table(heads, rows)) + warnings


def layer_tables(material: Material) -> str:
    """Tables of every layer of every opened network; folded where there are many."""
    networks = [network for network in material.networks if network.inspection.layers]
    tables = "".join(
        collapsible(f"Layers of {_name(network)}", _layers(network), opens=len(networks) <= 2) for network in networks
    )
    return collapsible(f"Layers of {len(networks)} networks", tables, opens=False) if len(networks) > _FEW else tables


def sizes_table(material: Material) -> str:
    """A table of the weights' bytes: dense, packed, and the lower bound."""
    rows = []
    for network in material.networks:
        found = network.inspection
        packed = f"{size_text(network.size)}{'' if network.packed else ' (estimated)'}"
        times = f"{found.bytes_dense / max(1, network.size):.1f} x"
        rows.append((_name(network), size_text(found.bytes_dense), packed, times, size_text(found.bytes_bound)))
    if not rows:
        return ""
    return f"<h2>Sizes</h2>{table(('network', 'dense', 'packed', 'smaller', 'entropy bound'), rows)}"


def commands(groups: Sequence[Group]) -> str:
    """The command that repeats each run."""
    runs = [run for group in groups for run in group.runs if isinstance(run.facts.get("command"), str)]
    lines = [escape(printable(run.facts["command"], 2000)) for run in runs]
    if not lines:
        return ""
    shown = f"<pre>{chr(10).join(lines)}</pre>"
    return f"<h2>Made by</h2>{shown if len(lines) <= 2 else collapsible(_count(len(lines), 'command'), shown)}"


def configuration(groups: Sequence[Group]) -> str:
    """All settings of a single run, or shared settings and a list of differences."""
    runs = [run for group in groups for run in group.runs]
    if not any(run.settings for run in runs):
        return ""
    every = [_settings(run) for run in runs]
    keys = list(dict.fromkeys(key for settings in every for key in settings))
    same = [key for key in keys if len({settings.get(key) for settings in every}) == 1]
    rows = [(key, every[0].get(key, "")) for key in same]
    body = table(("setting", "value"), rows, words=True)
    differing = [key for key in keys if key not in same]
    if differing:
        body += f'<p class="muted">Not the same in all runs: {escape(", ".join(differing))}.</p>'
    return f"<h2>Configuration</h2>{collapsible(_count(len(rows), 'setting'), body)}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: bool = False) -> str:
    """A table that scrolls sideways where it is too wide."""
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    kind = ' class="words"' if words else ""
    return f'<div class="wide"><table{kind}><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def collapsible(summary: str, body: str, *, opens: bool = True) -> str:
    """A collapsible section; in print it is open, or (if not `opens`) left out."""
    return f"<details{'' if opens else ' class=unprinted'}><summary>{escape(summary)}</summary>{body}</details>"


def _layers(network: NetworkPicture) -> str:
    rows = [
        (
            layer.name,
            layer.kind,
            shape_text(layer.shape),
            f"{layer.weights:,}",
            _percent(layer.sparsity),
            f"{layer.dead_kernels:,}" if layer.kind != "linear" else "",
            layer.structure,
        )
        for layer in network.inspection.layers
    ]
    return table(("layer", "kind", "shape", "weights", "sparsity", "dead kernels", "structure"), rows)


def _name(network: NetworkPicture) -> str:
    where = network.run.name if network.run else network.inspection.path.name
    return f"{style.shorten(pretty_title(network.title), 60)} ({printable(where, 60)})"


def _settings(run: RunHistory) -> dict[str, str]:
    request = run.facts.get("request")
    plain: dict[str, Any] = dict(request) if isinstance(request, Mapping) else dict(run.settings)
    plain |= {"method": run.method, "fc": run.fc, "model": run.model}
    plain["target"] = percent_text(run.target) if run.target is not None else "?"
    for group in ("versions", "hardware"):
        more = run.facts.get(group)
        plain |= {f"{key} ({group})": value for key, value in more.items()} if isinstance(more, Mapping) else {}
    return {key.replace("_", "-"): printable(_words(value), 300) for key, value in plain.items() if value is not None}


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _interval(point: Any) -> str:
    return f"{100 * point.low:.2f} to {100 * point.high:.2f} %"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _number(count: float) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
