"""Figures show the numbers they were given, and nothing lies on the data."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from starfire_cli.errors import StarfireError
from starfire_cli.records.plot import Material, RunHistory
from starfire_cli.report.plot import style
from starfire_cli.report.plot.figures import (
    attacks_figure,
    convergence_figure,
    cost_figure,
    kernels_figure,
    layers_figure,
    sparsity_figure,
    tradeoff_figure,
    window_figure,
)
from starfire_cli.report.plot.figures.kernels import block_means
from starfire_cli.report.plot.figures.tradeoff import pareto
from starfire_cli.report.plot.groups import group_runs
from starfire_cli.report.plot.kinds import draw, omission_notes
from starfire_cli.report.plot.saving import render
from starfire_cli.workflows.plot.run_files import read_curves, read_run
from tests.helpers.plot_runs import LAYERS, config_of, network, rows_of, write_attack, write_run


def curve(axes: Axes, colour: str, number: int = 0) -> list[tuple[float, float]]:
    """The points of the n-th line of a colour that is drawn in data coordinates."""
    lines = [line for line in axes.get_lines() if to_hex(line.get_color()) == colour and len(line.get_xydata()) > 1]  # type: ignore[arg-type]
    return [(float(x), float(y)) for x, y in np.asarray(lines[number].get_xydata())]


def xy(line: Line2D) -> list[list[float]]:
    """A line's points."""
    return [[round(float(x), 6), round(float(y), 6)] for x, y in np.array(line.get_xydata(), float)]


def texts(figure: Figure) -> list[str]:
    """The entries of the legend."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def check_layout(figure: Figure) -> None:
    """Nothing is cut off, and the legend is on no axes."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    width, height = figure.get_size_inches() * figure.dpi
    for artist in (*figure.legends, *(axes for axes in figure.axes if axes.axison)):
        box = artist.get_tightbbox(renderer)
        assert box is not None
        assert -1 <= box.x0 <= box.x1 <= width + 1, artist
        assert -1 <= box.y0 <= box.y1 <= height + 1, artist
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        for axes in figure.axes:
            assert not box.overlaps(axes.get_window_extent(renderer))


def two_seeds(folder: Path) -> list[RunHistory]:
    runs = []
    for seed, best in enumerate((0.9, 0.8)):
        config = config_of(seed=seed)
        runs.append(read_run(write_run(folder / f"s{seed}", config, rows_of(config, best))))
    return runs


@pytest.mark.parametrize("width", [style.WIDE, 4.0])
def test_convergence_is_the_mean_over_seeds_with_a_band(tmp_path: Path, width: float) -> None:
    groups = group_runs(two_seeds(tmp_path))
    figure = convergence_figure(groups, width=width)
    check_layout(figure)
    axes = figure.axes[0]
    points = curve(axes, style.METHODS["ck"])
    assert [x for x, _ in points] == list(range(1, 11))
    assert [y for _, y in points] == pytest.approx([0.85 * n / 10 for n in range(1, 11)])
    band = np.concatenate([p.vertices for p in axes.collections[0].get_paths()])
    assert band[:, 1].max() == pytest.approx(0.9)
    assert {round(y, 6) for x, y in band if x == 10} == {0.8, 0.9}
    assert {"CK 60 %", "pruning era", "learning rate falls"} <= set(texts(figure))
    assert axes.get_xlim()[0] == 0
    drops = [
        line.get_xdata()[0]
        for line in axes.get_lines()
        if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2
    ]  # type: ignore[index, arg-type]
    assert drops == [5.0, 8.0]
    spans = [patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches]
    assert [(round(span.x0, 6), round(span.x1, 6)) for span in spans] == [(2, 4)]


