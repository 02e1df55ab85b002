"""Measures the robust accuracy of a network in memory, on the images of anybody's loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli.attacks import ATTACKS
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.models import Normalized
from starfire_cli.own_code import one_line
from starfire_cli.records.attack import AttackProgress, RobustAccuracy
from starfire_cli.text import some
from starfire_cli.workflows.attack import verdict
from starfire_cli.workflows.attack.cached import controls_of, spec_of
from starfire_cli.workflows.attack.choice import choose_attack
from starfire_cli.workflows.attack.sweep import ATTACK, CLEAN, Sweep, Tallies

_SLACK = 1e-5  # by which rounding puts a pixel outside of [0, 1] that was normalised and is not any more
Channels = tuple[float, ...]  # one number a channel, or one for all


def attack_network(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    attack: str,
    eps: str | None,
    options: dict[str, Any],
    mean: Channels | None,
    std: Channels | None,
    control: bool,
    seed: int,
) -> Iterator[AttackProgress | RobustAccuracy]:
    """See `starfire.attack`: yields progress, and at last the result. Raises BadOption and StarfireError."""
    if (mean is None) != (std is None):
        raise BadOption("mean and std go together: both are of the loader's images, or neither")
    chosen, sizes = choose_attack(attack, eps, options)
    network: nn.Module = model
    training = model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if mean is not None and std is not None:
        network = Normalized(model, mean, std).to(device)
    split = LoaderSplit(loader, device, mean, std)
    controls = controls_of(chosen) if control else ()
    tallies: Tallies = {}
    try:
        network, split.classes = with_plain_logits(network.eval(), split.first)
    except BaseException:
        model.train(training)
        raise
    sweep = Sweep(
        model=network,
        split=split,
        attacks={ATTACK: chosen, **{name: ATTACKS.build(f"{name}:norm={chosen.norm}") for name in controls}},
        sizes=tuple(size.eps for size in sizes if size.eps),
        seed=seed,
        loaded=split.batch,
        chunk=split.batch,
        autocast=nullcontext,
        other=None,
        tallies=tallies,
    )
    total = len(sweep.wanted()) * len(split)
    try:
        for done in sweep.run():
            yield AttackProgress(title=type(model).__name__, done=done, total=total)
    finally:
        model.train(training)
    sweep.settle()
    clean = tallies[CLEAN][0.0]
    yield RobustAccuracy(
        attack=spec_of(chosen),
        norm=chosen.norm,
        images=clean.images,
        points=verdict.points(tallies, ATTACK, sizes),
        controls={name: verdict.points(tallies, name, sizes) for name in controls},
        warnings=verdict.masking_signs(tallies, sizes, spec_of(chosen), controls),
        notes=tuple(sweep.notes),
    )


def with_plain_logits(network: nn.Module, images: Tensor) -> tuple[nn.Module, int]:
    """(a network whose output is a tensor of logits, (N, K); K), found out with one image.

    Raises BadOption where the output is neither that nor something with `logits`, as in transformers.
    """
    try:
        with torch.no_grad():
            found = network(images[:1])
    except RuntimeError as error:
        raise BadOption(
            f"the model does not take the loader's images, {tuple(images.shape[1:])} each: {one_line(error)}"
        ) from None
    if not isinstance(found, Tensor) and isinstance(_logits(found), Tensor):
        network, found = LogitsOf(network), _logits(found)
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise BadOption(
            f"the model returns {_shown(found)}; a tensor of logits, (N, classes), works, or something that has such "
            "`logits`: wrap the model in a module that returns them"
        )
    return network, found.shape[1]


class LogitsOf(nn.Module):
    """A network that returns the `logits` of another's output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        """Logits, (N, K), of images (N, C, H, W)."""
        return _logits(self.network(images))


def _logits(found: Any) -> Any:
    return found.get("logits") if isinstance(found, Mapping) else getattr(found, "logits", None)


def _shown(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)} for one image"
    keys = f" with {some(list(map(str, found)))}" if isinstance(found, Mapping) else ""
    return f"a {type(found).__name__}{keys}"


