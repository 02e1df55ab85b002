"""Trained codebooks: gradients of tied parameters, exact copies at every step, resuming to the bit, several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.packed.rounding import share_state
from starfire_cli.formats.run import Run
from starfire_cli.pruning.codebook import Codebook, share
from starfire_cli.pruning.masks import digest
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.settings import fill, pruning_of
from starfire_cli.workflows.train.shared_values import SharedValues
from tests.helpers.together import run
from tests.tiny import plain

SPEC = "codebook:bits=3"


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_it_is_the_gradient_descent_of_tied_parameters(optimizer: str, channels_last: bool) -> None:
    """Against autograd of a network whose weights are read from the shared values, in float64."""
    torch.manual_seed(0)
    net = plain(10).double()
    if channels_last:
        net.to(memory_format=torch.channels_last)
    weights = {key: p for key, p in net.named_parameters() if key in ("conv1.weight", "conv2.weight", "fc.weight")}
    masks = {key: torch.rand(weights[key].shape) < 0.5 for key in ("conv2.weight", "fc.weight")}
    for key, mask in masks.items():
        weights[key].data.masked_fill_(~mask, 0)
    codebook, alive = Codebook(bits=2), {key: masks.get(key, torch.ones(w.shape).bool()) for key, w in weights.items()}
    tied = {key: share(w.detach().contiguous(), alive[key], codebook, key) for key, w in weights.items()}
    values = {key: nn.Parameter(values.clone()) for key, (values, _) in tied.items()}
    rest = {key: nn.Parameter(p.detach().clone()) for key, p in net.named_parameters() if key not in weights}

    def build(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if optimizer == "adam":
            return torch.optim.Adam(parameters, lr=1e-3)
        return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-2)

    literal, ours = build([*values.values(), *rest.values()]), build(list(net.parameters()))
    shared = SharedValues(ours, weights, masks, codebook)
    assert sum(p.numel() for p in shared.parameters) == sum(p.numel() for p in [*values.values(), *rest.values()])
    for step in range(4):
        images, labels = torch.rand(6, 3, 16, 16, dtype=torch.float64), torch.randint(10, (6,))
        read = {key: torch.where(alive[key], values[key][tied[key].numbers.int()], 0.0) for key in weights}
        cross_entropy(functional_call(net, rest | read, images), labels).backward()
        norm = clip_grad_norm_([*values.values(), *rest.values()], 0.5)
        literal.step()
        literal.zero_grad()
        cross_entropy(net(images), labels).backward()
        shared.gather()
        assert all(weight.grad is None for weight in weights.values())
        torch.testing.assert_close(clip_grad_norm_(shared.parameters, 0.5), norm)
        ours.step()
        ours.zero_grad()
        shared.scatter()
        for key, weight in weights.items():
            expected = torch.where(alive[key], values[key][tied[key].numbers.int()], 0.0)
            torch.testing.assert_close(weight, expected, rtol=0, atol=1e-12)
            assert not weight[~alive[key]].any() and not weight[~alive[key]].signbit().any()
            assert len(weight[alive[key]].unique()) == 4, step
        for key, parameter in rest.items():
            torch.testing.assert_close(net.get_parameter(key), parameter, rtol=0, atol=1e-12)


def test_what_is_saved_gives_the_same_and_what_does_not_fit_is_refused() -> None:
    torch.manual_seed(0)
    net = plain(10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = {"conv2.weight": net.conv2.weight, "point.weight": net.point.weight, "fc.weight": net.fc.weight}
    masks = {"fc.weight": torch.rand(net.fc.weight.shape) < 0.3, "point.weight": net.point.weight > 9}  # none is
    for key, mask in masks.items():
        weights[key].data.masked_fill_(~mask, 0)
    new = lambda saved=None: SharedValues(torch.optim.SGD(net.parameters(), lr=1), weights, masks, Codebook(), saved)  # noqa: E731
    first = new()
    before, saved = {key: w.detach().clone() for key, w in weights.items()}, first.state_dict()
    assert (
        saved.keys() == {"conv2.weight", "fc.weight"}
        and saved["fc.weight"].dtype is torch.uint8
        and len(saved["fc.weight"]) == int(masks["fc.weight"].sum())
    )
    again = new(saved)
    assert all(torch.equal(w, before[key]) for key, w in weights.items())
    assert all(torch.equal(a, b) for a, b in zip(saved.values(), again.state_dict().values(), strict=True))
    numbers = saved["conv2.weight"]
    for bad, says in (
        (numbers[:-1], "numbers of the shared values of conv2.weight are not those of its live weights"),
        (numbers.int(), "numbers of the shared values of conv2.weight are not those of its live weights"),
        (numbers.flip(0), "weights of conv2.weight that share a value differ"),
    ):
        with pytest.raises(ValueError, match=says):
            new(saved | {"conv2.weight": bad})
    with pytest.raises(KeyError):
        new({"fc.weight": saved["fc.weight"]})


def last(out: Path) -> Checkpoint:
    (folder,) = out.iterdir()
    return load(Run(folder).last, training=True)


def few(checkpoint: Checkpoint, state: dict[str, Tensor] | None = None) -> bool:
    """Whether sharing once more changes no bit."""
    state, masks = checkpoint.state if state is None else state, checkpoint.masks or {}
    again, cost = share_state(state, masks, Codebook(bits=3))
    return cost.max_error == 0 and all(torch.equal(value, again[key]) for key, value in state.items())


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned")
    run(out, epochs=2, era="0.2:1.5")
    (folder,) = out.iterdir()
    return folder / "last.pt"


def test_a_run_ends_with_few_values_the_masks_it_got_and_a_smaller_loss(tmp_path: Path, pruned: Path) -> None:
    run(tmp_path, init=pruned, values=SPEC, lr=0.002, ema=0.9, norm_weight_decay=0.0, clip_grad=1.0, accumulate=2)
    found, before = last(tmp_path), load(pruned)
    assert digest(found.masks or {}) == digest(before.masks or {}) and found.training is not None
    assert few(found) and few(found, found.training["raw"])
    assert not all(torch.equal(found.state[key], value) for key, value in before.state.items())
    kinds = [t for s in found.training["optimizer"]["state"].values() for t in s.values() if isinstance(t, Tensor)]
    assert max(t.numel() for t in kinds) <= 24  # 8 values a layer, and biases
    rows = Run(next(tmp_path.iterdir())).read_metrics()
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert found.meta.request is not None and found.meta.request["values"] == SPEC
    assert (found.meta.request["method"], found.meta.request["target"]) == ("dense", 0.6)
    assert "values" not in (before.meta.request or {})


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_stopping_and_resuming_changes_no_bit(tmp_path: Path, pruned: Path, optimizer: str) -> None:
    more: dict[str, Any] = {"init": pruned, "values": SPEC, "lr": 1e-3, "ema": 0.9, "optimizer": optimizer}
    run(tmp_path / "whole", **more)
    run(tmp_path / "parts", **more, max_steps=8)
    run(tmp_path / "parts", resume=Path("auto"))
    whole, parts = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert whole.training is not None and parts.training is not None
    assert all(torch.equal(value, parts.state[key]) for key, value in whole.state.items()) and few(parts)
    for key, numbers in whole.training["shared_values"].items():
        assert torch.equal(numbers, parts.training["shared_values"][key])


def test_a_resumed_run_whose_weights_do_not_share_is_damaged(tmp_path: Path, pruned: Path) -> None:
    run(tmp_path, init=pruned, values=SPEC, lr=1e-3, max_steps=2)
    path = Run(next(tmp_path.iterdir())).last
    content = torch.load(path, weights_only=True)
    del content["shared_values"]["fc.weight"]
    torch.save(content, path)
    with pytest.raises(StarfireError, match=r"is damaged: its training state does not fit: 'fc.weight' is missing"):
        run(tmp_path, resume=path)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            {"method": "ck"},
            "--values codebook:bits=3 is for weights that stay, and --method ck --fc fine prunes to 0.6",
        ),
        ({"target": 0.5}, "--method window --fc fine prunes to 0.5; prune first, then train --init PRUNED"),
        ({"method": "set", "target": 0.8}, "--method set prunes; prune first, then train --init PRUNED"),
        ({"method": "dense", "fc": "block"}, "--method dense --fc block prunes to 0.6"),
        ({"compact_state": True}, "--compact-state does not go with --values codebook:bits=3"),
        ({"values": "codebook:bits=9"}, "bits=9 is out of range: 1 to 8"),
        ({"values": "kmeans:bits=9"}, "unknown --values 'kmeans:bits=9'; there are: codebook."),
    ],
)
def test_what_does_not_go_together_is_refused(more: dict[str, Any], says: str) -> None:
    with pytest.raises(BadOption) as caught:
        pruning_of(fill(TrainRequest(**{"values": SPEC} | more), "digits", None))
    assert says in str(caught.value)


def test_the_recipes_learning_rate_is_for_single_weights() -> None:
    free, shared, adam, own = (
        fill(TrainRequest(**more), "digits", None).lr
        for more in ({}, {"values": SPEC}, {"values": SPEC, "optimizer": "adam"}, {"values": SPEC, "lr": 0.1})
    )
    assert free == adam == own == 0.1 and shared == pytest.approx(0.001)
    assert fill(TrainRequest(values=SPEC), "digits", None).method == "dense"
