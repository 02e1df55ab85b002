"""Rounds weights to bf16 or fp16 (`--values`), and measures the rounding error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from starfire_cli.errors import StarfireError, unknown
from starfire_cli.formats.packed.dtypes import BY_NAME, Dtype
from starfire_cli.pruning.ties import distinct, replace_tied

ROUNDED = {"bf16": BY_NAME["BF16"], "fp16": BY_NAME["F16"]}


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """The effect of rounding on all live values that were rounded.

    Args:
        values: "bf16" or "fp16".
        count: how many values.
        max_error: the largest |rounded - exact|.
        mean_error: their mean.
        zeroed: how many were not zero and are now; their masks still call them alive.
    """

    values: str
    count: int
    max_error: float
    mean_error: float
    zeroed: int


def round_state(
    state: Mapping[str, Tensor], masks: Mapping[str, Tensor], values: str
) -> tuple[dict[str, Tensor], dict[str, Dtype], Rounding]:
    """Rounds the weights (matrices and kernels) of 32 and 64 bits; norms, biases and statistics stay exact.

    Returns the state with rounded values in their old types, what to store which of them as, and what it cost.
    Raises StarfireError where a value lies beyond the type's range.
    """
    if values not in ROUNDED:
        raise unknown("kind of values", values, ["exact", *ROUNDED])
    target = ROUNDED[values]
    result, stored = dict[str, Tensor](), {}
    count, zeroed, largest, total = 0, 0, 0.0, 0.0
    for key, tensor in distinct(state).items():
        if tensor.dtype not in (torch.float32, torch.float64) or (tensor.ndim < 2 and key not in masks):
            continue
        rounded = tensor.to(target.torch).to(tensor.dtype)
        beyond = int((rounded.isinf() & tensor.isfinite()).sum())
        if beyond:
            limit = torch.finfo(target.torch).max
            other = "bf16 reaches further" if values == "fp16" else "--values exact keeps them"
            raise StarfireError(f"--values {values}: {beyond} values of {key} are beyond {limit:g}; {other}")
        result[key], stored[key] = rounded, target
        live = masks.get(key, tensor != 0)
        error = (rounded.double() - tensor.double()).abs()[live & tensor.isfinite()]
        count += int(live.sum())
        zeroed += int(((rounded == 0) & (tensor != 0)).sum())
        if error.numel():
            largest = max(largest, float(error.max()))
            total += float(error.sum())
    cost = Rounding(values=values, count=count, max_error=largest, mean_error=total / max(1, count), zeroed=zeroed)
    return replace_tied(state, result), stored, cost
