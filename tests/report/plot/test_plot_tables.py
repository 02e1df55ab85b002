"""Runs with the paper's accuracies give the paper's tables, and every format says the same."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.records.plot import RunHistory
from starfire_cli.report.plot.paper_tables import paper_tables
from starfire_cli.report.plot.table_cells import Cell
from starfire_cli.report.plot.table_text import FORMATS, format_name, write
from starfire_cli.workflows.plot.run_files import read_run
from tests.helpers.plot_runs import config_of, rows_of, write_run

# Of tables 1 and 6 of the paper: method, start, end, target: top-1 after 100 epochs and after 90, in percent.
PAPER: dict[tuple[str, int, int, float], tuple[float, float]] = {
    ("dense", 40, 60, 0.0): (76.29, 75.25),
    ("ck", 40, 60, 0.4): (75.82, 74.93),
    ("ck", 40, 60, 0.6): (75.33, 74.60),
    ("ck", 40, 60, 0.8): (74.16, 73.34),
    ("ck", 40, 70, 0.6): (75.52, 74.67),
    ("ck", 30, 50, 0.6): (75.12, 74.25),
    ("intra", 40, 60, 0.4): (75.89, 74.91),
    ("window", 0, 30, 0.6): (73.63, 72.63),
    ("window", 30, 50, 0.6): (75.45, 74.28),
}


def made(folder: Path, top1: dict[int, float], *args: Any, epochs: int = 100, **settings: Any) -> RunHistory:
    """A run that has these accuracies (in percent) after these epochs."""
    config = config_of(*args, epochs=epochs, **settings)
    rows = rows_of(config, 0.1)
    for row in rows:
        row["val_top1"] = top1.get(row["epoch"], row["val_top1"] * 100) / 100
    return read_run(write_run(folder / f"run{len(list(folder.iterdir()))}", config, rows))


@pytest.fixture
def runs(tmp_path: Path) -> list[RunHistory]:
    return [
        made(tmp_path, {100: late, 90: early}, method, target, start=start, end=end)
        for (method, start, end, target), (late, early) in PAPER.items()
    ]


def cells(runs: list[RunHistory], number: int, **options: Any) -> dict[str, list[str]]:
    """Rows of the terminal's table by their names."""
    (table,) = paper_tables(number, runs, **options)
    return {
        row.name + (f" ({row.own.text()})" if row.own else ""): [c.text() if c else "-" for c in row.cells]
        for row in table.rows
    }


def test_table_1(runs: list[RunHistory]) -> None:
    """As it is printed, but for differences that the paper took before rounding (by at most 0.01)."""
    rows = cells(runs, 1)
    assert list(rows) == [
        "Dense (76.29)",
        "Window, start 0",
        "Window, start 30",
        "CK, start 30",
        "CK, start 40",
        "CK, start 40, era 40-70",
        "Intra, start 40",
    ]
    assert rows["CK, start 40"] == ["75.82 (-0.47)", "75.33 (-0.96)", "74.16 (-2.13)"]
    assert rows["CK, start 40, era 40-70"] == ["-", "75.52 (-0.77)", "-"]
    assert rows["Window, start 0"] == ["-", "73.63 (-2.66)", "-"]
    assert rows["Intra, start 40"] == ["75.89 (-0.40)", "-", "-"]


def test_tables_6_and_7_read_the_earlier_epoch(runs: list[RunHistory]) -> None:
    assert cells(runs, 6)["CK, start 40"] == ["74.93 (-0.32)", "74.60 (-0.65)", "73.34 (-1.91)"]
    gains = cells(runs, 7)
    assert "Dense (+1.04)" in gains
    assert gains["CK, start 40"] == ["+0.89", "+0.73", "+0.82"]
    assert cells(runs, 7, at=[100, 100])["CK, start 40"] == ["+0.00"] * 3
    assert cells(runs, 1, at=[90]) == cells(runs, 6)


def test_table_2_has_both_epochs(runs: list[RunHistory]) -> None:
    (table,) = paper_tables(2, runs)
    assert table.spans == (("", 1), ("Epoch 90", 2), ("Epoch 100", 2))
    assert cells(runs, 2)["Window 60 %, start 0"] == ["60.00", "72.63", "60.00", "73.63"]


