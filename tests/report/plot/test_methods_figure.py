"""The picture of a comparison shows the numbers that it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from starfire_cli.records.compare import CellFigures, Compared, Latency, MethodRow, PairedDifference, Robustness
from starfire_cli.report.compare_methods import difference_text, show, unit_of
from starfire_cli.report.console import open_console
from starfire_cli.report.plot import style
from starfire_cli.report.plot.figures.methods import methods_figure
from tests.report.plot.test_plot_figures import check_layout


def figures(top1: float, *, flops: int = 2 * 10**12, problem: str | None = None) -> CellFigures:
    return CellFigures(
        top1=top1,
        top1_best=top1,
        sparsity_prunable=0.8,
        sparsity_total=0.79,
        epochs=3,
        training_flops=flops,
        inference_flops=4_000_000,
        seconds=12.0,
        packed_bytes=250_000,
        robustness=Robustness(attack="fgsm", images=9, labels=("0", "8/255"), points=((0, top1), (8 / 255, top1 / 2))),
        latency=Latency(dense=0.002, sparse=None if problem else 0.0005, problem=problem),
    )


def rows() -> tuple[MethodRow, ...]:
    dense = {0: figures(0.9), 1: figures(0.8)}
    own = {0: figures(0.87, flops=10**12), 1: figures(0.81, flops=10**12, problem="no loop")}
    return (
        MethodRow(title="dense", method="dense", target=None, figures=dense, dense={}),
        MethodRow(
            title="ck:x=$1 0.8",
            method="ck",
            target=0.8,
            figures=own,
            dense=dense,
            top1_difference=PairedDifference(mean=-0.01, half_width=0.2541, seeds=2),
            attack_differences={"8/255": PairedDifference(mean=-0.005, half_width=None, seeds=1)},
        ),
    )


def bars(axes: Axes) -> list[float]:
    return [round(float(bar.get_width()), 6) for bar in axes.patches]


@pytest.mark.parametrize("width", [style.WIDE, 3.5])
def test_panels_show_differences_and_costs(width: float) -> None:
    figure = methods_figure(rows(), eps=("8/255",), width=width)
    check_layout(figure)
    top1, fgsm, training, inference, packed, cpu = figure.axes
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:2] == ["top-1", "FGSM 8/255"] and training.get_xlabel() == "TFLOP" and packed.get_xlabel() == "kB"
    colour = style.method_colour("ck")
    (mean,) = [line for line in top1.get_lines() if to_hex(line.get_color()) == colour]
    assert np.allclose(mean.get_xydata(), [[-1.0, 1]])
    (interval,) = top1.collections
    assert np.allclose(interval.get_segments()[0], [[-26.41, 1], [24.41, 1]])
    seeds = [line for line in top1.get_lines() if len(line.get_xydata()) == 2 and line.get_marker() == "o"]
    assert np.allclose(seeds[0].get_xdata(), [-3.0, 1.0])
    assert not fgsm.collections  # of one pair there is no interval
    assert bars(training) == [2.0, 1.0] and bars(inference) == [4.0, 4.0] and bars(packed) == [250.0, 250.0]
    assert bars(cpu) == [0.5, 0.5] and [line.get_xdata()[0] for line in cpu.get_lines()] == [2.0, 2.0]


def test_what_is_not_known_has_no_panel() -> None:
    bare = CellFigures(
        top1=0.5,
        top1_best=0.5,
        sparsity_prunable=0.0,
        sparsity_total=0.0,
        epochs=1,
        training_flops=None,
        inference_flops=None,
        seconds=1.0,
    )
    row = MethodRow(title="ck 0.8", method="ck", target=0.8, figures={0: bare}, dense={})
    figure = methods_figure([row], eps=("0.01",))
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()] == ["top-1"]


def test_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert difference_text(PairedDifference(mean=-0.0056, half_width=0.0042, seeds=5)) == "-0.56 ± 0.42"
    assert difference_text(PairedDifference(mean=0.01, half_width=None, seeds=1)) == "+1.00"
    assert difference_text(None) == ""
    assert unit_of([None, 999.0, 2e6]) == (1e6, "M") and unit_of([None, 3.0]) == (1.0, "")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("starfire_cli.report.console._PIPE_WIDTH", 60)
    show(open_console(), Compared(folder=tmp_path, rows=rows(), eps=("8/255",), failed=(), document={}))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines[:4]) <= 60
    assert "no room for: " in " ".join(lines) and "time s" in " ".join(lines)
