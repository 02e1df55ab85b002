"""Builds the network of a checkpoint without its weights: modules and shapes, on the meta device where that works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.networks.fit import check_fit
from starfire_cli.networks.model_spec import shrink_recipe
from starfire_cli.networks.tensor_names import match_names
from starfire_cli.pruning.channels.recipe import apply_shrink

_FILLING = ("normal_", "uniform_", "fill_", "zero_")
_GUESS = 1000  # classes, where neither metadata nor weights have told yet


@dataclass(frozen=True, kw_only=True)
class BuiltModel:
    """A network of a checkpoint's shapes.

    Args:
        net: the plain model; from `build_skeleton` on the meta device where the model allows it, without weights.
        spec: what built it.
        num_classes: its logits.
        image_size: of the images it was made for, in pixels; usual for its kind where nothing says so.
        checkpoint: with its tensors under the network's keys.
    """

    net: nn.Module
    spec: str
    num_classes: int
    image_size: int
    checkpoint: Checkpoint


def build_skeleton(checkpoint: Checkpoint, spec: str, image_size: int | None = None) -> BuiltModel:
    """The network's modules and shapes, without weights.

    Raises:
        BadOption: there is no such model.
        StarfireError: the checkpoint's weights are not that model's.
    """
    own = checkpoint.meta.model
    size = image_size or own.image_size
    classes = own.num_classes if spec == own.spec else None
    net = _build(spec, classes or _GUESS, size)
    checkpoint = match_names(net, checkpoint)
    if classes is None:
        classes = _classes(net, checkpoint.state) or _GUESS
        if classes != _GUESS:
            net = _build(spec, classes, size)
    apply_shrink(net, shrink_recipe(checkpoint))
    check_fit(net, checkpoint, spec)
    size = size or _usual_size(spec)
    return BuiltModel(net=net, spec=spec, num_classes=classes, image_size=size, checkpoint=checkpoint)


def build_fresh(checkpoint: Checkpoint, found: BuiltModel) -> nn.Module:
    """The network of a skeleton with weights as they are initialised, on the CPU."""
    from starfire_cli.models import build_model

    net = build_model(found.spec, num_classes=found.num_classes, image_size=_sized(found.spec, found.image_size))
    apply_shrink(net, shrink_recipe(checkpoint))
    return net


class _Uninitialised(TorchFunctionMode):
    """Leaves out what fills new tensors: on the meta device there is nothing to fill, and torch imports much for it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init" or getattr(func, "__name__", "") in _FILLING:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _build(spec: str, classes: int, image_size: int | None) -> nn.Module:
    from starfire_cli.models import build_model  # torchvision comes with it, which most checkpoints do without

    sized = _sized(spec, image_size)
    try:
        with torch.device("meta"), _Uninitialised():
            return build_model(spec, num_classes=classes, image_size=sized)
    except Exception:  # noqa: BLE001 - many models compute with tensors while they are built
        return build_model(spec, num_classes=classes, image_size=sized)


def _sized(spec: str, image_size: int | None) -> int | None:
    """The image size, for models whose shapes depend on it."""
    return image_size if "vit" in spec or "swin" in spec else None


def _classes(net: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """The number of classes of the weights: the first axis where only that differs from a model of `_GUESS` classes."""
    counts = {
        state[key].shape[0]
        for key, tensor in net.state_dict().items()
        if key in state and tensor.ndim and state[key].ndim == tensor.ndim
        if tensor.shape[0] == _GUESS != state[key].shape[0] and tensor.shape[1:] == state[key].shape[1:]
    }
    return counts.pop() if len(counts) == 1 else None


def _usual_size(spec: str) -> int:
    from starfire_cli.models import cifar_resnet

    return 32 if spec in cifar_resnet.names() else 224
