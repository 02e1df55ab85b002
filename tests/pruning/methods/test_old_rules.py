"""Every mask of today's methods equals to the bit what the rules before units and cuts gave (old_rules.py)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from starfire_cli.pruning import METHODS, Goal, Layer, Pruner, apply_cuts
from starfire_cli.pruning.schedule import Era
from tests.helpers import old_rules
from tests.helpers.methods_strategies import (
    DTYPES,
    Case,
    conv_cases,
    conv_layer,
    linear_cases,
    linear_layer,
    thresholds,
)

CONV = ["window", "ck", "intra", "inter"]
CONV_SPECS = [
    *CONV,
    "window:max_nonzero=2",
    "ck:depthwise=true",
    "intra:share=0.3,max_nonzero=3",
    "intra:share=0",
    "intra:share=1",
    "inter:order=window-ck,split=0.3",
]
LINEAR_SPECS = ["fine", "block", "two-tier", "block:n=1", "block:n=3", "two-tier:n=1", "two-tier:n=2,share=0.8"]
SPECS = pytest.mark.parametrize("spec", [*CONV_SPECS, *LINEAR_SPECS])
goals = st.builds(old_rules.Goal, target=thresholds, progress=st.sampled_from([0.0, 0.1, 0.35, 0.5, 0.8, 1.0]))


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "transposed":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    return x.to(memory_format=torch.channels_last) if layout == "channels_last" and x.ndim == 4 else x.contiguous()


layouts = st.sampled_from(["contiguous", "channels_last", "transposed"])


@SPECS
@given(data=st.data(), goal=goals, dtype=st.sampled_from(DTYPES), layout=layouts, ties=st.booleans())
def test_a_mask_is_what_it_was(
    spec: str, data: st.DataObject, goal: old_rules.Goal, dtype: torch.dtype, layout: str, ties: bool
) -> None:
    case: Case = data.draw(conv_cases() if spec in CONV_SPECS else linear_cases())
    weight = case.weight if ties else torch.randn(case.weight.shape, generator=torch.Generator().manual_seed(1))
    weight = laid_out(weight.to(dtype), layout)
    alive = torch.empty_like(weight, dtype=torch.bool).copy_(case.alive)
    before = old_rules.old_mask(old_rules.old_method(spec), case.layer, weight, alive, goal)
    budget = METHODS.build(spec).budget(case.layer, Goal(target=goal.target, progress=goal.progress))
    after = alive.clone() if budget is None else apply_cuts(weight, alive, budget, case.layer.groups)
    assert torch.equal(after, before)


ERA_SHAPES: list[Layer] = [
    conv_layer((24, 5, 3, 3)),
    conv_layer((70, 4, 1, 1)),
    conv_layer((12, 3, 5, 5), 3),
    conv_layer((8, 1, 3, 3), 8),
    conv_layer((9, 6, 1, 7)),
    conv_layer((4, 2, 2, 2), 2),
]


class Weights(nn.Module):
    """Bare weights under their layers' keys."""

    def __init__(self, layers: list[Layer], weights: list[Tensor]) -> None:
        super().__init__()
        self.all = nn.ParameterList([nn.Parameter(w) for w in weights])
        self.keys = [layer.key for layer in layers]

    def named_parameters(self, *args: object, **options: object) -> list[tuple[str, nn.Parameter]]:  # type: ignore[override]
        return list(zip(self.keys, self.all, strict=True))


@pytest.mark.parametrize(
    ("kernels", "layout"), [("torch", "contiguous"), ("torch", "channels_last"), ("numba", "channels_last")]
)
@SPECS
def test_an_era_of_many_steps_is_what_it_was(spec: str, kernels: str, layout: str) -> None:
    """Through the pruner, which looks only where a budget changed; weights move, some by coarse steps full of ties."""
    pytest.importorskip("numba")
    draw, steps = torch.Generator().manual_seed(5), 20
    shapes = [layer.shape for layer in ERA_SHAPES] if spec in CONV_SPECS else [(13, 21), (40, 30), (5, 3)]
    groups = [layer.groups for layer in ERA_SHAPES] if spec in CONV_SPECS else [1, 1, 1]
    layers = []
    for number, (shape, group) in enumerate(zip(shapes, groups, strict=True)):
        like = linear_layer(shape) if len(shape) == 2 else conv_layer(shape, group)
        layers.append(Layer(name=f"{number}", key=f"{number}.weight", kind=like.kind, shape=shape, groups=group))
    model = Weights(layers, [laid_out(torch.randn(shape, generator=draw), layout) for shape in shapes])
    method, old, dense = METHODS.build(spec), old_rules.old_method(spec), METHODS.build("dense")
    conv, linear = (method, dense) if spec in CONV_SPECS else (dense, method)
    era = Era(first_step=0, last_step=steps, ramp="cubic")
    pruner = Pruner(model, layers, conv=conv, linear=linear, target=0.8, era=era, kernels=kernels)
    masks = [torch.ones_like(weight, dtype=torch.bool) for weight in model.all]
    for step in range(1, steps + 1):
        for number, weight in enumerate(model.all):
            noise = 0.3 * torch.randn(weight.shape, generator=draw)
            noise = noise.mul(4).round().div(4) if (step + number) % 2 else noise
            weight.data.add_(noise).mul_(masks[number])
        for number, layer in enumerate(layers):
            goal = old_rules.Goal(target=0.8, progress=era.progress(step))
            masks[number] = masks[number] & old_rules.old_mask(old, layer, model.all[number], masks[number], goal)
        pruner.after_step(step)
        for mask, layer, weight in zip(masks, layers, model.all, strict=True):
            assert torch.equal(pruner.masks.get(layer.key, torch.ones_like(mask)), mask), (step, layer)
            assert not weight[~mask].any()
    assert pruner.zeros == {
        layer.key: int((~m).sum()) for layer, m in zip(layers, masks, strict=True) if layer in pruner.layers
    }
