"""Classification networks of torchvision by torchvision's names, without weights (`resnet50` is v1.5)."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn

from starfire_cli.errors import BadOption

# Both would return a tuple in training mode; the method has no use for auxiliary heads.
_PLAIN_OUTPUT = {"googlenet": {"aux_logits": False, "init_weights": True}, "inception_v3": {"aux_logits": False}}


def names() -> list[str]:
    """The names of torchvision's classification models."""
    return list(torchvision.models.list_models(module=torchvision.models))


def build(name: str, *, num_classes: int, image_size: int | None) -> nn.Module:
    """The model called `name`. Raises BadOption where it cannot be built for `image_size`."""
    options: dict[str, Any] = dict(_PLAIN_OUTPUT.get(name, {}))
    if name == "inception_v3":
        options["init_weights"] = True
    if image_size is not None and name.startswith("vit_"):
        options["image_size"] = image_size
    if image_size is not None and name.startswith("maxvit_"):
        options["input_size"] = (image_size, image_size)
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    except (ValueError, AssertionError, RuntimeError) as error:
        # vit asserts that patches fit, maxvit raises that its windows do not.
        reason = (str(error).splitlines() or [""])[0]
        raise BadOption(f"model {name!r} cannot be built for {image_size}-pixel images: {reason}") from None
    return model
