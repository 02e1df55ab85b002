"""Builds a network from its model spec, and checks that it fits the images and classes asked for."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from starfire_cli.errors import BadOption
from starfire_cli.models import own, timm_zoo
from starfire_cli.models.macs import probe
from starfire_cli.text import counted

NAMED = ("cifar_resnet", "wide_resnet", "resnet_v1", "torchvision_zoo")


def _families() -> Iterator[Any]:
    """The modules of `NAMED`, each imported when its turn comes, since torchvision takes seconds."""
    return (import_module(f"starfire_cli.models.{name}") for name in NAMED)


def model_names() -> list[str]:
    """Every name that needs no prefix, sorted; `timm:NAME` and `package.module:callable` work beside them."""
    return sorted(name for family in _families() for name in family.names())


def build_model(spec: str, *, num_classes: int, image_size: int | None = None) -> nn.Module:
    """A model with fresh weights.

    Args:
        spec: a name of `model_names()`, `timm:NAME`, or `package.module:callable`.
        num_classes: how many logits it gives.
        image_size: height and width in pixels of the images it must take; with it, the model is tried on one image.

    Raises:
        BadOption: nothing goes by that name, or the model does not take such images or give such logits.
    """
    if num_classes < 1:
        raise BadOption(f"model {spec!r} with {num_classes} classes; it takes 1 or more")
    model = _build(spec, num_classes, image_size)
    if image_size is not None:
        _check(model, spec, num_classes, image_size)
    return model


def _build(spec: str, num_classes: int, image_size: int | None) -> nn.Module:
    if spec.startswith(timm_zoo.PREFIX):
        return timm_zoo.build(spec, num_classes=num_classes, image_size=image_size)
    if ":" in spec:
        return own.build(spec, num_classes=num_classes, image_size=image_size)
    for family in _families():
        if spec in family.names():
            model: nn.Module = family.build(spec, num_classes=num_classes, image_size=image_size)
            return model
    close = get_close_matches(spec, model_names(), n=3)
    hint = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(model_names()[:5])}, ..."
    raise BadOption(f"unknown model {spec!r}; {hint} timm:NAME and package.module:callable work too")


def _check(model: nn.Module, spec: str, num_classes: int, image_size: int) -> None:
    try:
        output = probe(model, image_size)
    except Exception as error:  # noqa: BLE001 - a model may raise anything
        first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
        if first is not None and first.in_channels != 3:
            raise BadOption(
                f"model {spec!r} takes images of {counted(first.in_channels, 'channel')}; here images have three, grey "
                "ones three alike, so that a first layer that takes three works"
            ) from None
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise BadOption(
            f"model {spec!r} does not take {image_size}-pixel images ({reason}); try another size"
        ) from None
    if not isinstance(output, Tensor):
        raise BadOption(f"model {spec!r} returns a {type(output).__name__}, not one tensor of logits (N, classes)")
    if tuple(output.shape) != (1, num_classes):
        raise BadOption(
            f"model {spec!r} gives {tuple(output.shape)} for one {image_size}-pixel image, not (1, {num_classes})"
        )
