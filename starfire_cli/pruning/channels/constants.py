"""Finds the channels of a network that do not depend on the image, and the constants that they carry
(docs/elimination.md).

The network runs once on an image of NaN, where NaN means "depends on the image". A convolution or linear output is NaN
only where a live weight reads a NaN; what remains a number is what that channel always carries, through BatchNorm and
activations included. A map must be one number all over: a constant that zero padding makes different at the border
counts as depending on the image, since what a pool makes of it depends on the image's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_map

from starfire_cli.errors import Mismatch, StarfireError
from starfire_cli.pruning.channels.graph import Role, Traced, node_name
from starfire_cli.pruning.ties import parameters_of

NAN = float("nan")


class Unknown:
    """Stands for anything but a float tensor that may depend on the image."""


UNKNOWN = Unknown()


@dataclass(kw_only=True)
class Constants:
    """The constants that one pass over the graph found.

    Args:
        reads: node of a convolution or linear layer -> what each of its inputs carries, (C,) or (I,); NaN: the image.
        shapes: node -> the shape of the tensor it gives, on one image.
        notes: node -> why a constant that came in did not go on.
        norms: name of a BatchNorm -> what each of its channels reads, (C,); NaN: the image.
    """

    reads: dict[fx.Node, Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)
    shapes: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    notes: dict[fx.Node, str] = field(default_factory=dict)


@torch.no_grad()
def find_constants(
    traced: Traced, masks: Mapping[str, Tensor], example: Tensor, *, settle: torch.dtype | None = None
) -> Constants:
    """Run the graph on `example` for its shapes and on NaN for its constants.

    Args:
        traced: from `graph.trace`.
        masks: what is dead, checked by `check_masks`; a layer without a mask is alive, zero weights or not.
        example: one image, (1, C, H, W), float64.
        settle: give each BatchNorm channel that reads a constant the mean and variance of that constant, rounded to
            this type, in the traced copy; what it gives is then the same in training as in eval mode.

    Raises:
        StarfireError: the model does not take such an image.
    """
    run = _Run(traced, masks, settle)
    try:
        run.run(example)
    except Exception as error:  # noqa: BLE001 - a user's model may raise anything
        reason = (str(error).splitlines() or [""])[0]
        raise StarfireError(f"the model does not take an image of shape {tuple(example.shape)}: {reason}") from None
    return run.found


def check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Check masks against weights. Raises StarfireError for a mask without a weight of its shape, Mismatch for a dead
    weight that is not zero.
    """
    parameters = parameters_of(model)
    for key, mask in masks.items():
        weight = parameters.get(key)
        if weight is None or weight.shape != mask.shape:
            what = "no such parameter" if weight is None else f"a parameter of shape {tuple(weight.shape)}"
            raise StarfireError(f"mask {key!r} has shape {tuple(mask.shape)}, and the model has {what}")
        wrong = int((weight.detach().ne(0) & ~mask.to(weight.device)).count_nonzero())
        if wrong:
            raise Mismatch(f"{key}: {wrong} pruned weights are not zero")


def live_mask(masks: Mapping[str, Tensor], name: str, weight: Tensor) -> Tensor:
    """The mask of module `name`, bool on the CPU; all alive where there is none."""
    mask = masks.get(f"{name}.weight" if name else "weight")
    return torch.ones(weight.shape, dtype=torch.bool) if mask is None else mask.detach().cpu()


