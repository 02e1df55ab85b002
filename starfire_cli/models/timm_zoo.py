"""Networks of timm as `timm:NAME`, without weights; timm is an extra, imported on first use."""

from __future__ import annotations

from difflib import get_close_matches

from torch import nn

from starfire_cli.errors import BadOption

PREFIX = "timm:"


def build(spec: str, *, num_classes: int, image_size: int | None) -> nn.Module:
    """The model `timm:NAME`. Raises BadOption if timm is not there or knows no such name."""
    try:
        import timm
    except ImportError:
        raise BadOption(
            f"model {spec!r} needs timm, which is not installed: pip install 'starfire-cli[timm]'"
        ) from None
    name = spec.removeprefix(PREFIX)
    # timm's own create_model would go to the network for `hf-hub:` and to a folder for `local-dir:`.
    if ":" in name or not timm.is_model(name.partition(".")[0]):
        close = get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(PREFIX + c for c in close)}?" if close else "timm.list_models() lists them"
        raise BadOption(f"model {spec!r}: timm has no model {name!r}; {hint}")
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes)
        resize = getattr(model, "set_input_size", None)
        if image_size is not None and resize is not None:
            resize(img_size=image_size)
    except Exception as error:  # noqa: BLE001 - each of timm's models has its own
        reason = (str(error).splitlines() or [""])[0]
        raise BadOption(f"model {spec!r} cannot be built for {image_size}-pixel images: {reason}") from None
    return model
