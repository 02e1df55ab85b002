"""Layers and networks that elimination leaves alone or refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from starfire_cli.errors import Mismatch, StarfireError
from starfire_cli.pruning.channels.elimination import eliminate
from starfire_cli.pruning.channels.graph import CHANNELWISE, FUNCTIONS
from tests.helpers.dead_channels import eliminated, masked, plain_net


def test_only_the_layers_asked_for() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Linear(6, 3))
    masks = masked(model, {"1": [0]})
    report = eliminate(model, masks, example=torch.zeros(1, 3, 2, 2), only=["1"])
    assert report.weights == 0
    assert report.layers[1].kept == {"not asked for": 6}


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.b(F.relu(self.a(x)))))


def test_a_layer_used_twice_is_left_alone() -> None:
    model = Shared()
    masks = masked(model, {"a": [0, 1]})
    state = copy.deepcopy(model.state_dict())
    report = eliminate(model, masks, example=torch.zeros(1, 4))
    assert report.layers[1].kept == {"is used 2 times": 4}
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[4].weight = tied[2].weight
    report = eliminate(tied, masked(tied, {"0": [1]}), example=torch.zeros(1, 4))
    assert [list(r.kept) for r in report.layers[1:]] == [["shares its weight with another layer"]] * 2
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)) if x.sum() > 0 else self.fc(-x.flatten(1))


def test_what_torch_fx_cannot_trace_is_declined() -> None:
    model = Branching()
    report = eliminate(model, {}, example=torch.zeros(1, 3, 2, 2))
    assert report.declined is not None
    assert report.declined.startswith("torch.fx cannot trace the model: TraceError")
    assert "\n" not in report.declined
    assert report.layers == ()


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.conv(x)))  # drops in eval mode too
        return self.fc(x.mean((2, 3)))


def test_a_model_that_is_random_in_eval_mode_is_left_alone() -> None:
    model = Noisy()
    masks = masked(model, {"conv": [0]})
    model.conv.bias.data[:] = 1
    report = eliminate(model, masks, example=torch.zeros(1, 3, 4, 4))
    assert report.layers[0].columns == ()
    assert report.layers[0].notes == ("dropout is not followed",)


def test_an_alias_that_the_graph_does_not_show_cannot_do_harm() -> None:
    """An unlisted view, written to in place, changes the tensor behind it. Outputs are compared: nothing is done."""

    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y.narrow(1, 0, 2).add_(x[:, :2])
            return self.fc(y.mean((2, 3)))

    model = Aliased()
    masks = masked(model, {"conv": [0, 3]})
    before, report = eliminated(model, masks)
    assert report.declined is not None
    assert "outputs would change" in report.declined
    assert torch.equal(before.fc.weight, model.fc.weight)
    assert report.masks.keys() == masks.keys()


def test_masks_that_do_not_fit() -> None:
    model = plain_net()
    with pytest.raises(Mismatch, match=r"8\.weight: 20 pruned weights are not zero"):
        eliminate(model, {"8.weight": torch.zeros(4, 5, dtype=torch.bool)})
    with pytest.raises(StarfireError, match=r"'9\.weight' has shape .*no such parameter"):
        eliminate(model, {"9.weight": torch.ones(4, 5, dtype=torch.bool)})
    with pytest.raises(StarfireError, match="a parameter of shape"):
        eliminate(model, {"8.weight": torch.ones(4, 6, dtype=torch.bool)})
    with pytest.raises(StarfireError, match="does not take an image of shape"):
        eliminate(model, {}, example=torch.zeros(1, 2, 9, 9))


def test_sizes_are_tried_when_no_example_is_given() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 26 * 26, 3))
    report = eliminate(model, masked(model, {"0": [1]}))
    assert report.layers[0].columns == tuple(range(676, 1352))
    with pytest.raises(StarfireError, match="takes no square image"):
        eliminate(nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), {})


def test_modes_are_as_before() -> None:
    model = plain_net().train()
    model[4].eval()
    eliminate(model, masked(model, {"3": [0]}), example=torch.zeros(1, 3, 9, 9))
    assert [m.training for m in model] == [i != 4 for i in range(9)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_goes_through_everything_that_is_followed(dtype: torch.dtype) -> None:
    """The analysis marks "depends on the image" by NaN: no listed operation may make a number of it."""
    x = torch.full((1, 4, 6, 6), float("nan"), dtype=dtype)
    for kind in CHANNELWISE:
        module = kind(2) if "Pool" in kind.__name__ else kind()
        assert module.eval()(x.clone()).isnan().all(), kind
    for function, role in FUNCTIONS.items():
        if role == "channelwise":
            pools = (F.max_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d)
            out = function(x.clone(), 2) if function in pools else function(x.clone())
            assert out.isnan().all(), function
