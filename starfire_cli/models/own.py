"""Networks of the user as `package.module:callable`, called with `num_classes=...`."""

from __future__ import annotations

from torch import nn

from starfire_cli.errors import BadOption
from starfire_cli.own_code import called


def build(spec: str, *, num_classes: int, image_size: int | None) -> nn.Module:
    """The model that the callable returns. Raises BadOption saying which part of the spec is wrong."""
    model = called(spec, "model", num_classes=num_classes)
    if not isinstance(model, nn.Module):
        path = spec.partition(":")[2]
        raise BadOption(f"model {spec!r}: {path} returned a {type(model).__name__}, not a torch.nn.Module")
    return model
