"""Groups runs of the same experiment under different seeds, and labels each group by what sets it apart."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from starfire_cli.records.plot import Material, RunHistory
from starfire_cli.report.plot import style
from starfire_cli.text import epoch_text

# What tells two experiments apart comes into their names in this order, and only as much of it as is needed.
_TELLING = ("lr_drops", "epochs", "fc", "ramp", "lr", "optimizer", "batch_size", "adversarial", "init", "image_size")
_ALWAYS = ("model", "data")
_LIKE_LINES = 6  # neighbours in a legend whose curves have the same dashes
_ORDER = ("dense", "window", "ck", "intra", "inter")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ only in their seed.

    Args:
        label: short, different for each group of a picture.
        method: name of the convolutions' method; gives the colour.
        runs: at least one.
        colour, line, marker: how its curve is drawn.
    """

    label: str
    method: str
    runs: tuple[RunHistory, ...]
    colour: str = style.INK
    line: Any = "-"
    marker: str = "o"

    @property
    def first(self) -> RunHistory:
        """The first run; all share its settings but for the seed."""
        return self.runs[0]


def group_runs(runs: Sequence[RunHistory]) -> list[Group]:
    """Groups runs into experiments: dense first, then by method, target and start, each with its name and style."""
    by_settings: dict[Hashable, list[RunHistory]] = {}
    for run in runs:
        by_settings.setdefault(_identity(run), []).append(run)
    members = sorted(by_settings.values(), key=lambda group: _place(group[0]))
    labels = _labels([group[0] for group in members])
    groups = [
        Group(label=text, method=_method(group[0]), runs=tuple(sorted(group, key=_seed)))
        for text, group in zip(labels, members, strict=True)
    ]
    return _styled(groups)


def row_names(groups: Sequence[Group]) -> list[str]:
    """The groups' names in a table with a column for each target: equal for those that differ only in it."""
    keys = [_without(group.first, "target") for group in groups]
    first = {key: group.first for key, group in reversed(list(zip(keys, groups, strict=True)))}
    named = dict(zip(first, _labels(list(first.values()), targets=False), strict=True))
    return [named[key] for key in keys]


def differ_only_by(key: str, group: Group) -> Hashable:
    """A key that is equal for groups whose settings differ only in `key`."""
    return _without(group.first, key)


def pretty_method(spec: str) -> str:
    """A method's display name: `CK`, `Window, max_nonzero=2`."""
    name, _, options = spec.partition(":")
    shown = style.WRITTEN.get(name, name[:1].upper() + name[1:])
    return f"{shown}, {options.replace(',', ', ')}" if options else shown


def pretty_title(title: str) -> str:
    """A title's display form: `CK 60 %` of `ck 0.6`; other titles are unchanged."""
    if title == "dense":
        return "Dense"
    known = re.fullmatch(r"([a-z][\w-]*(?::\S+)?) (0?\.\d+)", title)
    return f"{pretty_method(known[1])} {percent_text(float(known[2]))}" if known else title


def with_experiment_titles(material: Material, groups: Sequence[Group]) -> Material:
    """The material with networks and attacked networks titled as their experiments, and in the experiments' order."""
    labels = {os.path.realpath(run.path): group.label for group in groups for run in group.runs}
    places = {folder: place for place, folder in enumerate(labels)}
    networks, curves = [], []

    def place(file: Path) -> int:
        return places.get(os.path.realpath(file.parent), len(places))

    for network in sorted(material.networks, key=lambda network: place(network.inspection.path)):
        label = labels.get(os.path.realpath(network.inspection.path.parent))
        networks.append(replace(network, title=label) if label else network)
    for curve in sorted(material.curves, key=lambda curve: place(Path(curve.checkpoint))):
        label = labels.get(os.path.realpath(Path(curve.checkpoint).parent))
        curves.append(replace(curve, title=label) if label else curve)
    return replace(material, networks=tuple(networks), curves=tuple(curves))


def disambiguate(titles: Sequence[str], places: Sequence[str]) -> list[str]:
    """The titles, each with its folder where two are alike."""
    return [f"{t} ({place})" if titles.count(t) > 1 else t for t, place in zip(titles, places, strict=True)]


def percent_text(share: float) -> str:
    """`60 %`, `62.5 %`."""
    return f"{100 * share:.4g} %"


def _identity(run: RunHistory) -> Hashable:
    """A key that is equal for runs of one experiment; a run without settings stands alone."""
    return _without(run)


