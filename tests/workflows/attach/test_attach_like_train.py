"""A loop of ten lines with `starfire.attach` gives the masks and weights of `starfire train`, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

import starfire_cli as starfire
from starfire_cli import runtime
from starfire_cli.data import DataOptions, open_data
from starfire_cli.models import Normalized
from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.request import TrainRequest
from tests.tiny import Net

pytestmark = pytest.mark.filterwarnings("ignore:target=.* (meets none|comes to)")

EPOCHS, BATCH = 3, 64
RUN = {"model": "tests.tiny:net", "limit_train": 192, "limit_val": 100, "device": "cpu", "epochs": EPOCHS}
RUN |= {"batch_size": BATCH, "lr": 0.05, "lr_schedule": "constant", "warmup": 0, "momentum": 0.9, "nesterov": False}
RUN |= {"weight_decay": 1e-3, "optimizer": "sgd", "label_smoothing": 0.0, "channels_last": False, "augment": "none"}


def of_train(tmp_path: Path, **options) -> dict[str, torch.Tensor]:
    records = list(train(TrainRequest(**RUN, **options, out=tmp_path)))
    return torch.load(Path(records[-1].run) / "last.pt", weights_only=True)


def of_attach(tmp_path: Path, *, clip: float | None = None, accumulate: int = 1, ema: float | None = None, **options):
    """As somebody would write it who knows nothing of `starfire train` but its seeds."""
    runtime.seed_everything(0)
    data = open_data(
        "digits", DataOptions(batch_size=BATCH, augment="none", limit_train=192, limit_val=100, image_size=16)
    )
    net = Net(10)
    model = Normalized(net, data.info.mean, data.info.std)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, fused=True)
    average = None
    if ema is not None:
        decay = torch.optim.swa_utils.get_ema_multi_avg_fn(ema)
        average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=decay, use_buffers=True)
    steps = data.train.steps
    images, labels = next(iter(data.train.batches(0)))
    first = lambda: cross_entropy(model(images), labels, reduction="sum") / len(labels)  # noqa: E731
    pruner = starfire.attach(net, optimizer, total_steps=steps * EPOCHS, loss=first, ema=average, **options)
    net.train()
    for epoch in range(EPOCHS):
        for images, labels in data.train.batches(epoch):
            optimizer.zero_grad()
            for part, answers in zip(images.chunk(accumulate), labels.chunk(accumulate), strict=True):
                (cross_entropy(model(part), answers, reduction="sum") / len(labels)).backward()
            if clip is not None:
                if pruner.core.adds_gradients:
                    pruner.after_backward()  # so that the penalty's gradient is clipped, too
                clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            if average is not None:
                average.update_parameters(net)
    starfire.save(tmp_path / "own.pt", pruner)
    return torch.load(tmp_path / "own.pt", weights_only=True)


def assert_same(one, other) -> None:
    assert one["masks"].keys() == other["masks"].keys()
    assert one["masks_digest"] == other["masks_digest"]
    assert one["model"].keys() == other["model"].keys()
    for key, value in one["model"].items():
        assert torch.equal(value, other["model"][key]), key


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("window", {}),
        ("ck", {"clip_grad": 0.3}),
        ("intra", {"ramp": "cosine", "mask_every": 2}),
        ("gmp", {"accumulate": 2}),
        ("rigl:every=2", {"keep_dense": ("conv1",)}),
        ("set:every=2", {}),
        pytest.param("snfs:every=2", {}, marks=pytest.mark.slow),
        pytest.param("snip", {}, marks=pytest.mark.slow),
        ("narang:every=2", {}),
        ("ssl:strength=0.05", {"clip_grad": 0.3}),
        pytest.param("deepr", {}, marks=pytest.mark.slow),
        ("window:max_nonzero=2", {"ema": 0.9, "ramp": "cubic", "mask_every": 2}),
    ],
)
def test_as_starfire_train(tmp_path, method, more):
    has_era = method != "snip"
    there = of_train(tmp_path, method=method, target=0.6, **more, **({"era": "0.6:2"} if has_era else {}))
    own = {"clip_grad": "clip", "accumulate": "accumulate", "ema": "ema"}
    more = {own.get(name, name): value for name, value in more.items()}
    here = of_attach(tmp_path, method=method, target=0.6, **more, **({"era": (0.2, 2 / 3)} if has_era else {}))
    assert_same(there, here)
    if "ema" in more:
        assert all(torch.equal(value, here["raw"][key]) for key, value in there["raw"].items())
