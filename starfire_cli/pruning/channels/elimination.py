"""Eliminates weights of linear layers that are fed by dead channels (paper, section 2.1.2, figure 3).

The paper zeroes the linear weights behind a dead convolution channel. Such a channel seldom gives 0: BatchNorm makes it
a constant, and in a ResNet it is one summand of many. So a column goes only if its input is the same for every image,
and the constant it carried moves into the bias: the network's outputs in eval mode stay what they were.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from starfire_cli.errors import StarfireError
from starfire_cli.pruning.channels.constants import Constants, check_masks, find_constants, live_mask
from starfire_cli.pruning.channels.equality import ALLOWED, largest_difference, outputs_on_noise
from starfire_cli.pruning.channels.graph import Traced, fitting_image, producers, trace
from starfire_cli.pruning.masks import Masks
from starfire_cli.pruning.ties import masks_everywhere


@dataclass(frozen=True, kw_only=True)
class Producer:
    """A layer whose output channels reach a linear layer without another layer between."""

    name: str
    channels: int
    dead: int


@dataclass(frozen=True, kw_only=True)
class Eliminated:
    """The record of one linear layer's elimination.

    Args:
        layer: its module name.
        columns: the inputs whose weights were still alive and are dead now.
        weights: how many weights that were.
        folded: for how many of the columns a constant other than 0 went into the bias.
        dead_before: columns with nothing alive to begin with.
        kept: reason -> how many columns stayed for it.
        cut_off: output neurons that no live weight feeds any more; each gives its bias.
        producers: where its inputs come from, and how many of their channels are dead.
        notes: where on the way a constant got lost.
    """

    layer: str
    columns: tuple[int, ...] = ()
    weights: int = 0
    folded: int = 0
    dead_before: int = 0
    kept: Mapping[str, int]
    cut_off: int = 0
    producers: tuple[Producer, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EliminationReport:
    """The result of `eliminate`.

    Args:
        masks: the new masks, each a subset of the old.
        layers: one record a linear layer, in the model's order.
        declined: why nothing was done at all; None where the model could be followed.
        difference: largest difference of any output on random images, over the largest output, in float64 and before
            the new biases are rounded to the model's own type.
    """

    masks: Masks
    layers: tuple[Eliminated, ...] = ()
    declined: str | None = None
    difference: float = 0.0

    @property
    def weights(self) -> int:
        """The number of weights that were eliminated."""
        return sum(layer.weights for layer in self.layers)


@torch.no_grad()
def eliminate(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    *,
    example: Tensor | None = None,
    only: Collection[str] | None = None,
) -> EliminationReport:
    """Eliminate linear weights whose input does not depend on the image, and fold their constants into the bias.

    Args:
        model: changed in place, in linear weights and biases only, after its outputs were compared on a copy.
        masks: what is dead, by state-dict key; a layer without a mask is alive.
        example: an image or batch the model takes, (N, C, H, W); its values do not matter. None: usual sizes are tried.
        only: names of the linear layers that may change; None: all.

    Raises:
        Mismatch: a dead weight is not zero.
        StarfireError: a mask has no weight, or the model takes no such image.
    """
    check_masks(model, masks)
    new = {key: mask.clone() for key, mask in masks.items()}
    try:
        traced = trace(model)
    except StarfireError as error:
        return EliminationReport(masks=new, declined=str(error))
    image = fitting_image(traced, example)
    found = find_constants(traced, masks_everywhere(model, masks), image)
    records: dict[str, Eliminated] = {}
    before = outputs_on_noise(traced.model, image)
    changes: dict[str, tuple[Tensor, Tensor]] = {}  # layer -> columns that go, bool (I,), and what its bias gains (O,)
    for node in traced.root.graph.nodes:
        name = str(node.target)
        if node not in found.reads or traced.role(node) != "linear" or name in records:
            continue
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        reason = _hands_off(traced, name, only)
        if reason is not None:
            records[name] = Eliminated(layer=name, kept={reason: layer.in_features})
            continue
        live_OI = live_mask(masks, name, layer.weight)
        records[name], gone_I, gain_O = _fold(layer, live_OI, _Reasons(traced, masks, found, node))
        if records[name].columns:
            changes[name] = gone_I, gain_O
            key = f"{name}.weight" if name else "weight"
            new[key] = (live_OI & ~gone_I).to(masks[key].device if key in masks else layer.weight.device)
    difference = 0.0
    if changes:
        _write(traced.model, changes)
        difference = largest_difference(before, outputs_on_noise(traced.model, image))
        if not difference <= ALLOWED:
            reason = f"the model's outputs would change by {difference:.1e} of the largest"
            return EliminationReport(masks={k: m.clone() for k, m in masks.items()}, declined=reason)
        _write(model, changes)
    return EliminationReport(masks=new, layers=tuple(records.values()), difference=difference)


def _write(model: nn.Module, changes: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    for name, (gone_I, gain_O) in changes.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layer.weight[:, gone_I.to(layer.weight.device)] = 0
        if layer.bias is not None:
            layer.bias.copy_(layer.bias.to("cpu", torch.float64) + gain_O)


def _fold(layer: nn.Linear, live_OI: Tensor, reasons: _Reasons) -> tuple[Eliminated, Tensor, Tensor]:
    """One layer's record, the columns that go, (I,), and what its bias gains, (O,), float64."""
    carried_I = reasons.carried_I
    known_I = carried_I.isfinite()
    stuck_I = known_I & carried_I.ne(0) if layer.bias is None else torch.zeros_like(known_I)
    before_I = live_OI.any(0)
    gone_I = known_I & ~stuck_I & before_I
    gain_O = layer.weight[:, gone_I.to(layer.weight.device)].to("cpu", torch.float64) @ carried_I[gone_I]
    record = Eliminated(
        layer=reasons.layer,
        columns=tuple(gone_I.nonzero().flatten().tolist()),
        weights=int(live_OI[:, gone_I].count_nonzero()),
        folded=int((gone_I & carried_I.ne(0)).sum()),
        dead_before=int((~before_I).sum()),
        kept=reasons.kept(before_I & ~known_I, before_I & stuck_I),
        cut_off=int((live_OI.any(1) & ~(live_OI & ~gone_I).any(1)).sum()),
        producers=reasons.producers,
        notes=reasons.notes,
    )
    return record, gone_I, gain_O