def test_table_5_has_methods_side_by_side(tmp_path: Path) -> None:
    runs = [made(tmp_path, {31: 51.84}, "dense", epochs=40, start=0.0, end=10.0)]
    for method, target, top1, epoch in (("window", 0.2, 50.97, 40), ("ck", 0.2, 52.40, 31), ("ck", 0.6, 52.56, 31)):
        runs.append(made(tmp_path, {epoch: top1}, method, target, epochs=40, start=0.0, end=10.0))
    (table,) = paper_tables(5, runs)
    assert table.spans == (("", 1), ("Window", 3), ("CK", 3))
    assert cells(runs, 5) == {
        "0": ["51.84", "31", "0.00"] * 2,
        "20": ["50.97", "40", "20.00", "52.40", "31", "20.00"],
        "60": ["-", "-", "-", "52.56", "31", "60.00"],
    }


def test_a_mean_of_epochs_has_one_digit(tmp_path: Path) -> None:
    runs = [made(tmp_path, {epoch: 99.0}, seed=seed) for seed, epoch in enumerate((30, 31, 31))]
    assert cells(runs, 5)["60"][1] == "30.7"


def test_table_5_has_a_row_each_where_methods_are_many(runs: list[RunHistory]) -> None:
    assert cells(runs, 5)["CK 60 %, start 40"] == ["75.33", "100", "60.00"]


def test_table_8_compares_drops_of_the_learning_rate(tmp_path: Path, runs: list[RunHistory]) -> None:
    with pytest.raises(StarfireError, match="--lr-drops"):
        paper_tables(8, runs)
    for drops, top1 in (((30.0, 60.0, 90.0), 75.34), ((30.0, 60.0, 80.0), 75.39)):
        runs.append(made(tmp_path, {100: top1}, "ck", 0.6, start=40.0, end=60.0, drops=drops))
    pairs = [run for run in runs if len(run.lr_drops) == 3]
    assert cells(pairs, 8) == {"CK 60 %, start 40, drops 30-60-80 against drops 30-60-90": ["75.39 (+0.05)"]}


def test_seeds_are_a_mean_with_their_deviation(tmp_path: Path) -> None:
    values = [75.0, 75.5, 76.5]
    runs = [made(tmp_path, {100: top1}, seed=seed) for seed, top1 in enumerate(values)]
    runs.append(made(tmp_path, {100: 76.0}, "dense"))
    (table,) = paper_tables(1, runs)
    (cell,) = table.rows[1].cells
    assert cell is not None
    assert (100 * cell.mean, cell.runs) == (pytest.approx(fmean(values)), 3)
    assert cell.spread == pytest.approx(stdev(values) / 100)
    assert cell.difference == pytest.approx((fmean(values) - 76) / 100)
    assert "1 to 3 runs" in table.notes[0]


def test_a_run_is_held_against_the_dense_run_that_was_trained_like_it(tmp_path: Path) -> None:
    runs = [made(tmp_path, {100: 70.0}, "dense", lr=0.1), made(tmp_path, {100: 60.0}, "dense", lr=0.01)]
    runs += [made(tmp_path, {100: 69.0}, lr=0.1), made(tmp_path, {100: 61.0}, lr=0.01)]
    rows = cells(runs, 1)
    assert rows["CK, lr 0.1"] == ["69.00 (-1.00)"]
    assert rows["CK, lr 0.01"] == ["61.00 (+1.00)"]
    without = cells(runs[2:], 1)
    assert without["CK, lr 0.1"] == ["69.00"]
    assert "no dense run" in paper_tables(1, runs[2:])[0].notes[0]


