"""The pictures: plain functions that take records and return a matplotlib Figure, one module a kind."""

from __future__ import annotations

from starfire_cli.report.figures._time import counts_steps
from starfire_cli.report.figures.convergence import convergence_figure
from starfire_cli.report.figures.kernels import kernels_figure
from starfire_cli.report.figures.layers import layers_figure
from starfire_cli.report.figures.robustness import attacks_figure, robustness_figure
from starfire_cli.report.figures.sparsity import sparsity_figure
from starfire_cli.report.figures.tradeoff import tradeoff_figure
from starfire_cli.report.figures.window import window_figure, windows_of

__all__ = [
    "attacks_figure",
    "convergence_figure",
    "counts_steps",
    "kernels_figure",
    "layers_figure",
    "robustness_figure",
    "sparsity_figure",
    "tradeoff_figure",
    "window_figure",
    "windows_of",
]
