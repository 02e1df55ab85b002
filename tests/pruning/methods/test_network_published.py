"""Updates of RigL and SET on fixed tensors against what the authors' public code makes of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from starfire_cli.pruning import METHODS, Pruner, layers_of_model
from starfire_cli.pruning.schedule import Era

# A (5, 8) matrix, its gradient and its mask, of no equal magnitudes. Expected masks computed once by the rule of
# google-research/rigl (rigl/sparse_optimizers_base.py, `_get_update_op`, its noise left out); jaxpruner's
# (jaxpruner/algorithms/sparse_trainers.py, `_update_masks`) gives the same ones at 0.3, and at 0.5 keeps round(8.5) = 8
# where RigL and we keep 17 - int(8.5) = 9.
# fmt: off
WEIGHT = [5, 0, 29, 21, 0, 11, 0, 33, 0, 0, -15, 0, 28, 0, 0, -25, 0, 0, 14, -18, 0, 0, 0, 0, 0, 0, 0, -34, 16, -30,
          0, 17, 0, 0, 0, 0, 32, 35, -22, 0]
GRADIENT = [7, 26, 20, 12, 1, -3, -32, 28, -23, 35, 33, -9, 40, -4, -38, -36, 17, 6, 24, 16, 5, -18, -34, 11, -2, -30,
            -31, 29, -13, 15, 37, 21, -25, 27, 14, -22, -19, -39, 8, -10]
# fmt: on
MASK = "1011010100101001001100000001110100001110"
KEPT = {0.3: "0011000100001001000100000001010100001110", 0.5: "0010000100001001000000000001010000001110"}
UPDATED = {0.3: "0011000101101011000100100001011100001110", 0.5: "0010001101101011000000100111011000001110"}


def bits(text: str) -> torch.Tensor:
    return torch.tensor([character == "1" for character in text]).reshape(5, 8)


def prepared(spec: str) -> tuple[nn.Linear, Pruner]:
    """Before an evaluation early in a very long era, where nothing is annealed yet."""
    model = nn.Linear(8, 5, bias=False)
    model.weight.data = torch.tensor(WEIGHT, dtype=torch.float32).reshape(5, 8)
    layers, _ = layers_of_model(model)
    era, masks = Era(first_step=0, last_step=10**7), {"weight": bits(MASK)}
    method = METHODS.build(spec)
    pruner = Pruner(model, layers, conv=method, linear=method, target=0.575, era=era, masks=masks, kernels="torch")
    model.weight.grad = torch.tensor(GRADIENT, dtype=torch.float32).reshape(5, 8)
    return model, pruner


@pytest.mark.parametrize("fraction", UPDATED)
def test_rigl(fraction: float) -> None:
    model, pruner = prepared(f"rigl:fraction={fraction + 1e-9},every=1")
    assert not pruner.after_backward()
    assert pruner.after_step(1)
    assert torch.equal(pruner.masks["weight"], bits(UPDATED[fraction]))
    was_and_is = bits(MASK) & bits(UPDATED[fraction])
    expected = torch.tensor(WEIGHT, dtype=torch.float32).reshape(5, 8) * was_and_is
    assert torch.equal(model.weight.detach(), expected)  # what went and came back at once kept its value


@pytest.mark.parametrize("fraction", KEPT)
def test_set(fraction: float) -> None:
    """Which come back is up to chance; the others are those that RigL keeps."""
    model, pruner = prepared(f"set:fraction={fraction},by_sign=false,every=1")
    assert pruner.after_backward()
    assert pruner.after_step(1)
    mask, kept = pruner.masks["weight"], bits(KEPT[fraction])
    assert mask.sum() == bits(MASK).sum()
    assert torch.equal(mask & kept, kept)
    expected = torch.tensor(WEIGHT, dtype=torch.float32).reshape(5, 8) * kept
    assert torch.equal(model.weight.detach(), expected)
