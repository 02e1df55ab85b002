"""Tells which model a checkpoint is of, and whether building it would run code of the file's choosing."""

from __future__ import annotations

from starfire_cli.errors import BadOption, StarfireError, option
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.pruning.channels.recipe import ShrinkRecipe


def trusted_spec(checkpoint: Checkpoint) -> str | None:
    """The model that the metadata name, unless building it would run code of the file's choosing."""
    spec = checkpoint.meta.model.spec
    return spec if spec is not None and not runs_code(spec) else None


def runs_code(spec: str) -> bool:
    """Whether building this model imports and calls code: `package.module:callable`, but not `timm:NAME`."""
    return ":" in spec and not spec.startswith("timm:")


def resolve_spec(checkpoint: Checkpoint, given: str | None) -> str:
    """The model to build: what the user gave, else what the metadata name.

    Raises BadOption: nothing is named, or code is, which only the user may ask for.
    """
    spec = given or trusted_spec(checkpoint)
    if spec is not None:
        return spec
    if checkpoint.meta.model.spec is not None:
        raise BadOption(untrusted_text(checkpoint, checkpoint.meta.model.spec))
    raise BadOption(
        f"{checkpoint.path} does not say which model it is; give it: {option('model', 'resnet20')} "
        "(or timm:NAME, pkg.mod:callable)"
    )


def untrusted_text(checkpoint: Checkpoint, spec: str) -> str:
    """The sentence for a file that names code as its model."""
    return f"{checkpoint.path} names the model {spec}, whose code is not run unasked; {option('model', spec)} runs it"


def shrink_recipe(checkpoint: Checkpoint) -> ShrinkRecipe:
    """The recipe that cut the network to fewer channels, if one did. Raises StarfireError where that is damaged."""
    recipe = checkpoint.meta.model.shrink
    if recipe is None:
        raise StarfireError(f"{checkpoint.path}: the record of how it was shrunk is damaged")
    return recipe
