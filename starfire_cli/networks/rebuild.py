"""Which network do weights belong to, when a checkpoint is all that is left?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from starfire_cli.errors import BadOption, StarfireError, option
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.networks.fitting import fitted, loadable, refuse
from starfire_cli.pruning.channels.recipe import ShrinkRecipe, apply_shrink

_FILLING = ("normal_", "uniform_", "fill_", "zero_")
_GUESS = 1000  # classes, where neither metadata nor weights have told yet


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """A network of the right shape.

    Args:
        net: the plain model; from `skeleton` on the meta device where the model allows it, without weights.
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


def known_spec(checkpoint: Checkpoint) -> str | None:
    """The model that the metadata name, unless building it would run code of the file's choosing."""
    spec = said_of_model(checkpoint).get("spec")
    return spec if isinstance(spec, str) and not runs_code(spec) else None


def runs_code(spec: str) -> bool:
    """Whether building this model imports and calls code: `package.module:callable`, but not `timm:NAME`."""
    return ":" in spec and not spec.startswith("timm:")


def spec_of(checkpoint: Checkpoint, given: str | None) -> str:
    """The model to build: what the user gave, else what the metadata name.

    Raises BadOption: nothing is named, or code is, which only the user may ask for.
    """
    spec = given or known_spec(checkpoint)
    if spec is not None:
        return spec
    named = said_of_model(checkpoint).get("spec")
    if isinstance(named, str):
        raise BadOption(untrusted(checkpoint, named))
    raise BadOption(
        f"{checkpoint.path} does not say which model it is; give it: {option('model', 'resnet20')} "
        "(or timm:NAME, pkg.mod:callable)"
    )


def untrusted(checkpoint: Checkpoint, spec: str) -> str:
    """What is said where a file names code as its model."""
    return f"{checkpoint.path} names the model {spec}, whose code is not run unasked; {option('model', spec)} runs it"


def skeleton(checkpoint: Checkpoint, spec: str, image_size: int | None = None) -> Rebuilt:
    """The network's modules and shapes, without weights.

    Raises:
        BadOption: there is no such model.
        StarfireError: the checkpoint's weights are not that model's.
    """
    own = said_of_model(checkpoint)
    known = own.get("image_size")
    size = image_size or (known if isinstance(known, int) and 0 < known < 1 << 14 else None)
    classes = own.get("num_classes") if spec == own.get("spec") else None
    classes = classes if isinstance(classes, int) and 0 < classes < 1 << 24 else None
    net = _build(spec, classes or _GUESS, size)
    checkpoint = fitted(net, checkpoint)
    if classes is None:
        classes = _classes(net, checkpoint.state) or _GUESS
        if classes != _GUESS:
            net = _build(spec, classes, size)
    apply_shrink(net, recipe_of(checkpoint))
    refuse(net, checkpoint, spec)
    size = size or _usual_size(spec)
    return Rebuilt(net=net, spec=spec, num_classes=classes, image_size=size, checkpoint=checkpoint)


def revive(checkpoint: Checkpoint, spec: str, image_size: int | None = None) -> Rebuilt:
    """The network with the checkpoint's weights, on the CPU, in eval mode. Raises as `skeleton`."""
    found = skeleton(checkpoint, spec, image_size)
    net = fresh(checkpoint, found)
    net.load_state_dict(loadable(net, found.checkpoint).state, strict=False)
    return replace(found, net=net.eval())


def fresh(checkpoint: Checkpoint, found: Rebuilt) -> nn.Module:
    """The network of a skeleton with weights as they are initialised, on the CPU."""
    from starfire_cli.models import build_model

    net = build_model(found.spec, num_classes=found.num_classes, image_size=_sized(found.spec, found.image_size))
    apply_shrink(net, recipe_of(checkpoint))
    return net


def recipe_of(checkpoint: Checkpoint) -> ShrinkRecipe:
    """How the network was cut to fewer channels, if it was. Raises StarfireError where that is damaged."""
    recipe = said_of_model(checkpoint).get("shrink") or {}
    if not isinstance(recipe, dict) or not all(isinstance(cut, dict) for cut in recipe.values()):
        raise StarfireError(f"{checkpoint.path}: the record of how it was shrunk is damaged")
    return recipe


class _Uninitialised(TorchFunctionMode):
    """Leaves out what fills new tensors: on the meta device there is nothing to fill, and torch imports much for it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init" or getattr(func, "__name__", "") in _FILLING:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def said_of_model(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the metadata say of the model; nothing where they are damaged."""
    said = checkpoint.meta.get("model")
    return said if isinstance(said, dict) else {}


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
    """How many classes the weights have: where only the first axis differs from a model with `_GUESS` classes."""
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


def parse_input(text: str | None) -> tuple[int, int] | None:
    """`3x224x224` to (channels, pixels a side). Raises BadOption."""
    if text is None:
        return None
    parts: list[Any] = text.lower().replace("*", "x").split("x")
    if (
        not all(p.isdecimal() and len(p) < 6 and 0 < int(p) <= 1 << 14 for p in parts)
        or len(parts) != 3
        or parts[1] != parts[2]
    ):
        raise BadOption(f"--input {text!r} is not channels x height x width of square images, such as 3x224x224")
    return int(parts[0]), int(parts[1])