def _hands_off(traced: Traced, name: str, only: Collection[str] | None) -> str | None:
    if only is not None and name not in only:
        return "not asked for"
    if name in traced.shared:
        return "shares its weight with another layer"
    return None if traced.once(name) else f"is used {traced.calls[name]} times"


class _Reasons:
    """The known constants among one linear layer's inputs, and the reasons why the others are not known."""

    def __init__(self, traced: Traced, masks: Mapping[str, Tensor], found: Constants, node: fx.Node) -> None:
        self.layer = str(node.target)
        self.carried_I = found.reads[node]
        sources, between = producers(traced, node)
        # Channel c of these is still channel c where the layer reads it.
        aligned, _ = producers(traced, node, ("cat", "rearrange", "unknown"))
        self.notes = tuple(dict.fromkeys(found.notes[n] for n in (*sources, *between) if n in found.notes))
        self.producers: tuple[Producer, ...] = ()
        self._half_dead_I = torch.zeros_like(self.carried_I, dtype=torch.bool)
        for source in reversed(sources):
            weight = traced.module(source).weight
            assert isinstance(weight, Tensor)
            dead_K = ~live_mask(masks, str(source.target), weight).flatten(1).any(1)
            producer = Producer(name=str(source.target), channels=len(dead_K), dead=int(dead_K.sum()))
            self.producers += (producer,)
            pixels, rest = divmod(len(self.carried_I), len(dead_K))
            if source in aligned and not rest:
                self._half_dead_I |= dead_K.repeat_interleave(pixels)

    def kept(self, image_I: Tensor, stuck_I: Tensor) -> dict[str, int]:
        """Reason -> how many columns stay: those that depend on the image, and those a missing bias keeps."""
        counts = {
            "depends on the image": int((image_I & ~self._half_dead_I).sum()),
            "a dead channel, but added to a live one": int((image_I & self._half_dead_I).sum()),
            "carries a constant, and the layer has no bias to take it": int(stuck_I.sum()),
        }
        return {reason: count for reason, count in counts.items() if count}