def test_a_row_edited_by_hand_changes_the_picture(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[6] = json.dumps(json.loads(lines[6]) | {"val_top1": 0.123})
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    figure = convergence_figure(group_runs([read_run(folder)]))
    assert dict(curve(figure.axes[0], style.METHODS["ck"]))[7] == 0.123


def test_robust_training_has_its_own_panels(tmp_path: Path) -> None:
    config = config_of(adversarial="fgsm:eps=8/255")
    rows = [row | {"robust_top1": 0.5 * row["val_top1"]} for row in rows_of(config)]
    figure = convergence_figure(group_runs([read_run(write_run(tmp_path / "r", config, rows))]))
    assert figure.axes[4].get_ylabel() == "validation top-1 under attack (%)"
    assert dict(curve(figure.axes[4], style.METHODS["ck"]))[10] == pytest.approx(0.45)


def test_steps_in_place_of_epochs(tmp_path: Path) -> None:
    figure = convergence_figure(group_runs([read_run(write_run(tmp_path / "r"))]), axis="step")
    assert [x for x, _ in curve(figure.axes[0], style.METHODS["ck"])] == [8.0 * n for n in range(1, 11)]
    assert figure.axes[2].get_xlabel() == "optimizer step"


def test_runs_still_going_on_end_in_a_hollow_mark_and_are_no_part_of_the_mean(tmp_path: Path) -> None:
    config = config_of(seed=2)
    going = read_run(write_run(tmp_path / "going", config, rows_of(config, 0.1, epochs=3)))
    figure = convergence_figure(group_runs([*two_seeds(tmp_path), going]))
    axes = figure.axes[0]
    assert curve(axes, style.METHODS["ck"])[2][1] == pytest.approx(0.85 * 3 / 10)
    assert [x for x, _ in curve(axes, style.METHODS["ck"], 1)] == [1, 2, 3]
    (end,) = [line for line in axes.get_lines() if to_hex(line.get_markerfacecolor()) == style.PAPER]  # type: ignore[arg-type]
    assert [tuple(p) for p in np.asarray(end.get_xydata())] == [(3.0, pytest.approx(0.03))]
    assert "going" in figure.legends[0].get_title().get_text()


def test_missing_numbers_are_gaps_and_one_epoch_is_a_point(tmp_path: Path) -> None:
    config = config_of()
    rows = rows_of(config)
    rows[3]["val_top1"] = None
    for row in rows:
        del row["val_top5"]
    figure = convergence_figure(group_runs([read_run(write_run(tmp_path / "gap", config, rows))]))
    assert math.isnan(dict(curve(figure.axes[0], style.METHODS["ck"]))[4])
    assert len(figure.axes) == 2
    short = config_of(epochs=1, start=0.0, end=1.0, drops=())
    single = convergence_figure(group_runs([read_run(write_run(tmp_path / "one", short))]))
    check_layout(single)
    (line,) = [line for line in single.axes[0].get_lines() if len(line.get_xydata()) == 1]  # type: ignore[arg-type]
    assert line.get_marker() == "o"


def test_sparsity_starts_at_nothing_and_ends_at_its_rows(tmp_path: Path) -> None:
    config = config_of(start=2.5, end=4.0)
    rows = rows_of(config)
    for row in rows:
        row["sparsity_prunable"] = row["threshold"] * 1.1
    figure = sparsity_figure(group_runs([read_run(write_run(tmp_path / "r", config, rows))]))
    check_layout(figure)
    threshold, true = (dict(curve(figure.axes[0], style.METHODS["ck"], n)) for n in (0, 1))
    assert threshold[0] == threshold[2.5] == true[0] == 0
    assert threshold[10] == 0.6
    assert true[10] == pytest.approx(0.66)
    assert {"threshold", "true, over prunable weights", "true, over all parameters"} <= set(texts(figure))


def test_eras_that_differ_are_strips_with_their_epochs(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / str(s), config_of(start=s, end=s + 2))) for s in (1.0, 3.0)]
    figure = convergence_figure(group_runs(runs))
    check_layout(figure)
    assert [text.get_text().strip() for text in figure.axes[0].texts] == ["1 to 3", "3 to 5"]
    assert not figure.axes[0].patches


