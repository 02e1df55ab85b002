"""The request of `starfire bench`: its options, their help and ranges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starfire_cli.numbers import RGB
from starfire_cli.options import option
from starfire_cli.workflows.options import CHECKPOINT, MEAN, MODEL, RUNTIME_PANEL, STD, WEIGHTS


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """One call of `starfire bench`; None means as the checkpoint says."""

    checkpoint: Path | None = CHECKPOINT.default(None)
    batch: str = option("1,16", "Images of a call; each number is timed.", short="-b", metavar="N,N,...")
    image: str | None = option(
        None,
        "The image, such as 3x224x224 or 224. Default: as the checkpoint says.",
        flags=("--input",),
        metavar="CxHxW",
    )
    threads: int | None = option(
        None,
        "Of every way alike. Default: as many as torch takes.",
        metavar="N",
        panel=RUNTIME_PANEL,
        low=1,
        high=1024,
        range="1 to 1024",
    )
    seconds: float = option(3.0, "Of timing, for each way and batch size.", panel=RUNTIME_PANEL)
    compile: bool = option(
        True,
        "Whether torch.compile takes part; it needs a C++ compiler and a minute for each batch size.",
        flags=("--compile/--no-compile",),
        panel=RUNTIME_PANEL,
    )
    model: str | None = MODEL.default(None)
    weights: str | None = WEIGHTS.default(None)
    num_classes: int | None = option(
        None,
        "How many logits it gives, where neither file nor weights say.",
        metavar="N",
        low=1,
        range="at least 1",
    )
    mean: RGB | None = MEAN.default(None)
    std: RGB | None = STD.default(None)
