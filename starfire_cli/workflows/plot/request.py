"""The request of `starfire plot`: its options, their help and ranges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starfire_cli.errors import BadOption
from starfire_cli.numbers import parse_list, parse_whole
from starfire_cli.options import Option, option
from starfire_cli.report.plot.kinds import KINDS
from starfire_cli.workflows.options import OUTPUT_PANEL, WEIGHTS


def _parse_epochs(flag: str, text: str) -> tuple[int, ...]:
    epochs = parse_list(flag, text, parse_whole, "90,100")
    if len(epochs) > 2 or any(epoch < 1 for epoch in epochs):
        raise BadOption(f"{flag} {text!r} is not one epoch, or two as in 90,100")
    return epochs


@dataclass(frozen=True, kw_only=True)
class PlotRequest:
    """One call of `starfire plot`: pictures, or one table of the paper."""

    paths: tuple[Path, ...] = Option(
        argument=True,
        metavar="[PATH]",
        help="Run folders, folders of them, checkpoints, results of attack or compress. Default: the newest run.",
    ).default(())
    kind: tuple[str, ...] = option(
        (),
        f"{', '.join(KINDS)}; several with commas. Default: what the paths allow.",
        short="-k",
        metavar="KIND",
    )
    x: str = option("epoch", "Time in {choices}.", choices=("epoch", "step"))
    layer: str | None = option(
        None,
        "Layers whose masks kernels shows. Default: an early, a middle and a late one.",
        metavar="GLOB",
    )
    weights: str | None = WEIGHTS.default(None)
    width: float = option(
        7.2,
        "Inches, {range}; 5 or less lays pictures out for one column.",
        low=3,
        high=20,
        range="3 to 20",
    )
    dpi: int = option(200, "Dots an inch of PNG, {range}.", low=50, high=1200, range="50 to 1200")
    table: int | None = option(None, "Table 1, 2, 5, 6, 7 or 8 of the paper instead.", metavar="N")
    at: tuple[int, ...] | None = option(
        None,
        "Epochs after which tables read accuracies. Default: the last, and nine tenths of it.",
        metavar="E[,E]",
        parse=_parse_epochs,
    )
    format: str | None = option(
        None,
        "Of a table: terminal, markdown, latex or csv. Default: by --out's ending.",
        metavar="NAME",
        panel=OUTPUT_PANEL,
    )
    html: Path | None = option(
        None, "Write one self-contained page with everything.", metavar="FILE", panel=OUTPUT_PANEL
    )
    out: Path | None = option(
        None,
        ".pdf: a page each; .png, .svg: a file each. Default: plot-KIND.png beside what is drawn.",
        short="-o",
        metavar="FILE",
        panel=OUTPUT_PANEL,
    )
    quiet: bool = option(False, "Print problems only.", short="-q", panel=OUTPUT_PANEL)
    command: str = "starfire plot"