def test_a_network_that_came_in_pruned_is_no_baseline(tmp_path: Path) -> None:
    def fine_tuned(top1: float) -> RunHistory:
        config = config_of("dense", epochs=100, init="pruned.pt")
        rows = [row | {"sparsity_prunable": 0.5, "val_top1": top1} for row in rows_of(config)]
        return read_run(write_run(tmp_path / f"run{len(list(tmp_path.iterdir()))}", config, rows))

    runs = [fine_tuned(0.65), made(tmp_path, {100: 70.0}, "dense"), made(tmp_path, {100: 69.0})]
    assert cells(runs, 1) == {
        "Dense (70.00)": ["-", "-"],
        "CK": ["-", "69.00 (-1.00)"],
        "Pruned": ["65.00 (-5.00)", "-"],
    }
    assert "no dense run" in paper_tables(1, [runs[0], runs[2]])[0].notes[0]
    assert [row.name for row in paper_tables(2, runs)[0].rows] == ["Dense", "CK 60 %", "Pruned 50 %"]


def test_unlike_set_ups_have_tables_of_their_own(tmp_path: Path) -> None:
    runs = [
        made(tmp_path, {100: 70.0}),
        made(tmp_path, {100: 71.0}, model="resnet56"),
        made(tmp_path, {40: 5.0}, epochs=40),
    ]
    tables = paper_tables(1, runs)
    assert [table.setup for table in tables] == [
        "resnet20 on digits, 100 epochs in all",
        "resnet56 on digits, 100 epochs in all",
        "resnet20 on digits, 40 epochs in all",
    ]


def test_runs_in_progress_are_left_out_by_name(tmp_path: Path, runs: list[RunHistory]) -> None:
    config = config_of(epochs=100, seed=5)
    going = read_run(write_run(tmp_path / "going", config, rows_of(config, epochs=37)))
    tables = paper_tables(1, [*runs, going])
    assert "going is at epoch 37 of 100: left out." in tables[-1].notes
    with pytest.raises(StarfireError, match="going is at epoch 37 of 100"):
        paper_tables(1, [going])
    assert paper_tables(1, [going], at=[30])[0].rows[0].cells[0] is not None
    with pytest.raises(StarfireError, match="--at"):
        paper_tables(1, runs, at=[500])
    for number in (0, 3, 4, 9):
        with pytest.raises(BadOption, match="1, 2, 5, 6, 7, 8"):
            paper_tables(number, runs)


def test_every_format_holds_the_same_numbers(runs: list[RunHistory]) -> None:
    tables = paper_tables(1, runs)
    expected = {
        (row.name, column): round(100 * cell.mean, 2)
        for row in tables[0].rows
        for column, cell in zip(tables[0].columns[1:], row.cells, strict=True)
        if cell
    }
    read = list(csv.DictReader(io.StringIO(write(tables, "csv"))))
    found = {(row["row"], c): float(row[c]) for row in read for c in ("40", "60", "80") if row[c]}
    assert found == pytest.approx(expected)
    assert float(read[0]["own"]) == pytest.approx(76.29)
    assert float(read[1]["60 difference"]) == pytest.approx(73.63 - 76.29)
    markdown = [line for line in write(tables, "markdown").splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in markdown}) == 1
    latex = write(tables, "latex")
    assert latex.count(r"\begin{") == latex.count(r"\end{")
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in body} == {3}
    for form in ("terminal", "markdown", "latex"):
        numbers = re.findall(r"\b\d\d\.\d\d\b", write(tables, form))
        for value in expected.values():
            assert f"{value:.2f}" in numbers


def test_names_cannot_break_out_of_a_format(tmp_path: Path) -> None:
    runs = [made(tmp_path, {100: 70.0}, model=r"a|b_c&d$\x{}[bold]"), made(tmp_path, {100: 70.0}, "dense")]
    tables = paper_tables(1, runs)
    assert r"a\|b\_c" in write(tables, "markdown")
    latex = write(tables, "latex")
    assert r"a|b\_c\&d\$\textbackslash{}x\{\}" in latex
    assert "[bold]" in write(tables, "terminal")


def test_formats_by_their_short_names() -> None:
    assert [format_name(text) for text in ("md", "tex", "TERM", "csv")] == ["markdown", "latex", "terminal", "csv"]
    with pytest.raises(BadOption, match=", ".join(sorted(FORMATS))):
        format_name("docx")


def test_nothing_is_minus_zero() -> None:
    assert Cell(mean=-1e-9, difference=-1e-9, unit="points").text() == "+0.00 (+0.00)"
