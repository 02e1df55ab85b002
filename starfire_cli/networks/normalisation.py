"""Decides the mean and standard deviation with which a network normalises its images."""

from __future__ import annotations

from starfire_cli.errors import BadOption, option
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.numbers import RGB

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_AS_THEY_ARE = (0, 0, 0), (1, 1, 1)


def _not_normalised(checkpoint: Checkpoint, mean: RGB | None, std: RGB | None) -> BadOption:
    """The error for a file that does not say how its images were normalised, where mean or std is not given either."""
    missing = " and ".join(option(name) for name, value in (("mean", mean), ("std", std)) if value is None)
    imagenet, none = (f"{option('mean', m)} {option('std', s)}" for m, s in (_IMAGENET, _AS_THEY_ARE))
    return BadOption(
        f"{checkpoint.path} does not say how its images were normalised; give {missing} "
        f"(ImageNet: {imagenet}; none: {none})"
    )


def resolve_normalisation(checkpoint: Checkpoint, mean: RGB | None, std: RGB | None) -> tuple[RGB, RGB]:
    """Mean and std: what was given, else what the metadata say. Raises BadOption where one of them is missing."""
    mean, std = mean or checkpoint.meta.data.mean, std or checkpoint.meta.data.std
    if mean is None or std is None:
        raise _not_normalised(checkpoint, mean, std)
    return mean, std
