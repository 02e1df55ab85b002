"""Who computes the masks, one implementation a file; see `_interface.py`.

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
