"""The core: pruning methods, masks and the training loop's calls. It depends on torch and on nothing else of the
project but what lies below it.

Letters in comments and suffixes: a convolution weight is (K, C, R, S), K output channels, C input channels (within a
group), an R x S window; a linear weight is (O, I), O output neurons. See docs/method.md.
"""

from starfire_cli.pruning.budget import Goal
from starfire_cli.pruning.layers import Layer, layers_of_model, layers_of_state, select
from starfire_cli.pruning.masks import Masks
from starfire_cli.pruning.methods import (
    CHANNEL_METHODS,
    CONV_METHODS,
    LINEAR_METHODS,
    METHODS,
    ONESHOT_METHODS,
    TRAINING_METHODS,
    ChannelMethod,
    Method,
    NetworkMethod,
)
from starfire_cli.pruning.pruner import Pruner
from starfire_cli.pruning.units import Budget, Cut, apply_cuts

__all__ = [
    "CHANNEL_METHODS",
    "CONV_METHODS",
    "LINEAR_METHODS",
    "METHODS",
    "ONESHOT_METHODS",
    "TRAINING_METHODS",
    "Budget",
    "ChannelMethod",
    "Cut",
    "Goal",
    "Layer",
    "Masks",
    "Method",
    "NetworkMethod",
    "Pruner",
    "apply_cuts",
    "layers_of_model",
    "layers_of_state",
    "select",
]