def test_a_hundred_runs_are_named_by_method(tmp_path: Path) -> None:
    runs = []
    for number in range(100):
        method, target = ("ck", "window")[number % 2], round(0.2 + number // 2 * 0.01, 2)
        config = config_of(method, target, epochs=3, start=0.0, end=2.0, drops=(1.0,))
        runs.append(read_run(write_run(tmp_path / str(number), config)))
    figure = convergence_figure(group_runs(runs))
    check_layout(figure)
    assert texts(figure)[:2] == ["Window (50 experiments)", "CK (50 experiments)"]
    colours = {to_hex(line.get_color()) for line in figure.axes[0].get_lines()}  # type: ignore[arg-type]
    assert colours == {style.METHODS["ck"], style.METHODS["window"], style.MUTED}


def test_cost_is_what_has_been_spent_until_each_epoch(tmp_path: Path) -> None:
    """Rows that say it, rows of earlier versions, whose epochs are added up, and runs that do not say it."""
    runs = []
    for name, seed, of_row in (
        ("said", 0, lambda n: {"training_flops": 2e15 * n, "elapsed_seconds": 100.0 * n}),
        ("added", 1, lambda n: {"train_macs": 10**15, "seconds": 100.0}),
        ("silent", 2, lambda n: {}),
    ):
        config = config_of(seed=seed)
        rows = [{k: v for k, v in row.items() if k not in ("seconds",)} for row in rows_of(config)]
        rows = [row | of_row(number) for number, row in enumerate(rows, start=1)]
        runs.append(read_run(write_run(tmp_path / name, config, rows)))
    assert not runs[2].spent("flops") and not runs[2].spent("seconds")
    assert list(runs[1].spent("flops").values())[:2] == [6e15, 12e15]
    figure = cost_figure(group_runs(runs))
    flops, seconds = figure.axes
    (group,) = group_runs(runs)
    found = curve(flops, group.colour)
    assert [x for x, _ in found][:3] == [4, 8, 12]  # PFLOP, mean of two runs
    tops = [(a["val_top1"] + b["val_top1"]) / 2 for a, b in zip(runs[0].rows, runs[1].rows, strict=True)]
    assert [y for _, y in found] == pytest.approx(tops)
    assert "PFLOP" in flops.get_xlabel() and curve(seconds, group.colour)[1][0] == pytest.approx(200 / 60)
    check_layout(figure)
    with pytest.raises(StarfireError, match="cost cannot be drawn: it needs a run whose epochs have val_top1"):
        draw("cost", Material(runs=(runs[2],)))


def test_tradeoff_shows_each_run_at_its_best_epoch(tmp_path: Path) -> None:
    runs, networks = [], {}
    for method, target, best in (("dense", 0.0, 0.9), ("ck", 0.6, 0.85), ("ck", 0.8, 0.8), ("window", 0.6, 0.7)):
        config = config_of(method, target)
        run = read_run(write_run(tmp_path / f"{method}{target}", config, rows_of(config, best)))
        runs.append(run)
        networks[run.path] = network(run.path / "best.pt")
    figure = tradeoff_figure(group_runs(runs), networks)
    check_layout(figure)
    assert [axes.get_xlabel().partition(" (")[0] for axes in figure.axes] == [
        "sparsity of prunable weights",
        "multiply-accumulates",
        "packed file",
    ]
    points = [xy(line)[0] for line in figure.axes[0].get_lines() if len(xy(line)) == 1]
    assert sorted(points) == [[0, 0.9], [0.6, 0.7], [0.6, 0.85], [0.8, 0.8]]
    front = next(line for line in figure.axes[0].get_lines() if to_hex(line.get_color()) == style.MUTED)  # type: ignore[arg-type]
    assert xy(front) == [[0.8, 0.8], [0.6, 0.85], [0, 0.9]]
    assert front.get_drawstyle() == "steps-post"  # never above what a run has reached at that cost
    assert len(tradeoff_figure(group_runs(runs), {}).axes) == 1  # nothing but the rows is known


def test_tradeoff_counts_no_run_that_is_under_way(tmp_path: Path) -> None:
    plan = (("ck", 0.6, 0, 0.9, 10), ("ck", 0.6, 1, 0.4, 5), ("dense", 0.0, 0, 0.95, 10), ("window", 0.6, 0, 1.0, 8))
    runs = []
    for number, (method, target, seed, best, epochs) in enumerate(plan):
        config = config_of(method, target, seed=seed)
        runs.append(read_run(write_run(tmp_path / f"r{number}", config, rows_of(config, best, epochs=epochs))))
    figure = tradeoff_figure(group_runs(runs), {})
    check_layout(figure)
    points = {
        tuple(xy(line)[0]): line.get_markerfacecolor() for line in figure.axes[0].get_lines() if len(xy(line)) == 1
    }
    assert points.keys() == {(0.6, 0.9), (0, 0.95), (0.6, 0.8)}  # the half-trained seed pulls no mean down
    assert [point for point, face in points.items() if face == "none"] == [(0.6, 0.8)]
    front = next(line for line in figure.axes[0].get_lines() if to_hex(line.get_color()) == style.MUTED)  # type: ignore[arg-type]
    assert xy(front) == [[0.6, 0.9], [0, 0.95]]
    said = figure.legends[0].get_title().get_text().replace("\n", " ")
    assert "not at the last epoch yet (r3, r1)" in said


@given(
    points=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12),
    better=st.sampled_from((1, -1)),
)
def test_pareto_front_is_what_nothing_dominates(points: list[tuple[float, float]], better: int) -> None:
    front = pareto(points, better)
    for p in set(points):
        beaten = any(better * q[0] >= better * p[0] and q[1] >= p[1] and q != p for q in points)
        assert (p in front) == (not beaten)


