"""Writes docs/methods.md, the page of all pruning methods, from their own files.

The tables of axes, and the answers to the columns of the paper's Table 4, are read from the code; the paper's own
answers stand below as data, and where the two differ the page says so. `python docs/generate_methods.py` writes the
page, `--check` fails if it is stale.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("methods.md")
sys.path.insert(0, str(PAGE.parents[1]))

from starfire_cli.pruning import METHODS, Goal, Layer, NetworkMethod  # noqa: E402 - the checkout, whatever is installed
from starfire_cli.pruning.axes import Axes, Rewire, SparseStart  # noqa: E402
from starfire_cli.pruning.neuron_growth import NeuronGrowth  # noqa: E402
from starfire_cli.pruning.regrowth import Grow  # noqa: E402
from starfire_cli.pruning.removal import Adaptive, Below, Rise, Swap  # noqa: E402

HEAD = PAGE.with_name("methods_head.txt")
UNITS = {
    "": "weight",
    "RS": "kernel",
    "S": "row of a window",
    "K": "im2col column",
    "CRS": "filter",
    "KRS": "input channel",
    "KCRS": "layer",
}
WITHIN = {"KC": "window", "C": "input channel", "": "layer"}
OURS = ("window", "ck", "intra", "inter", "fine", "block", "two-tier", "dense")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the page says of a method.

    Args:
        where: the commands that take it.
        unit: what lives and dies as one.
        rivals: what units compete in.
        amount: how many go.
        regrowth: what comes back.
        penalty: the term of the loss.
        budget: from when on the number of live units is that of the target.
    """

    where: str
    unit: str
    rivals: str
    amount: str
    regrowth: str
    penalty: str
    budget: str


def uses_of(name: str) -> set[str]:
    """What a method is registered for."""
    return {use for use in ("conv", "linear", "network", "oneshot", "channels") if name in METHODS.taking(use).names()}


def facts(name: str) -> Facts:
    """What the code says of a method with its default options."""
    uses, method = uses_of(name), METHODS.build(name)
    where = [c for c, by in (("train", {"conv", "linear", "network"}), ("prune-mask", uses - {"network"})) if uses & by]
    shown = ", ".join(f"`{command}`" for command in where)
    if isinstance(method, NetworkMethod):
        return _of_network(shown, method.axes())
    if not hasattr(method, "budget"):
        data = "what it sees of images" if getattr(method, "looks_at_images", False) else "weights or scales"
        amount = "the target's share" if getattr(method, "takes_target", True) else "what it finds to be superfluous"
        return Facts(
            where=shown,
            unit="channel",
            rivals="layer or network",
            amount=f"{amount}, by {data}",
            regrowth="nothing",
            penalty="none",
            budget="once",
        )
    kind = "linear" if uses == {"linear"} else "window"
    shape = (64, 64) if kind == "linear" else (64, 64, 3, 3)
    layer = Layer(name="layer", key="layer.weight", kind=kind, shape=shape)  # type: ignore[arg-type]
    cuts = method.budget(layer, Goal(target=0.75)) or ()
    units = [f"{cut.tile} x {cut.tile} tile" if cut.tile > 1 else UNITS[cut.unit] for cut in cuts]
    return Facts(
        where=shown,
        unit=", then ".join(units) or "none",
        rivals=", then ".join(WITHIN[cut.within] for cut in cuts) or "none",
        amount="rises to the target" if cuts else "none",
        regrowth="nothing",
        penalty="none",
        budget="after the era" if cuts else "none",
    )


def _of_network(where: str, axes: Axes) -> Facts:
    units = getattr(axes.penalty, "units", ())
    unit = " and ".join(UNITS[u] for u in units) if units and not axes.stages else UNITS[axes.unit.axes]
    if axes.penalty is not None and not units and not axes.stages:
        unit = "scale of a channel or branch"
    return Facts(
        where=where,
        unit=unit,
        rivals=_rivals(axes),
        amount=_amount(axes),
        regrowth=_regrowth(axes),
        penalty=_penalty(axes),
        budget=_budget(axes),
    )


