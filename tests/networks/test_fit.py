"""Weights from files are loaded by modules that want to know which version of their code wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from starfire_cli.api import load_model
from starfire_cli.cli import main
from starfire_cli.formats.checkpoint.file import save
from tests.tiny import Net


class Versioned(Net):
    """As torchvision's MNASNet: it loads nothing that tells no version."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        if metadata.get("version") != self._version:
            raise ValueError(f"version should be set to 2 instead of {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def versioned(num_classes: int) -> nn.Module:
    return Versioned(num_classes)


SPEC = "tests.networks.test_fit:versioned"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".packed.safetensors"])
@torch.no_grad()
def test_modules_that_want_a_version(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    net, path = Versioned(3).eval(), tmp_path / f"net{suffix}"
    meta = {"model": {"spec": SPEC, "num_classes": 3, "image_size": 8}}
    masks = {"conv2.weight": torch.ones_like(net.conv2.weight, dtype=torch.bool)}
    save(tmp_path / "net.pt", state=net.state_dict(), masks=masks, meta=meta)
    if suffix != ".pt":
        to = [] if "packed" in suffix else ["--to", "safetensors"]
        assert main(["compress", str(tmp_path / "net.pt"), *to, "--out", str(path)]) == 0
    images = torch.rand(2, 3, 8, 8)
    model = load_model(path, model=SPEC, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.allclose(model(images), net(images), rtol=1e-6, atol=1e-6)