@pytest.mark.parametrize("width", [style.WIDE, 4.0])
def test_layers_stand_in_model_order_with_their_sparsity_and_kind(width: float) -> None:
    figure = layers_figure([network()], width=width)
    check_layout(figure)
    axes = figure.axes[0]
    tips = [line for line in axes.get_lines() if line.get_marker() not in ("", "None")]
    across, up = (0, 1) if width == style.WIDE else (1, 0)
    assert [np.asarray(line.get_xydata())[0][across] for line in tips] == list(range(5))
    assert [np.asarray(line.get_xydata())[0][up] for line in tips] == pytest.approx([x.sparsity for x in LAYERS])
    kinds = ("window", "1x1", "3x3", "downsample", "linear")
    assert [(to_hex(line.get_color()), line.get_marker()) for line in tips] == [style.KINDS[k] for k in kinds]  # type: ignore[arg-type]
    ticks = axes.get_xticklabels() if width == style.WIDE else axes.get_yticklabels()
    assert [tick.get_text() for tick in ticks] == [x.name for x in LAYERS]


@pytest.mark.parametrize("width", [style.WIDE, 3.4])
def test_the_overview_has_the_curves_and_the_layers_of_what_is_sparse(tmp_path: Path, width: float) -> None:
    runs = tuple(two_seeds(tmp_path))
    dense = network(tmp_path / "d.pt", "dense", layers=tuple(replace(x, zeros=0) for x in LAYERS))
    figure = draw("overview", Material(runs=runs, networks=(dense, network(tmp_path / "s.pt"))), width=width)
    check_layout(figure)
    accuracy, layers = figure.axes
    whole = draw("convergence", Material(runs=runs), width=width)
    colour = group_runs(runs)[0].colour
    assert curve(accuracy, colour) == curve(whole.axes[0], colour)
    tips = [line for line in layers.get_lines() if line.get_marker() not in ("", "None")]
    assert [np.asarray(line.get_xydata())[0][1] for line in tips] == pytest.approx([x.sparsity for x in LAYERS])
    with pytest.raises(StarfireError, match="a checkpoint with prunable layers"):
        draw("overview", Material(runs=runs))


@pytest.mark.parametrize("width", [3.0, 3.4, style.NARROW, style.WIDE])
def test_long_titles_fit_every_width(width: float) -> None:
    title = "Window, max_nonzero=2 62.5 %, start 30, era 30-60"
    shown = [network(title=title), network(path=Path("runs/b/best.pt"), title=title)]
    for figure in (
        layers_figure(shown, width=width),
        window_figure(shown, width=width),
        kernels_figure(shown[0], width=width),
    ):
        check_layout(figure)
        renderer = FigureCanvasAgg(figure).get_renderer()
        heads = [figure._suptitle] if figure._suptitle else [axes.title for axes in figure.axes]  # type: ignore[attr-defined]
        heads += [axes._left_title for axes in figure.axes]  # type: ignore[attr-defined]
        for text in heads:
            assert text.get_window_extent(renderer).x1 <= figure.get_figwidth() * figure.dpi, text


