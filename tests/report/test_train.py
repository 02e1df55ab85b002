"""Tests of the lines that `starfire train` prints."""

from pathlib import Path

import pytest

from starfire_cli.records.train import Started
from starfire_cli.report.train import display


@pytest.mark.parametrize(
    ("resumed", "epoch", "told"),
    [
        (False, 0, "run folder runs/a"),
        (True, 2, "going on in runs/a"),
        (True, 3, "runs/a is trained to its end, 3 epochs; a larger --epochs goes on"),
    ],
)
def test_a_run_that_is_over_is_not_gone_on_with(
    resumed: bool, epoch: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path("runs/a")
    started = Started(
        run=run, epoch=epoch, epochs=3, step=8 * epoch, steps=24, steps_per_epoch=8, resumed=resumed, notes=()
    )
    display(iter([started]))
    assert capsys.readouterr().out.splitlines() == [told.replace("runs/a", str(run))]
