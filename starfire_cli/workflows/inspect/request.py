"""The request of `starfire inspect`: its options, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from starfire_cli.errors import BadOption
from starfire_cli.numbers import RGB
from starfire_cli.options import Option, check, option
from starfire_cli.workflows.options import (
    BATCH_SIZE,
    CHECKPOINT,
    DATA,
    DATA_PANEL,
    DEVICE,
    MEAN,
    MODEL,
    STD,
    WEIGHTS,
    WORKERS,
)


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    """One call of `starfire inspect`: a checkpoint, or two to compare."""

    checkpoint: Path | None = CHECKPOINT.default(None)
    other: Path | None = Option(
        argument=True, metavar="[OTHER]", help="A second checkpoint to compare with the first."
    ).default(None)
    model: str | None = replace(
        MODEL, help=f"{MODEL.help} Gives groups, model order and multiply-accumulates."
    ).default(None)
    weights: str | None = WEIGHTS.default(None)
    image: str | None = option(
        None,
        "The image for which multiply-accumulates are counted, such as 3x224x224.",
        flags=("--input",),
        metavar="CxHxW",
    )
    strict: bool = option(False, "Exit with 3 if masks, weights and digest contradict each other.")
    evaluate: bool = option(
        False,
        "With two checkpoints: count predictions that flip, on the checkpoints' data; --data implies it.",
        panel=DATA_PANEL,
    )
    data: str | None = DATA.default(None)
    mean: RGB | None = MEAN.default(None)
    std: RGB | None = STD.default(None)
    batch_size: int = BATCH_SIZE.default(256)
    workers: int = WORKERS.default(2)
    device: str = DEVICE.default("auto")

    @property
    def wants_data(self) -> bool:
        """Whether both networks run over images."""
        return self.evaluate or self.data is not None

    def check(self) -> None:
        """Raises BadOption for options that cannot mean anything, alone or together."""
        check(self)
        if self.other is None and self.wants_data:
            raise BadOption("--evaluate and --data are for two checkpoints; starfire attack measures a single one")
        if not self.wants_data and (self.mean is not None or self.std is not None):
            raise BadOption("--mean and --std are for --evaluate, which shows images to two networks")