def _rivals(axes: Axes) -> str:
    rise = axes.rise
    if rise is not None:
        return {"global": "network", "uniform": "layer"}.get(rise.allocation, f"layer ({rise.allocation.upper()})")
    if isinstance(axes.start, SparseStart):
        by_shape = {"global": "network", "uniform": "layer"}
        return by_shape.get(axes.start.allocation, f"layer ({axes.start.allocation.upper()})")
    return "each by itself" if axes.penalty is not None else "layer"


def _amount(axes: Axes) -> str:
    whole = isinstance(axes.start, SparseStart) and axes.start.sparsity is None
    parts = [] if axes.start is None else ["sparse from the start" if whole else "partly sparse"]
    for stage in axes.stages:
        removal = getattr(stage, "removal", None)
        if isinstance(removal, Rise):
            parts.append("rises to the target")
        elif isinstance(removal, Swap):
            parts.append(f"{removal.fraction:.0%} of the live ones swapped")
        elif isinstance(removal, Below):
            parts.append("all under a threshold")
        elif isinstance(removal, Adaptive):
            parts.append("all under an adaptive threshold")
        else:
            parts.append((inspect.getdoc(type(stage)) or "").partition(",")[0].partition(".")[0].lower())
    if axes.penalty is not None and not axes.stages:
        parts.append("what the penalty brings to zero")
    return ", then ".join(parts)


def _regrowth(axes: Axes) -> str:
    for stage in axes.stages:
        regrowth = getattr(stage, "regrowth", None)
        if isinstance(regrowth, Grow):
            shared = {"layer": "in the layer", "live": "in layers by live weights", "momentum": "in layers by momentum"}
            return f"{'at random' if regrowth.by == 'random' else f'by {regrowth.by}'}, {shared[regrowth.shared]}"
    own = next((s for s in axes.stages if not isinstance(s, Rewire) and not s.monotone), None)
    return "nothing" if own is None else "by a rule of its own"


def _penalty(axes: Axes) -> str:
    if axes.penalty is None or isinstance(axes.penalty, NeuronGrowth):  # which listens, and adds nothing
        return "none"
    units = getattr(axes.penalty, "units", None)
    if units:
        return "group lasso"
    return (inspect.getdoc(type(axes.penalty)) or "").partition(",")[0].partition(";")[0].partition(".")[0]


def _budget(axes: Axes) -> str:
    if not axes.targeted:
        return "none"
    return "throughout" if isinstance(axes.start, SparseStart) and axes.start.sparsity is None else "after the era"


# The paper's Table 4: (focus, requires regularisation, pruning era, strict budget, granularity).
PAPER = {
    "window": ("T", "No", "Beginning", "After Pruning", "non in Window"),
    "ck": ("T", "No", "Middle", "After Pruning", "Kernel"),
    "set": ("T", "No", "Beginning", "Throughout", "non-structured"),
    "gmp": ("T", "No", "Throughout", "After Pruning", "non-structured"),
    "lottery": ("T", "No", "Throughout", "Throughout", "non-structured"),
    "narang": ("T", "No", "Beginning", "None", "non-structured"),
    "nest": ("T", "No", "Throughout", "None", "non-structured"),
    "prunetrain": ("T", "Yes", "Throughout", "After Pruning", "Layer/Channel"),
    "dsr": ("T", "Yes", "Throughout", "Throughout", "non-/Kernel"),
    "deepr": ("T", "Yes", "Throughout", "Throughout", "non-structured"),
    "deep-compression": ("C", "No", "Throughout", "-", "non-structured"),
    "l1-filter": ("C", "Yes", "Throughout", "-", "Channel"),
    "lebedev": ("C", "Yes", "End", "-", "non-structured"),
    "mao": ("C", "Yes", "Throughout", "-", "non-structured"),
    "ssl": ("C", "Yes", "Throughout", "-", "Channel/Kernel/Layer"),
    "thinet": ("C", "Yes", "End", "-", "Channel"),
    "lasso-channel": ("C", "Yes", "End", "-", "Channel"),
    "slimming": ("C", "Yes", "Throughout", "-", "Channel"),
    "sss": ("C", "Yes", "Throughout", "-", "Layer"),
    "pfa": ("C", "Yes", "Throughout", "-", "Channel"),
}
# Where a row of the paper is not what the method's own paper and code do: which answer, and why.
ERRORS = {
    "lottery": ("strict", "strict within a round only: the first is dense, and each prunes more"),
    "narang": ("era", "starts with epoch 2 and ends at half of the training"),
    "prunetrain": ("strict", "there is no target: what is left is what the penalty left"),
    "dsr": ("penalty", "there is no penalty: the L1 coefficient is 0 in all of its runs"),
    "l1-filter": ("penalty", "there is no penalty beyond weight decay"),
    "lebedev": ("granularity", "structured: columns of the im2col matrix"),
    "mao": ("penalty granularity", "no penalty; four granularities, from single weights to filters"),
    "thinet": ("penalty", "there is no penalty"),
    "sss": ("granularity", "layers, groups of a layer, or channels"),
    "pfa": ("penalty", "there is no penalty"),
}
REMARKS = {
    "nest": "the paper stops where accuracy no longer recovers; here the target takes its place",
    "lasso-channel": "the penalty is on the choice of channels, not in training",
    "slimming": "`prune-mask --method slimming` cuts to a target",
}


