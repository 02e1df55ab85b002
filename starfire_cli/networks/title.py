"""Names a network for people: by its method and target, where its checkpoint says them."""

from __future__ import annotations

from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.labels import method_and_share, title


def checkpoint_title(checkpoint: Checkpoint) -> str:
    """`window 0.6`, `dense`, or the name of the file where nothing is known."""
    named = checkpoint_method(checkpoint)
    return checkpoint.path.name if named is None else title(*named)


def checkpoint_method(checkpoint: Checkpoint) -> tuple[str, float | None] | None:
    """Method and share by which a network is called (see `method_and_share`); None where nothing is known."""
    pruning = checkpoint.meta.pruning
    if pruning.method is None:
        return None
    masks = (checkpoint.masks or {}).values()
    dead = sum(mask.numel() - int(mask.sum()) for mask in masks)
    return method_and_share(
        pruning.method,
        str(pruning.fc),
        pruning.target,
        sparsity=dead / max(1, sum(mask.numel() for mask in masks)),
        shrunk=checkpoint.meta.model.shrink != {},
    )
