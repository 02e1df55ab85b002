"""Implementations of the mask kernels, one a file; `_interface.py` describes them.

Nothing else is imported here: the member called `torch` would hide the package of that name.
"""

from starfire_cli.pruning.kernels._interface import (
    KERNELS,
    NAN,
    Kernels,
    MaskJob,
    OneByOne,
    PreparedLayers,
    agrees,
    choose,
    installed,
)

__all__ = ["KERNELS", "NAN", "Kernels", "MaskJob", "OneByOne", "PreparedLayers", "agrees", "choose", "installed"]
