"""Sparse structure selection, SSS (Huang and Wang, 2018, arXiv 1707.01213)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.axes import Axes
from starfire_cli.pruning.branch_scales import BranchScales
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_fraction, check_not_negative


@METHODS.register("sss", "network")
@dataclass(frozen=True, kw_only=True)
class SparseStructureSelection:
    """A scale on each residual branch, under L1, which proximal gradients bring to exactly zero; such branches are dead
    when the era ends.

    A branch may come back until then. Scales are part of the branch's last BatchNorm in every checkpoint. There is no
    target. Published: ResNet50 on ImageNet 76.12 %, with 41/32/26 layers left 75.44/74.18/71.82 %.

    Args:
        strength: of the L1 term; the authors have 0.01 for ResNet50, and 0.005 and others.
        momentum: of the accelerated proximal gradient.
    """

    strength: float = 0.01
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_not_negative("strength", self.strength)
        check_fraction("momentum", self.momentum)

    def axes(self) -> Axes:
        return Axes(
            penalty=BranchScales(strength=self.strength, momentum=self.momentum), span=(0.0, 0.9), targeted=False
        )
