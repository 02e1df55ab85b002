"""The request of `starfire data pack`: its options, their help and ranges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from starfire_cli.options import Option, option
from starfire_cli.workflows.options import DATA_PANEL, SEED, SKIP_CORRUPT, WORKERS

SHARDS_PANEL = "Shards"


@dataclass(frozen=True, kw_only=True)
class PackRequest:
    """One call of `starfire data pack`."""

    source: str = Option(
        argument=True, metavar="SRC", help="The images: whatever --data takes that lies on a disk in files."
    ).required()
    out: Path = Option(argument=True, metavar="OUT", help="A new folder for the shards.").required()
    short_side: int = option(
        256,
        "Scale larger images until their shorter side has so many pixels; 0 keeps every file as it is.",
        metavar="PIXELS",
        panel=SHARDS_PANEL,
        low=0,
        range="0 (keep the files as they are) or more",
    )
    quality: int = option(
        90, "Of the JPEGs that are made, {range}.", panel=SHARDS_PANEL, low=1, high=100, range="1 to 100"
    )
    shard_size: str = option(
        "100MB",
        "About so many bytes a shard (100MB, 1GB), or exactly so many images (4000).",
        metavar="SIZE",
        panel=SHARDS_PANEL,
    )
    seed: int = replace(SEED, panel=SHARDS_PANEL, help="Of the order in which images go into shards.").default(0)
    limit_train: int | None = option(
        None, "Pack N training images only, spread over the classes.", metavar="N", panel=DATA_PANEL
    )
    limit_val: int | None = option(None, "Pack N validation images only.", metavar="N", panel=DATA_PANEL)
    skip_corrupt: bool = SKIP_CORRUPT.default(False)
    workers: int = replace(WORKERS, low=1, range="processes, 1 to 1024", help="Processes that write shards.").default(2)