def paper_row(name: str) -> str:
    """The row of Table 4 as printed, what the method's sources contradict in bold, beside what the code says."""
    answers = dict(zip(("focus", "penalty", "era", "strict", "granularity"), PAPER[name], strict=True))
    wrong, said = ERRORS.get(name, ("", REMARKS.get(name, "")))
    answers |= {column: f"**{answers[column]}**" for column in wrong.split()}
    found = facts(name)
    cells = [f"`{name}`", *answers.values(), "no" if found.penalty == "none" else "yes", found.budget, found.unit, said]
    return f"| {' | '.join(cells)} |"


def section(name: str) -> str:
    """One method: what its class says, its options and their defaults."""
    cls = METHODS.member(name)
    module = inspect.getdoc(sys.modules[cls.__module__]) or ""
    text, _, options = (inspect.getdoc(cls) or "").partition("\nArgs:\n")
    lines = [f"### {name}", "", _flowing(module), "", _flowing(text)]
    rows = _options(options)
    if rows:
        lines += ["", "| option | default | meaning |", "|---|---|---|"]
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        lines += [f"| `{key}` | {_default(defaults[key])} | {meaning} |" for key, meaning in rows]
    return "\n".join(lines) + "\n"


def _options(text: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for line in text.splitlines():
        key, colon, meaning = line.strip().partition(": ")
        if line.startswith("    ") and not line.startswith("     ") and colon and key.isidentifier():
            rows.append((key, meaning))
        elif rows and line.strip():
            rows[-1] = rows[-1][0], f"{rows[-1][1]} {line.strip()}"
    return [(key, meaning.replace("|", "\\|")) for key, meaning in rows]


def _flowing(text: str) -> str:
    """Paragraphs, each on one line."""
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


def _default(value: Any) -> str:
    return "" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def page() -> str:
    """The whole page."""
    names = [*(n for n in OURS if n in METHODS.names()), *(n for n in METHODS.names() if n not in OURS)]
    lines = [HEAD.read_text(encoding="utf-8").rstrip(), "", "## All methods by their axes", ""]
    lines += ["| method | in | unit | competes in | how much goes | comes back | penalty | strict budget |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for name in names:
        f = facts(name)
        cells = [f"[`{name}`](#{name})", f.where, f.unit, f.rivals, f.amount, f.regrowth, f.penalty, f.budget]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## The paper's Table 4", "", PAPER_TEXT, ""]
    lines += [
        "| method | focus | penalty | era | strict | granularity | penalty here | strict here | unit here | remark |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    lines += [paper_row(name) for name in PAPER if name in METHODS.names()]
    lines += ["", "## Method by method", "", *(section(name) for name in names)]
    return "\n".join(lines).rstrip() + "\n"


PAPER_TEXT = (
    "The left half is the table as printed (T: training, C: compression); the right half is read from the code of this "
    "version. **Bold** is an answer that the method's own paper and public code contradict."
)

if __name__ == "__main__":
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
            sys.exit("docs/methods.md is stale: python docs/generate_methods.py")
    else:
        PAGE.write_text(page(), encoding="utf-8")
