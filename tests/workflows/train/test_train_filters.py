"""Training with filters as units: which convolutions lose them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from starfire_cli.cli import main
from starfire_cli.formats.checkpoint.file import load
from tests.pruning.channels.selection.networks import TinyResNet

SPEC = "tests.pruning.channels.selection.networks:tiny_resnet"


class Untraceable(TinyResNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def test_l1_filter_leaves_convolutions_whose_outputs_are_added_to_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--epochs", "2", "--limit-train", "64", "--limit-val", "64", "-j", "0", "--fc", "dense", "--name", "a")
    assert main(["train", "--model", SPEC, "--method", "l1-filter", "--target", "0.5", *options]) == 0
    masks = load(tmp_path / "runs" / "a" / "last.pt").masks
    assert masks is not None
    alive = {key: int(mask.flatten(1).any(1).sum()) for key, mask in masks.items()}
    assert alive == {"blocks.0.conv1.weight": 4, "blocks.1.conv1.weight": 4, "last.weight": 6}
    assert "blocks.1.conv2 (its outputs are added to others)" in capsys.readouterr().err + _plan(capsys)


def _plan(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["train", "--model", SPEC, "--method", "l1-filter", "--target", "0.5", "--dry-run"]) == 0
    return capsys.readouterr().out


def test_a_network_that_cannot_be_followed_and_options_of_prune_mask(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--model", f"{__name__}:Untraceable", "--method", "l1-filter", "--dry-run"]) == 1
    assert "mao:grain=filter does without" in capsys.readouterr().err
    assert main(["train", "--model", SPEC, "--method", "l1-filter:stages=0.5/0.5", "--dry-run"]) == 2
    assert "l1-filter takes stages, skip and preset in prune-mask only" in capsys.readouterr().err
