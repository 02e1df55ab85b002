"""Figures: functions that take records and return a matplotlib Figure, one module a kind."""

from __future__ import annotations

from starfire_cli.report.plot.figures._time import counts_steps
from starfire_cli.report.plot.figures.convergence import convergence_figure
from starfire_cli.report.plot.figures.cost import cost_figure, counts_cost
from starfire_cli.report.plot.figures.kernels import kernels_figure
from starfire_cli.report.plot.figures.layers import layers_figure
from starfire_cli.report.plot.figures.overview import overview_figure
from starfire_cli.report.plot.figures.robustness import attacks_figure, robustness_figure
from starfire_cli.report.plot.figures.sparsity import sparsity_figure
from starfire_cli.report.plot.figures.tradeoff import tradeoff_figure
from starfire_cli.report.plot.figures.window import window_figure, windows_of

__all__ = [
    "attacks_figure",
    "convergence_figure",
    "cost_figure",
    "counts_cost",
    "counts_steps",
    "kernels_figure",
    "layers_figure",
    "overview_figure",
    "robustness_figure",
    "sparsity_figure",
    "tradeoff_figure",
    "window_figure",
    "windows_of",
]
