"""Pictures of very little are right: one epoch, one point, nothing pruned, nothing left at 0 %."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from starfire_cli.records.plot import CurvePoint, Material, RobustCurve
from starfire_cli.report.plot.kinds import draw
from starfire_cli.workflows.plot.run import gather, material
from tests.helpers.plot_runs import config_of, rows_of, write_run


def drawn(figure: Figure) -> list[Axes]:
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    return [axes for axes in figure.axes if axes.axison]


def legend_of(figure: Figure) -> str:
    return " ".join(
        [text.get_text() for text in figure.legends[0].get_texts()] + [figure.legends[0].get_title().get_text()]
    )


def one_epoch(folder: Path, *methods: str) -> Material:
    for method in methods:
        config = config_of(method, 0.0 if method == "dense" else 0.6, start=0.0, end=1.0, epochs=1, drops=())
        write_run(folder / method, config, rows_of(config, best=0.97))
    return material(gather([folder]), ())


def ticks(axes: Axes, which: str) -> list[float]:
    """The labelled places that are seen."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    low, high = sorted(axis.get_view_interval())
    return [place for place in axis.get_majorticklocs() if low - 1e-9 <= place <= high + 1e-9]


@pytest.mark.parametrize("methods", [("ck",), ("dense",), ("ck", "window", "dense")], ids=len)
@pytest.mark.parametrize("kind", ["convergence", "sparsity", "tradeoff"])
def test_one_epoch(tmp_path: Path, kind: str, methods: tuple[str, ...]) -> None:
    figure = draw(kind, one_epoch(tmp_path, *methods))
    for axes in drawn(figure):
        assert all(-1e-9 < place < 1 + 1e-9 for place in ticks(axes, "y"))  # no accuracy of 102 %, no sparsity of -2 %
        assert all(-1e-9 < place < 1 + 1e-9 for place in ticks(axes, "x"))  # epochs 0 and 1, or fractions
        assert ticks(axes, "x") and any(line.get_marker() not in ("", "None", None) for line in axes.get_lines())
        if kind == "sparsity":
            assert not any(line.get_clip_on() for line in axes.get_lines())
    if kind == "tradeoff" and len(methods) == 1:
        assert "Pareto" not in legend_of(figure)


def test_what_no_row_holds_is_not_in_the_legend(tmp_path: Path) -> None:
    config = config_of(epochs=3)
    rows = [{k: v for k, v in row.items() if k not in ("threshold", "sparsity_total")} for row in rows_of(config)]
    write_run(tmp_path / "a", config, rows)
    shown = legend_of(draw("sparsity", material(gather([tmp_path]), ())))
    assert "threshold" not in shown and "all parameters" not in shown and "prunable" in shown


def curve(title: str, points: dict[float, float], images: int = 100, attack: str = "fgsm") -> RobustCurve:
    made = tuple(CurvePoint(eps=e, top1=t, low=max(0.0, t - 0.02), high=min(1.0, t + 0.02)) for e, t in points.items())
    path = Path("runs") / title / "best.pt"
    return RobustCurve(
        file=path, title=title, checkpoint=str(path), attack=attack, norm="linf", images=images, points=made
    )


def test_markers_at_nothing_are_whole() -> None:
    (axes,) = drawn(draw("robustness", Material(curves=(curve("ck 0.6", {0.0: 1.0, 0.05: 0.1, 0.1: 0.0}),))))
    line = next(line for line in axes.get_lines() if len(line.get_xdata()) == 3)
    assert not line.get_clip_on() and axes.get_ylim()[0] == 0


@pytest.mark.parametrize("eps", [0.0, 0.03])
def test_one_size(eps: float) -> None:
    (axes,) = drawn(draw("robustness", Material(curves=(curve("ck 0.6", {eps: 0.5}),))))
    low, high = axes.get_xlim()
    assert low == 0 and high >= 2 * eps and high > 0


def test_panels_say_how_many_images_they_are_of() -> None:
    curves = (
        curve("ck 0.6", {0.0: 0.9}),
        curve("window 0.6", {0.0: 0.8}, 1000),
        curve("dense", {0.0: 0.7}, 1, "noise"),
    )
    figure = draw("robustness", Material(curves=curves))
    labels = [axes.get_ylabel() for axes in drawn(figure)]
    assert [count in label for count, label in zip(("100 images", "1000 images", "1 image"), labels, strict=True)] == [
        True
    ] * 3
    assert "different numbers of images" in legend_of(figure)
    alike = draw("robustness", Material(curves=(curves[0], curve("window 0.6", {0.0: 0.8}))))
    assert "images" not in drawn(alike)[0].get_ylabel() and "different" not in legend_of(alike)
