"""Evaluates a model on a split: loss and top-1/top-5 accuracy, every image counted exactly once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from starfire_cli.attacks import Adversary
from starfire_cli.data import Split
from starfire_cli.distributed.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The result of an evaluation: mean cross-entropy, and top-1 and top-5 accuracy as fractions of the images.

    `robust_top1` is the fraction right after an attack, if one was asked for.
    """

    loss: float
    top1: float
    top5: float
    images: int
    robust_top1: float | None = None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    *,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    adversary: Adversary | None = None,
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks | None = None,
) -> Accuracy | None:
    """Run `model` over all of `split` in eval mode and put it back as it was; None if `stop()` said so on the way.

    With fewer than five classes, top-5 counts all of them. Loss and hits are summed on the device, and then over all
    `ranks`, each of which has a share of `split`.
    """
    ranks = ranks or Ranks()
    was_training = model.training
    model.eval()
    exact = torch.float32 if next(model.parameters()).device.type == "mps" else torch.float64  # mps has no float64
    sums: torch.Tensor | None = None
    images_seen = 0
    try:
        for number, (images, labels) in enumerate(split.batches(0)):
            if stop():
                return None
            if not len(labels):
                continue
            with autocast():
                logits = model(images)
            logits = logits.float()
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            loss = cross_entropy(logits, labels, reduction="sum").to(exact)
            withstood = torch.zeros((), dtype=exact, device=loss.device)
            if adversary is not None:
                places = torch.arange(len(labels), device=labels.device) * ranks.count + ranks.rank
                with torch.enable_grad():
                    attacked = adversary.perturb(model, images, labels, step=number, places_N=places)
                withstood = (model(attacked).argmax(1) == labels).sum().to(exact)
            batch = torch.stack([loss, ranked[:, 0].sum().to(exact), ranked.sum().to(exact), withstood])
            sums = batch if sums is None else sums + batch
            images_seen += len(labels)
    finally:
        model.train(was_training)
    *totals, images_in_all = ranks.totals(*([0.0] * 4 if sums is None else sums.tolist()), images_seen)
    assert images_in_all, "an empty split is refused when data is opened"
    mean_loss, top1, top5, robust = (total / images_in_all for total in totals)
    robust_top1 = None if adversary is None else robust
    return Accuracy(loss=mean_loss, top1=top1, top5=top5, images=int(images_in_all), robust_top1=robust_top1)
