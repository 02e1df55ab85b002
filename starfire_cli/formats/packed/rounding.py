"""Rounds weights (`--values`): to bf16, to fp16, or to a few values that a layer shares; and measures the error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from starfire_cli.errors import StarfireError, unknown
from starfire_cli.formats.packed.dtypes import BY_NAME, Dtype
from starfire_cli.pruning.codebook import FLOATS, Codebook, price_of_bits, share
from starfire_cli.pruning.ties import distinct, masks_once, replace_tied, ties_of

ROUNDED = {"bf16": BY_NAME["BF16"], "fp16": BY_NAME["F16"]}


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """The effect of rounding on all live values that were rounded.

    Args:
        values: "bf16", "fp16" or the spec of a codebook.
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


@dataclass
class _Errors:
    """Sums over the tensors that were rounded."""

    count: int = 0
    zeroed: int = 0
    largest: float = 0.0
    total: float = 0.0

    def add(self, exact: Tensor, rounded: Tensor, mask: Tensor | None) -> None:
        """Count one tensor; without a mask its zeros are no values."""
        live = exact != 0 if mask is None else mask
        error = (rounded.double() - exact.double()).abs()[live & exact.isfinite()]
        self.count += int(live.sum())
        self.zeroed += int(((rounded == 0) & (exact != 0)).sum())
        if error.numel():
            self.largest = max(self.largest, float(error.max()))
            self.total += float(error.sum())

    def cost(self, values: str) -> Rounding:
        """The count and the errors of rounding to `values`."""
        mean = self.total / max(1, self.count)
        return Rounding(values=values, count=self.count, max_error=self.largest, mean_error=mean, zeroed=self.zeroed)


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
    result, stored, errors = dict[str, Tensor](), {}, _Errors()
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
        errors.add(tensor, rounded, masks.get(key))
    return replace_tied(state, result), stored, errors.cost(values)


def share_state(
    state: Mapping[str, Tensor], masks: Mapping[str, Tensor], codebook: Codebook
) -> tuple[dict[str, Tensor], Rounding]:
    """Gives the live weights of each matrix and kernel few values (see `pruning.codebook.share`).

    Norms, biases and statistics stay exact, and so do NaN and infinity, zeros without a mask, and layers that have no
    more values than that. Returns the state in its old types, and what it cost.
    """
    result, errors = dict[str, Tensor](), _Errors()
    masks = masks_once(masks, ties_of(state), distinct(state))
    layers = {
        key: (tensor, (masks[key].cpu() if key in masks else tensor != 0) & tensor.isfinite())
        for key, tensor in distinct(state).items()
        if tensor.dtype in FLOATS and (tensor.ndim >= 2 or key in masks)
    }
    price = price_of_bits(layers, codebook)
    for key, (tensor, live) in layers.items():
        shared = share(tensor, live, codebook, key, price)
        rounded = tensor
        if len(shared.values):
            rounded = shared.values[shared.numbers.int()]
            rounded = torch.where(live & (rounded != tensor), rounded, tensor)  # an equal -0.0 stays one
        result[key] = rounded
        errors.add(tensor, rounded, masks.get(key))
    return replace_tied(state, result), errors.cost(codebook.spec)