class _Run(fx.Interpreter):
    """Runs each node twice: on the example, and on what is known."""

    def __init__(self, traced: Traced, masks: Mapping[str, Tensor], settle: torch.dtype | None) -> None:
        super().__init__(traced.root)
        self.traced, self.masks, self.settle = traced, masks, settle
        self.found = Constants()
        self.known: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        real = super().run_node(n)
        if isinstance(real, Tensor):
            self.found.shapes[n] = tuple(real.shape)
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda a: self.known[a])
        try:
            known = self._known(n, real, args, kwargs)
        except (RuntimeError, TypeError, ValueError):  # an operation used in a way it was not listed for
            self.found.notes[n] = f"{node_name(n)} is not followed"
            known = _forget(real)
        self.known[n] = tree_map(_one_number_a_map, known)
        for done in self.user_to_last_uses.get(n, []):
            self.known.pop(done, None)
        return real

    def _known(self, n: fx.Node, real: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        role = self.traced.role(n)
        inputs = tree_flatten((args, kwargs))[0]
        tensors = [a for a in inputs if isinstance(a, Tensor)]
        if role == "output":
            return args[0]
        if role == "constant":
            return real if isinstance(real, Tensor) and real.is_floating_point() else UNKNOWN
        if role == "shape":
            return real
        if (
            n.op == "placeholder"
            or any(a is UNKNOWN for a in inputs)
            or not all(t.is_floating_point() for t in tensors)
        ):
            return _forget(real)
        if not tensors:
            return real if not _has_tensor(real) else _forget(real)
        if role == "linear" or (role == "conv" and real.dim() == 4):
            return self._weighted(n, role, tensors[0], real)
        if role in ("unknown", "conv") or (role == "average" and not self._averages(n, args, kwargs)):
            if not all(t.isnan().all() for t in tensors):
                self.found.notes[n] = f"{node_name(n)} is not followed"
            return _forget(real)
        if role == "batchnorm" and n.op == "call_module":
            self._norm(n, tensors[0])
        zero = tensors[0].eq(0) | tensors[1].eq(0) if role == "multiply" and len(tensors) == 2 else None
        known = getattr(super(), n.op)(n.target, args, kwargs)
        return known if zero is None else known.masked_fill_(zero, 0)

    def _norm(self, n: fx.Node, known: Tensor) -> None:
        """Note what a BatchNorm reads, and settle its statistics where that was asked for."""
        module, rows = self.traced.module(n), known.movedim(1, 0).flatten(1)
        value_C = torch.where(_one_number(rows), rows[:, 0], NAN)
        self.found.norms[str(n.target)] = value_C
        if self.settle is not None and self.traced.once(str(n.target)):
            settle_statistics(module, value_C.to(self.settle))

    def _weighted(self, n: fx.Node, role: Role, known: Tensor, real: Tensor) -> Tensor:
        """A convolution's or linear layer's output: NaN where a live weight reads a NaN."""
        module = self.traced.module(n)
        weight = module.weight
        assert isinstance(weight, Tensor)
        live = live_mask(self.masks, str(n.target), weight)
        axis = 1 if role == "conv" else known.dim() - 1
        rows = known.movedim(axis, 0).reshape(known.shape[axis], -1)
        value = torch.where(_one_number(rows), rows[:, 0], NAN)
        self.found.reads[n] = value
        if role == "conv" and not keeps_constants(module):
            blocked = value.ne(0) & value.isfinite()
            if (blocked & _read(live, module)).any():
                self.found.notes[n] = (
                    f"{n.target} pads with zeros, so that a constant it reads is not one at the border"
                )
            value = value.masked_fill(blocked, NAN)
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        live_GKC = live.flatten(2).any(2) if live.ndim > 2 else live
        live_GKC = live_GKC.reshape(groups, -1, live_GKC.shape[1])
        value_GC1 = value.reshape(groups, -1, 1)
        image_K = (live_GKC & value_GC1.isnan().mT).any(2).flatten()
        sums_GKC = (weight.flatten(2).sum(2) if weight.ndim > 2 else weight).reshape(live_GKC.shape)
        out_K = (sums_GKC @ value_GC1.nan_to_num(nan=0.0)).flatten()
        if module.bias is not None:
            out_K = out_K + module.bias  # type: ignore[operator]
        out_K = out_K.masked_fill(image_K, NAN)
        shape = [1] * real.dim()
        shape[axis] = -1
        return out_K.reshape(shape).expand(real.shape).clone()

    def _averages(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether an average pool gives a constant map back; zeros that padding counts in would change its border."""
        if n.op == "call_module":
            pool: Any = self.traced.module(n)
            pad, counted, divisor = pool.padding, pool.count_include_pad, pool.divisor_override
        else:
            names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            pad, counted = given.get("padding", 0), given.get("count_include_pad", True)
            divisor = given.get("divisor_override")
        return divisor is None and (not counted or not any(tree_flatten(pad)[0]))


def settle_statistics(norm: nn.Module, value_C: Tensor) -> None:
    """Give a BatchNorm the statistics of the constants that its channels read, (C,); where that is NaN, leave them."""
    mean, variance = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor) and isinstance(variance, Tensor)
    value_C = value_C.to(mean.device, mean.dtype)
    known_C = value_C.isfinite()
    mean.copy_(torch.where(known_C, value_C, mean))
    variance.masked_fill_(known_C, 0)


def keeps_constants(conv: nn.Module) -> bool:
    """Whether a constant map comes out of a convolution constant: it does not pad, or not with zeros."""
    assert isinstance(conv, nn.Conv2d)
    if conv.padding_mode != "zeros" or conv.padding == "valid":
        return True
    if conv.padding == "same":
        return max(conv.kernel_size) == 1
    return not any(conv.padding)


def _read(live: Tensor, conv: nn.Module) -> Tensor:
    """The input channels that a live kernel reads, bool, (C of all groups,)."""
    assert isinstance(conv, nn.Conv2d)
    kernels = live.flatten(2).any(2)
    return kernels.reshape(conv.groups, -1, kernels.shape[1]).any(1).flatten()


def _one_number_a_map(known: Any) -> Any:
    """Set a channel of (N, C, H, W) that is not constant to NaN, in place, so that aliases see it."""
    if not isinstance(known, Tensor) or known.dim() != 4 or not known.is_floating_point() or not known.numel():
        return known
    same = _one_number(known.movedim(1, 0).flatten(1))
    if not bool(same.all()):
        known[:, ~same] = NAN
    return known


def _one_number(rows: Tensor) -> Tensor:
    """A bool for each row: it holds one number, but for rounding in a pool, and no NaN."""
    first = rows[:, :1]
    return ((rows - first).abs() <= 1e-12 * first.abs()).all(1)


def _forget(real: Any) -> Any:
    def one(leaf: Any) -> Any:
        return torch.full_like(leaf, NAN) if isinstance(leaf, Tensor) and leaf.is_floating_point() else UNKNOWN

    return tree_map(one, real)


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_flatten(value)[0])
