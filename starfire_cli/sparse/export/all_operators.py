"""The operations that torch does where networks run in process, and that have loops in an export."""

from __future__ import annotations

from starfire_cli.sparse.export import operators, rare_layers, rearranging
from starfire_cli.sparse.export.lowering import Operator

OPERATORS: tuple[Operator, ...] = (
    operators.activate,
    operators.combine,
    operators.normalise,
    operators.average,
    operators.pool,
    operators.join,
    rearranging.rearrange,
    rare_layers.convolve,
    rare_layers.apply_linear,
    rare_layers.normalise_layer,
)
