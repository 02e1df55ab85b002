"""Data sets: found, read, decoded and delivered as batches on the device."""

from starfire_cli.data.augment import AUGMENTATIONS
from starfire_cli.data.finding import recognise, refuse_unasked
from starfire_cli.data.opening import open_data, open_val, recorded
from starfire_cli.data.options import Data, DataInfo, DataOptions, Split
from starfire_cli.data.sets import SETS

__all__ = [
    "AUGMENTATIONS",
    "SETS",
    "Data",
    "DataInfo",
    "DataOptions",
    "Split",
    "open_data",
    "open_val",
    "recognise",
    "recorded",
    "refuse_unasked",
]
