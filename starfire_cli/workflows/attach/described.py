"""Holds and checks facts of a trained network that only its user can tell: model, classes, images, metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from starfire_cli.data import DataInfo
from starfire_cli.errors import BadOption
from starfire_cli.text import some
from starfire_cli.workflows.attach.notices import warn

_SIDES = (2, 1 << 14)  # pixels


@dataclass(frozen=True, kw_only=True)
class Described:
    """The facts; see `starfire.save`."""

    model: str | None = None
    num_classes: int | None = None
    image_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    classes: tuple[str, ...] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


def checked(described: Described) -> Described:
    """The same with metrics as plain numbers. Raises BadOption for what a later command would trip over.

    A metric that is NaN or infinite, which JSON has no word for, is left out with a warning: the network is worth more.
    """
    if (described.mean is None) != (described.std is None):
        raise BadOption("mean and std belong together; give both or neither")
    classes, side = described.classes, described.image_size
    if classes is not None and described.num_classes not in (None, len(classes)):
        raise BadOption(f"num_classes={described.num_classes}, and classes names {len(classes)}")
    if classes is not None and not (classes and all(classes)):
        raise BadOption(f"classes={list(classes[:5])!r} has no name for a label; a text for each works")
    if side is not None and not _SIDES[0] <= side <= _SIDES[1]:
        raise BadOption(f"image_size={side} is out of range: pixels a side, {_SIDES[0]} to {_SIDES[1]}")
    metrics = {name: _number(name, value) for name, value in described.metrics.items()}
    if odd := [f"{name}={value}" for name, value in metrics.items() if not math.isfinite(value)]:
        warn(
            f"metrics: {some(odd)} {'is' if len(odd) == 1 else 'are'} left out of the file, which holds finite numbers"
        )
    return replace(described, metrics={name: value for name, value in metrics.items() if math.isfinite(value)})


def _number(name: str, given: Any) -> float:
    value = given.item() if hasattr(given, "item") else given  # a number of numpy or torch
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadOption(f"metrics: {name} is a {type(given).__name__}; numbers work, accuracies as fractions")
    if "top" in name and (value < 0 or value > 1):
        raise BadOption(f"metrics: {name}={value:g} is no fraction; accuracies are from 0 to 1")
    return float(value)


def warn_of_classes(described: Described, network: nn.Module) -> None:
    """Warn of class names that are not apart, and of more or fewer classes than the network's last layer gives."""
    names = described.classes or ()
    if twice := list(dict.fromkeys(name for name in names if names.count(name) > 1)):
        first = twice[0]
        places = ", ".join(str(label) for label, name in enumerate(names) if name == first)
        warn(f"classes: {first!r} names labels {places}; reports cannot tell them apart")
    count = described.num_classes or len(names)
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not count or not layers or not isinstance(layers[-1][1], nn.Linear):
        return
    name, last = layers[-1]
    if last.out_features != count and (last.out_features, count) != (1, 2):
        said = "classes names" if described.num_classes is None else "num_classes is"
        warn(f"{said} {count}, and the last layer of the network, {name or 'itself'}, gives {last.out_features} logits")


def data_record(described: Described) -> dict[str, Any]:
    """The record of the data: whole, where enough is known, else how its images are normalised."""
    mean, std, classes, size = described.mean, described.std, described.classes, described.image_size
    if mean is not None and std is not None and classes is not None and size is not None:
        info = DataInfo(
            name="own", spec="own", classes=classes, mean=mean, std=std, image_size=size, train_images=0, val_images=0
        )
        return info.as_meta()
    known = {"mean": mean, "std": std}
    return {name: list(value) for name, value in known.items() if value is not None}
