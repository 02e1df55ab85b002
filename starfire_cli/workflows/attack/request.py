"""The request of `starfire attack`: its options, their help and ranges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from starfire_cli.errors import BadOption
from starfire_cli.numbers import RGB, parse_number
from starfire_cli.options import option
from starfire_cli.registry import Family
from starfire_cli.workflows.options import (
    BATCH_SIZE,
    CHECKPOINT,
    DATA,
    DATA_PANEL,
    DEVICE,
    IMAGE_SIZE,
    MEAN,
    OUT,
    OUTPUT_PANEL,
    RUNTIME_PANEL,
    SEED,
    STD,
    WEIGHTS,
    WORKERS,
)

ATTACK_PANEL = "Attack"
# Read from the folder: importing the family itself would import torch.
_NAMES = ", ".join(Family[object]("attack", "starfire_cli.attacks").names())


def _parse_step_size(flag: str, text: str) -> float:
    try:
        return parse_number(text)
    except ValueError:
        raise BadOption(f"{flag} {text!r} is no number; 0.01 and 2/255 are") from None


@dataclass(frozen=True, kw_only=True)
class AttackRequest:
    """One call of `starfire attack`; None means as the attack or the checkpoint says."""

    checkpoint: Path | None = CHECKPOINT.default(None)
    attack: str = option(
        "fgsm",
        f"One of {_NAMES}, with options as in pgd:steps=20.",
        short="-a",
        metavar="SPEC",
        panel=ATTACK_PANEL,
    )
    eps: str | None = option(
        None,
        "Sizes in pixels of [0, 1]: 0,0.01,0.05, fractions (8/255), ranges (0:0.1:0.01). "
        "Default: 0,0.01,0.05; l2: 0,0.25,0.5,1.",
        metavar="LIST",
        panel=ATTACK_PANEL,
    )
    norm: str | None = option(None, "linf or l2.", metavar="NORM", panel=ATTACK_PANEL)
    steps: int | None = option(None, "Gradients a start.", metavar="N", panel=ATTACK_PANEL)
    step_size: float | None = option(
        None,
        "Length of a step, such as 2/255. Default: 2.5 eps / steps.",
        metavar="X",
        panel=ATTACK_PANEL,
        parse=_parse_step_size,
    )
    restarts: int | None = option(
        None, "Random starts an image; the worst one counts.", metavar="N", panel=ATTACK_PANEL
    )
    against: Path | None = option(
        None,
        "Attack this network too, on the same images, and test the difference.",
        metavar="CHECKPOINT",
        panel=ATTACK_PANEL,
    )
    transfer: bool = option(
        False, "With --against: show each network the images made against the other.", panel=ATTACK_PANEL
    )
    control: bool = option(
        True,
        "Also measure random noise of the same size, and FGSM beside stronger attacks.",
        flags=("--control/--no-control",),
        panel=ATTACK_PANEL,
    )

    data: str | None = DATA.default(None)
    images: int | None = option(
        None,
        "Attack only N images, spread over the classes. Default: all.",
        short="-n",
        metavar="N",
        panel=DATA_PANEL,
        low=1,
        range="images, at least 1",
    )
    model: str | None = option(
        None,
        "For checkpoints that do not say: resnet20, timm:NAME, package.module:callable, ...",
        metavar="NAME",
        panel=DATA_PANEL,
    )
    against_model: str | None = option(
        None, "The same for --against. Default: --model.", metavar="NAME", panel=DATA_PANEL
    )
    weights: str | None = WEIGHTS.default(None)
    against_weights: str | None = option(
        None, "As --weights, of the checkpoint after --against.", metavar="NAME", panel=DATA_PANEL
    )
    mean: RGB | None = MEAN.default(None)
    std: RGB | None = STD.default(None)
    image_size: int | None = replace(
        IMAGE_SIZE, metavar="N", help="Pixels a side. Default: as in training, or the images' own."
    ).default(None)
    batch_size: int | None = replace(
        BATCH_SIZE, metavar="N", help="Images at a time. Default: what fits into memory."
    ).default(None)
    workers: int = WORKERS.default(2)

    device: str = DEVICE.default("auto")
    amp: bool = option(
        False,
        "Run the network in bfloat16: faster on a GPU, but gradients and accuracies are rounded.",
        panel=RUNTIME_PANEL,
    )
    seed: int = SEED.default(0)

    out: Path | None = OUT.default(None)
    fresh: bool = option(False, "Start over where an earlier result would be taken up.", panel=OUTPUT_PANEL)
    save_images: Path | None = option(
        None,
        "Save a few clean images, perturbations and adversarial images as PNG.",
        metavar="DIR",
        panel=OUTPUT_PANEL,
    )
    command: str = "starfire attack"

    @property
    def own_options(self) -> dict[str, Any]:
        """The values that replace the attack's own options, where they are not None."""
        return {name: getattr(self, name) for name in ("norm", "steps", "step_size", "restarts")}