def test_dense_networks_show_no_mark_cut_in_half_and_no_mask(tmp_path: Path) -> None:
    dense = network(tmp_path / "d.pt", "dense", layers=tuple(replace(x, zeros=0) for x in LAYERS))
    tips = [line for line in layers_figure([dense]).axes[0].get_lines() if line.get_marker() not in ("", "None")]
    assert not any(line.get_clip_on() for line in tips)
    networks = (dense, network(tmp_path / "s.pt", "ck 0.6"))
    figure = draw("kernels", Material(networks=networks))
    assert figure.get_suptitle() == "CK 60 %: masks"
    assert omission_notes(["kernels"], Material(networks=networks), [], [n.inspection.path for n in networks]) == [
        f"kernels shows {tmp_path / 's.pt'} alone; name another checkpoint to see it"
    ]


def test_window_squares_are_as_large_as_their_share() -> None:
    one = replace(LAYERS[2], name="b", per_window=(16, 0, 0, 48, 0, 0, 0, 0, 0, 0))
    figure = window_figure([network(layers=(*LAYERS, one))])
    check_layout(figure)
    halves, quarters = figure.axes[0].collections
    assert np.asarray(halves.get_offsets()).tolist() == [[0, 0], [0, 9]]
    assert np.asarray(quarters.get_offsets()).tolist() == [[1, 0], [1, 3]]
    sizes = quarters.get_sizes()  # type: ignore[attr-defined]
    assert sizes[1] / sizes[0] == pytest.approx(3)
    assert "larger windows" in figure.legends[0].get_title().get_text()  # of the 7x7 layer


def test_kernels_show_the_mask_itself() -> None:
    picture = network()
    figure = kernels_figure(picture)
    check_layout(figure)
    counts, patterns = (axes.get_images()[0].get_array() for axes in figure.axes[:2])
    assert np.array_equal(np.asarray(counts), picture.masks[0].kept_KC)
    tiles = np.asarray(patterns)
    assert tiles.shape == (24, 24)
    assert tiles[:3].all()
    assert not tiles[3:6].any()


@given(K=st.integers(1, 40), C=st.integers(1, 40), block=st.integers(1, 9))
def test_large_masks_are_shown_by_exact_means(K: int, C: int, block: int) -> None:
    values = np.random.default_rng(K * C).integers(0, 10, (K, C))
    means = block_means(values, block)
    for i in range(means.shape[0]):
        for j in range(means.shape[1]):
            part = values[i * block : (i + 1) * block, j * block : (j + 1) * block]
            assert means[i, j] == pytest.approx(part.mean())


def test_robustness_has_a_panel_for_each_attack_and_a_curve_for_each_network(tmp_path: Path) -> None:
    curves = [
        *read_curves(write_attack(tmp_path / "a.json", "dense")),
        *read_curves(write_attack(tmp_path / "b.json", "ck 0.6")),
        *read_curves(write_attack(tmp_path / "c.json", "ck 0.6", "pgd:steps=20")),
    ]
    figure = attacks_figure(curves)
    check_layout(figure)
    assert [axes.get_ylabel() for axes in figure.axes] == ["top-1 under fgsm (%)", "top-1 under pgd:steps=20 (%)"]
    assert texts(figure) == ["Dense", "CK 60 %", "the same, noise of that size only"]
    assert curve(figure.axes[0], style.METHODS["ck"]) == [(0.0, 0.9), (0.01, 0.7), (0.05, 0.3)]
    assert curve(figure.axes[0], style.INK)[2] == (0.05, 0.3)


numbers = st.none() | st.floats(0, 1)


@settings(max_examples=6, phases=[Phase.generate])  # a picture takes a while: one that fails is not made smaller
@given(
    metrics=st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8), min_size=1, max_size=4),
    name=st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=30),
)
def test_any_run_can_be_drawn(metrics: Sequence[Sequence[tuple[float | None, float | None]]], name: str) -> None:
    keys = {"convergence": "val_top1", "sparsity": "sparsity_prunable"}
    rows = [
        [
            {k: v for k, v in zip(keys.values(), pair, strict=True) if v is not None} | {"epoch": float(n)}
            for n, pair in enumerate(run, 1)
        ]
        for run in metrics
    ]
    runs = tuple(RunHistory(path=Path(f"{name}{n}"), rows=tuple(run)) for n, run in enumerate(rows))
    for kind, key in keys.items():
        if any(run.has(key) for run in runs):
            assert render(draw(kind, Material(runs=runs)), "png", dpi=50).startswith(b"\x89PNG")
        else:
            with pytest.raises(StarfireError, match=kind):
                draw(kind, Material(runs=runs))