class LoaderSplit:
    """A loader of (images, labels) as a part of a data set, images in [0, 1] on a device.

    Args:
        loader: passed over once; its batches begin with images (N, C, H, W) and labels (N,).
        device: where batches are wanted.
        mean: with which its images are normalised, if they are.
        std: likewise.

    Raises BadOption for other batches, and for images outside of [0, 1].
    """

    def __init__(
        self, loader: Iterable[Any], device: torch.device, mean: Channels | None, std: Channels | None
    ) -> None:
        self._device, self._mean, self._std = device, mean, std
        self.classes: int | None = None  # of the model, once known
        try:
            batches = iter(loader)
        except TypeError:
            kind = type(loader).__name__
            raise BadOption(f"loader is a {kind}; a DataLoader, or batches (images, labels), works") from None
        first = next(batches, None)
        if first is None:
            raise BadOption("the loader gives no batch")
        images, labels = self._checked(first)
        self._batches: Iterator[Any] = chain([first], batches)
        self.first, self.batch = images, len(images)
        self._length = self._images_of(loader, len(labels))

    def _images_of(self, loader: Iterable[Any], first: int) -> int:
        """The number of images that the loader gives, or more: what does not come is cut off in the end."""
        dataset = getattr(loader, "dataset", None)
        if isinstance(dataset, Sized):
            return max(len(dataset), first)
        if isinstance(loader, Sized):
            return len(loader) * first
        kept = list(self._batches)  # of a generator nobody knows
        self._batches = iter(kept)
        return sum(len(_pair(batch)[1]) for batch in kept)

    @property
    def steps(self) -> int:
        """Batches."""
        return -(-self._length // self.batch)

    @property
    def skipped(self) -> int:
        """Corrupt images: none."""
        return 0

    def __len__(self) -> int:
        return self._length

    def digests(self) -> dict[str, str]:
        """Nothing that would identify the images."""
        return {}

    def batches(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 in [0, 1] and labels; once."""
        seen = 0
        for batch in self._batches:
            images, labels = self._checked(batch)
            if self.classes is not None and len(labels) and not 0 <= int(labels.min()) <= labels.max() < self.classes:
                raise BadOption(
                    f"labels of the loader go from {int(labels.min())} to {int(labels.max())}, and the model returns "
                    f"{self.classes} logits; 0 to {self.classes - 1} work"
                )
            seen += len(labels)
            if seen > self._length:
                raise StarfireError(f"the loader gives more images than the {self._length} that its data set has")
            yield images, labels

    def _checked(self, batch: Any) -> tuple[Tensor, Tensor]:
        images, labels = _pair(batch)
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            raise BadOption(
                f"images of the loader are {_given(images)}; a floating-point tensor (N, C, H, W) works, as a "
                "DataLoader with ToTensor gives"
            )
        if not isinstance(labels, Tensor) or labels.shape != images.shape[:1] or labels.is_floating_point():
            raise BadOption(f"labels of the loader are {_given(labels)}; whole numbers work, a tensor (N,)")
        images, labels = images.to(self._device, torch.float32), labels.to(self._device, torch.int64)
        if self._mean is not None and self._std is not None:
            for name, numbers in (("mean", self._mean), ("std", self._std)):
                if len(numbers) not in (1, images.shape[1]):
                    raise BadOption(
                        f"{name} has {len(numbers)} numbers, and images of the loader have {images.shape[1]} channels: "
                        "one number a channel, or one for all, works"
                    )
            scale = [images.new_tensor(x).view(1, -1, 1, 1) for x in (self._std, self._mean)]
            images = images * scale[0] + scale[1]
        low, high = images.aminmax() if images.numel() else (images.new_zeros(()), images.new_zeros(()))
        if low < -_SLACK or high > 1 + _SLACK:
            raise BadOption(
                f"pixels of the loader go from {float(low):.3g} to {float(high):.3g}, and eps is of pixels in [0, 1]; "
                "if they are normalised, mean=... and std=... say how"
            )
        return images.clamp(0, 1), labels


_IMAGES, _LABELS = ("pixel_values", "image", "images", "img"), ("labels", "label")  # of batches that are dicts


def _pair(batch: Any) -> tuple[Any, Any]:
    """Images and labels of a batch. Raises BadOption where it has not both."""
    if isinstance(batch, Mapping):
        names = [next((name for name in known if name in batch), None) for known in (_IMAGES, _LABELS)]
        if None not in names:
            return batch[names[0]], batch[names[1]]
    elif isinstance(batch, list | tuple) and len(batch) > 1:
        return batch[0], batch[1]
    keys = f" with {some(list(map(str, batch)))}" if isinstance(batch, Mapping) else ""
    raise BadOption(f"a batch of the loader is a {type(batch).__name__}{keys}; a pair of images and labels works")


def _given(thing: Any) -> str:
    if isinstance(thing, Tensor):
        return f"a tensor {tuple(thing.shape)} of {str(thing.dtype).removeprefix('torch.')}"
    return f"a {type(thing).__name__}"
