"""Loading shrunk networks again, and what shrinking refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from starfire_cli.errors import Mismatch, StarfireError
from starfire_cli.models import build_model
from starfire_cli.pruning.channels.recipe import apply_shrink, compose_recipes, shrink_masks
from starfire_cli.pruning.channels.shrink import shrink
from tests.helpers.dead_channels import chain, difference, masked, settle, thin_out


def test_shrinking_twice_is_one_recipe() -> None:
    torch.manual_seed(0)
    full, again = (settle(build_model("mobilenet_v2", num_classes=4)) for _ in range(2))
    first = shrink(full, thin_out(full), example=torch.zeros(1, 3, 32, 32))
    more = masked(first.model, {n: [0] for n, m in first.model.named_modules() if isinstance(m, nn.Conv2d)})
    second = shrink(first.model, more, example=torch.zeros(1, 3, 32, 32))
    assert second.parameters[1] < second.parameters[0] == first.parameters[1]
    recipe = compose_recipes(first.recipe, second.recipe)
    apply_shrink(again, recipe)
    again.load_state_dict(second.model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), second.model(x))
    masks = {"features.0.0.weight": torch.rand(32, 3, 3, 3) > 0.5}
    in_one, in_two = shrink_masks(masks, recipe), shrink_masks(shrink_masks(masks, first.recipe), second.recipe)
    assert torch.equal(in_one["features.0.0.weight"], in_two["features.0.0.weight"])


@pytest.mark.parametrize(
    "recipe",
    [
        {"9": {"out": [0]}},
        {"2": {"out": [0]}},
        {"0": {"out": []}},
        {"0": {"out": [0, 6]}},
        {"0": {"out": [1, 0]}},
        {"0": {"out": [0, 0]}},
        {"0": {"out": [True]}},
        {"0": {"out": "all"}},
        {"0": {"sideways": [0]}},
        {"0": {"bias": True}},
        {"1": {"in": [0]}},
        {"7": {"in": [-1]}},
    ],
)
def test_recipes_that_do_not_fit(recipe: dict[str, dict[str, Any]]) -> None:
    model = chain()
    with pytest.raises(StarfireError, match="the recipe"):
        apply_shrink(model, {"3": {"out": [0]}, **recipe})
    assert model[3].weight.shape == (5, 6, 3, 3)


def test_the_model_given_is_not_touched_and_modes_carry_over() -> None:
    model = settle(chain()).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    masks = masked(model, {"0": [1]})
    state = copy.deepcopy(model.state_dict())
    report = shrink(model, masks, example=torch.zeros(1, 3, 12, 12))
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert [m.training for m in report.model] == [m.training for m in model] == [i != 1 for i in range(8)]
    assert [p.requires_grad for p in report.model.parameters()] == [p.requires_grad for p in model.parameters()]


def test_declined_and_refused() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.sum() > 0 else x

    model = Branching()
    report = shrink(model, masked(model, {"conv": [1]}))
    assert report.declined is not None
    assert report.declined.startswith("torch.fx cannot trace the model")
    assert report.parameters == (16, 16)
    with pytest.raises(Mismatch, match="12 pruned weights are not zero"):
        shrink(Branching(), {"conv.weight": torch.zeros(4, 3, 1, 1, dtype=torch.bool)})


def test_an_alias_that_the_graph_does_not_show_pins_its_channels() -> None:
    """The graph cannot see that the view writes to the tensor behind it; nothing is removed there."""

    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y.select(1, 0).add_(x[:, 0])
            return self.fc(F.relu(y))

    model = Aliased()
    masks = masked(model, {"conv": [0, 3]})
    report = shrink(model, masks, example=torch.zeros(1, 3, 8, 8))
    assert report.recipe == {}
    assert difference(model, report.model, 8) == 0


def test_the_outputs_are_compared_before_anything_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rule about padding switched off, a border pixel differs."""
    model = settle(chain(padding=1))
    model[1].bias.data[1] = 4.0
    masks = masked(model, {"0": [1]})
    monkeypatch.setattr("starfire_cli.pruning.channels.removable.keeps_constants", lambda _conv: True)
    with pytest.raises(StarfireError, match="the shrunk network's outputs differ by"):
        shrink(model, masks, example=torch.zeros(1, 3, 8, 8))
