"""The request of `starfire compress`: its options, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from starfire_cli.errors import BadOption
from starfire_cli.numbers import RGB
from starfire_cli.options import check, option
from starfire_cli.workflows.options import (
    CHECKPOINT,
    DATA,
    DEVICE,
    MEAN,
    MODEL,
    OUT,
    OUTPUT_PANEL,
    STD,
    WEIGHTS,
)

if TYPE_CHECKING:
    from starfire_cli.pruning.codebook import Codebook

PACKING_PANEL = "Packing"


@dataclass(frozen=True, kw_only=True)
class CompressRequest:
    """One call of `starfire compress`: packs, or writes another form with `unpack` or `to`."""

    checkpoint: Path | None = CHECKPOINT.default(None)
    unpack: bool = option(False, "Turn a packed file back into a checkpoint.", panel=OUTPUT_PANEL)
    to: str | None = option(
        None,
        "Write a form for other tools instead: {choices}.",
        metavar="FORM",
        panel=OUTPUT_PANEL,
        choices=("safetensors", "prune", "bitmask", "onnx"),
    )
    values: str = option(
        "exact",
        "exact, or round weights to bf16, to fp16 or to codebook:bits=5 (few values a layer) and say what that costs.",
        metavar="SPEC",
        panel=PACKING_PANEL,
        choices=("exact", "bf16", "fp16", "codebook"),
        specs=True,
    )
    effort: str = option(
        "normal",
        "{choices}: time spent on size.",
        panel=PACKING_PANEL,
        choices=("fast", "normal", "best"),
    )
    masks: str = option(
        "stored",
        "stored, or from-zeros: every zero of a layer is called dead.",
        panel=PACKING_PANEL,
        choices=("stored", "from-zeros"),
    )
    keep_plain: bool = option(
        False,
        "Leave every layer that was never pruned readable by any safetensors reader, also large ones.",
        panel=PACKING_PANEL,
    )
    verify: bool = option(
        True,
        "Read the file back before it is named.",
        flags=("--verify/--no-verify",),
        panel=PACKING_PANEL,
    )
    data: str | None = replace(
        DATA,
        panel=PACKING_PANEL,
        help="With --values: where to measure accuracy. Default: the checkpoint's data.",
    ).default(None)
    images: int | None = option(
        None,
        "With --values: measure on N images only.",
        metavar="N",
        low=1,
        range="images, at least 1",
        panel=PACKING_PANEL,
    )
    model: str | None = replace(
        MODEL,
        panel=PACKING_PANEL,
        help="With --values or --to onnx: the network, where the file does not say.",
    ).default(None)
    weights: str | None = WEIGHTS.default(None)
    mean: RGB | None = MEAN.default(None)
    std: RGB | None = STD.default(None)
    device: str = DEVICE.default("auto")
    out: Path | None = OUT.default(None)

    def codebook(self) -> Codebook | None:
        """The codebook of `--values codebook`; None for other values. Raises BadOption for options that they lack."""
        name, colon, _ = self.values.partition(":")
        if name != "codebook":
            if colon:
                raise BadOption(f"--values {self.values}: {name} has no options; codebook has, as in codebook:bits=4")
            return None
        from starfire_cli.pruning.codebook import parse  # brings torch, slow to import

        return parse("--values", self.values)

    def check(self) -> None:
        """Raises BadOption for options that cannot mean anything, alone or together."""
        check(self)
        self.codebook()
        if self.unpack and self.to:
            raise BadOption(f"--unpack and --to {self.to} exclude each other; --to reads packed files, too")
        if self.unpack or self.to:
            way = "--unpack" if self.unpack else f"--to {self.to}"
            given = {
                f"--values {self.values}": self.values != CompressRequest.values,
                f"--masks {self.masks}": self.masks != CompressRequest.masks,
                f"--effort {self.effort}": self.effort != CompressRequest.effort,
                "--keep-plain": self.keep_plain,
                "--no-verify": not self.verify,
            }
            for text in (text for text, there in given.items() if there):
                raise BadOption(f"{text} is for packing; {way} writes weights and masks as they are")
        if self.unpack and self.weights is not None:
            raise BadOption(f"--weights {self.weights}: a packed file holds one network")
        measured = self.values != CompressRequest.values
        if self.to != "onnx" and not measured and (self.mean is not None or self.std is not None):
            raise BadOption(
                "--mean and --std are for --to onnx, which writes a network that takes pixels in [0, 1], and for the "
                "accuracy with --values"
            )
        if (self.data is not None or self.images is not None) and self.values == "exact":
            raise BadOption(
                "--data and --images are for --values bf16, fp16 or codebook; exact values cannot change the accuracy"
            )
