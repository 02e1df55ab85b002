"""Evaluates a checkpoint's network, on the images that it was trained for or on others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli import runtime
from starfire_cli.data import DataInfo, DataOptions, Split, open_data, open_val, recognise
from starfire_cli.data.finding import find
from starfire_cli.data.splitting import parts
from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.models import Normalized
from starfire_cli.networks.evaluate import evaluate
from starfire_cli.records.prune import Measured
from starfire_cli.workflows.prune.request import TrialRequest
from starfire_cli.workflows.train.recipes import recipe_for

_FEW = 2000  # validation images, from which on a set has more training images than any batch


class Trial:
    """Data opened for one checkpoint's network. Raises BadOption, StarfireError where that is impossible."""

    def __init__(self, checkpoint: Checkpoint, request: TrialRequest) -> None:
        self.device = runtime.pick_device(request.device)
        self._request, self._recorded = request, checkpoint.meta.data
        self._options = DataOptions(
            batch_size=request.batch_size,
            eval_batch_size=request.batch_size,
            image_size=request.image_size,
            seed=request.seed,
            device=self.device,
            workers=request.workers,
        )
        self.info: DataInfo
        self.val: Split
        self.info, self.val = open_val(self._recorded.values, request.data, self._options)
        self.mean, self.std = request.mean or self.info.mean, request.std or self.info.std
        self.notes = list(self.info.notes)
        if not self._recorded.values and request.mean is None:
            shown = ",".join(f"{v:.3f}" for v in self.mean)
            self.notes.append(f"images are normalised by the data's own mean {shown}; --mean and --std give others")

    def model(self, net: nn.Module) -> nn.Module:
        """`net` on the device, taking pixels."""
        return Normalized(net, self.mean, self.std).to(self.device).eval()

    def as_meta(self) -> dict[str, Any]:
        """The metadata of these data for a checkpoint: with the mean and std in use, augmented as before."""
        augment = self._recorded.augment
        as_before = {} if augment is None else {"augment": augment}
        return {**self.info.as_meta(), **as_before, "mean": list(self.mean), "std": list(self.std)}

    def normalised_images(self) -> Tensor:
        """Some validation images as the network takes them, on the CPU, (N, 3, H, W)."""
        images = next(iter(self.val.batches(0)))[0][:32].cpu()
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std

    def measure(self, net: nn.Module) -> Measured:
        """Accuracy on the validation images. Raises StarfireError if the network has other classes."""
        self._check_classes(net)
        found = evaluate(self.model(net), self.val)
        assert found is not None, "nothing stops it"
        return Measured(top1=found.top1, top5=found.top5, loss=found.loss, images=found.images, data=self.info.spec)

    def training_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the training images, augmented as in training: the same ones at each call."""
        return self._train.batches(0)

    def calibration_batches(self, count: int) -> list[Tensor]:
        """The first `count` training images, or all if there are fewer, as the network takes them, on the CPU."""
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        batches: list[Tensor] = []
        for images, _ in self.training_batches():
            batches.append((images[:count].cpu() - mean) / std)
            count -= len(batches[-1])
            if not count:
                break
        return [batch for batch in batches if len(batch)]

    @cached_property
    def _train(self) -> Split:
        options = DataOptions(
            batch_size=self._options.batch_size,
            image_size=self.info.image_size,
            augment=self._recorded.augment or "auto",
            seed=self._options.seed,
            device=self.device,
            workers=self._options.workers,
            val_fraction=self.info.val_fraction or self._options.val_fraction,
            split_seed=self.info.split_seed,
        )
        return open_data(self.info.spec, options).train

    def fitting_batch(self) -> int | None:
        """The number of training images where it is less than a batch of the usual size; None where that fits."""
        if len(self.val) > _FEW:
            return None
        name, side = recognise(self.info.spec)
        usual = recipe_for(None, name, side)[1].batch_size
        options = replace(self._options, val_fraction=self.info.val_fraction or self._options.val_fraction)
        images = len(parts(find(self.info.spec, self.info.image_size), options)[0])
        return images if images < usual else None

    @torch.no_grad()
    def _check_classes(self, net: nn.Module) -> None:
        side = self.info.image_size
        logits = self.model(net)(torch.zeros(1, 3, side, side, device=self.device))
        if logits.shape[1] != len(self.info.classes):
            raise StarfireError(
                f"the network tells {logits.shape[1]} classes apart; the data {self.info.spec} have "
                f"{len(self.info.classes)}"
            )
