"""Refuses options of a method that the command which is called does not read."""

from __future__ import annotations

from starfire_cli.errors import BadOption
from starfire_cli.registry import given_options


def refuse_unread(method: object, spec: str, command: str) -> None:
    """Raises BadOption where `spec` gives an option that only the other command reads.

    Args:
        method: what the spec was built to; the options that one command alone reads are its class's `of_training` and
            `of_prune_mask`.
        spec: as it was written.
        command: "train" or "prune-mask".
    """
    reader = {"train": "prune-mask", "prune-mask": "train"}[command]
    unread: tuple[str, ...] = getattr(method, "of_training" if reader == "train" else "of_prune_mask", ())
    if given := [name for name in given_options(spec) if name in unread]:
        raise BadOption(
            f"--method {spec}: {given[0]} is for starfire {reader}, and {command} does not look at it; leave it out"
        )