def _without(run: RunHistory, *keys: str) -> Hashable:
    if not run.settings or run.method == "?":
        return str(run.path)
    return _frozen({k: v for k, v in run.settings.items() if k not in keys})


def _frozen(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        return tuple(sorted((str(k), _frozen(v)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    return repr(value)


def _method(run: RunHistory) -> str:
    return "dense" if run.dense else style.method_name(run.method)


def _place(run: RunHistory) -> tuple[Any, ...]:
    name = _method(run)
    rank = _ORDER.index(name) if name in _ORDER else len(_ORDER)
    return rank, run.method, run.target or 0.0, run.era or (0.0, 0.0), run.model, run.data, run.name


def row_order(group: Group) -> tuple[Any, ...]:
    """The sort key for rows of a table with a column for each target."""
    rank, method, _, *rest = _place(group.first)
    return rank, method, *rest


def _seed(run: RunHistory) -> tuple[float, str]:
    return (run.seed if run.seed is not None else float("inf")), run.name


def _labels(runs: Sequence[RunHistory], *, targets: bool = True) -> list[str]:
    """Each group's name: method and (if `targets`) target; the era and other settings, where they tell runs apart."""
    sparse = [run for run in runs if not run.dense]
    starts = {run.era[0] for run in sparse if run.era}
    usual: dict[Any, Counter[Any]] = {}
    for run in sparse:
        if run.era:
            usual.setdefault((run.method, run.era[0]), Counter())[run.era[1]] += 1
    texts = []
    for run in runs:
        if run.method == "?":
            texts.append(run.name)
            continue
        text = "Dense" if run.dense else pretty_method(run.method)
        if targets and not run.dense and run.target is not None:
            text += f" {percent_text(run.target)}"
        if run.era and len(starts) > 1:
            text += f", start {epoch_text(run.era[0])}"
        if run.era:
            ends = usual[run.method, run.era[0]]
            if len(ends) > 1 and run.era[1] != min(ends, key=lambda end: (-ends[end], end)):
                text += f", era {epoch_text(run.era[0])}-{epoch_text(run.era[1])}"
        texts.append(text)
    for key in _ALWAYS:
        if len({str(run.settings.get(key)) for run in runs if run.method != "?"}) > 1:
            texts = [f"{t}, {run.settings[key]}" if run.settings.get(key) else t for t, run in _both(texts, runs)]
    others = sorted({k for run in runs for k in run.settings} - {*_TELLING, *_ALWAYS, "method", "target", "era"})
    for key in (*_TELLING, *others):
        texts = _disambiguate(texts, runs, lambda run, key=key: _setting(run, key))  # type: ignore[misc]
    return _disambiguate(texts, runs, lambda run: run.name)


def _both(texts: Sequence[str], runs: Sequence[RunHistory]) -> list[tuple[str, RunHistory]]:
    return list(zip(texts, runs, strict=True))


def _disambiguate(texts: list[str], runs: Sequence[RunHistory], word: Callable[[RunHistory], str]) -> list[str]:
    """The texts, with a word added to equal ones, where it distinguishes them."""
    words: dict[str, set[str]] = {}
    for text, run in _both(texts, runs):
        words.setdefault(text, set()).add(word(run))
    return [f"{text}, {word(run)}" if len(words[text]) > 1 else text for text, run in _both(texts, runs)]


def _setting(run: RunHistory, key: str) -> str:
    value = run.settings.get(key)
    if isinstance(value, list | tuple):
        value = "-".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) or "none"
    if isinstance(value, float):
        value = f"{value:g}"
    return f"{key.replace('_', ' ')} {value}"


def _styled(groups: list[Group]) -> list[Group]:
    """The groups with line styles: colour by method, dashes by variant, tone and marker by both.

    Markers are there for print without colours, so no two of the first twenty are alike. Where there is one variant
    only, dashes tell the methods apart as well, once they are many.
    """
    variants = list(dict.fromkeys(_variant(group) for group in groups if not group.first.dense))
    styled = []
    for number, group in enumerate(groups):
        alike = [g for g in groups if g.method == group.method]
        tone = sum(g.method == group.method for g in groups[:number])
        place = tone if group.first.dense else variants.index(_variant(group))
        if len(variants) == 1:
            place += number // _LIKE_LINES
        styled.append(
            replace(
                group,
                colour=style.shades(style.method_colour(group.method), len(alike))[tone],
                line=style.LINES[place % len(style.LINES)],
                marker=style.MARKERS[number % len(style.MARKERS)],
            )
        )
    return styled


def _variant(group: Group) -> str:
    return group.label.removeprefix(pretty_method(group.first.method))
