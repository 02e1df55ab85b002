"""A trained network while a method removes channels from it: its sites, its masks and the edits.

A channel that goes leaves every consumer: its filter, its BatchNorm and the weights that read it become zero, and the
masks say so. `shrink` then cuts it out, which changes nothing more.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from starfire_cli.errors import BadOption
from starfire_cli.pruning.channels.constants import find_constants, keeps_constants
from starfire_cli.pruning.channels.coupling import find_channels
from starfire_cli.pruning.channels.graph import fitting_image, trace
from starfire_cli.pruning.channels.removable import constant_taker
from starfire_cli.pruning.channels.selection.sites import Consumer, Site, find_sites
from starfire_cli.pruning.masks import Masks
from starfire_cli.pruning.ties import masks_everywhere


class EditedNetwork:
    """A copy of a network, in eval mode, that methods edit.

    Args:
        net: not changed until `write_to`.
        masks: what is dead in it.
        layers: names of the convolutions whose channels may go.
        image: (channels, height, width) that it takes.
        batches: images as it takes them, (N, channels, height, width), for methods that look at images.
        device: where these are run.
        seed: of random draws.

    Attributes:
        sites: the convolutions whose channels can go one by one.
        left: (layer, reason) of the others.
        removed: convolution -> how many of its channels went.
        model: the network as it is now; float64 on the CPU if there are no images, else float32 on the device.
        original: as it was, if there are images.

    Raises StarfireError where the network cannot be traced.
    """

    def __init__(
        self,
        net: nn.Module,
        masks: Mapping[str, Tensor],
        *,
        layers: Collection[str],
        image: tuple[int, int, int],
        batches: Sequence[Tensor] = (),
        device: torch.device | None = None,
        seed: int = 0,
    ) -> None:
        self.masks: Masks = {key: mask.clone() for key, mask in masks.items()}
        self.layers, self.batches, self.seed = layers, batches, seed
        self.device = device or torch.device("cpu")
        self.traced = trace(net)
        self.model = self.traced.model
        self._image = fitting_image(self.traced, torch.zeros(1, *image))
        self.found = find_constants(self.traced, masks_everywhere(net, masks), self._image)
        self.channels = find_channels(self.traced, self.found)
        self.sites, self.left = find_sites(self.traced, self.channels, layers)
        self.removed: dict[str, int] = {}
        self._owners_of: dict[int, list[str]] = defaultdict(list)
        for name, numbers in self.channels.owners.items():
            for number in set(numbers.tolist()):
                self._owners_of[number].append(name)
        if batches:  # float32 is what it was trained in, and many times as fast as float64 on a GPU
            self.model.to(self.device, torch.float32)
        self.original = copy.deepcopy(self.model) if batches else None

    def open_sites(self) -> list[Site]:
        """The sites. Raises BadOption with a reason where there is none."""
        if not self.sites:
            why = f"; {self.left[0][0]}: {self.left[0][1]}" if self.left else ""
            raise BadOption(f"no convolution has channels that can go one by one{why}")
        return self.sites

    def weight(self, layer: str) -> Tensor:
        """The weight of a layer as it is now."""
        weight = self.model.get_submodule(layer).weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    def places(self, node: fx.Node) -> int:
        """The number of places of a layer's output map."""
        return math.prod(self.found.shapes[node][2:])

    @torch.no_grad()
    def write_to(self, net: nn.Module) -> None:
        """Copy all tensors into `net`, in its own types."""
        net.load_state_dict(self.model.state_dict())

    def mask(self, layer: str, dead: Tensor) -> None:
        """Call weights of a layer dead; they become zero.

        Args:
            layer: module name.
            dead: bool, of a shape that broadcasts to the weight's.
        """
        weight = self.weight(layer)
        alive = self.masks.get(f"{layer}.weight", torch.ones(weight.shape, dtype=torch.bool)) & ~dead.cpu()
        self.masks[f"{layer}.weight"] = alive
        weight.masked_fill_(~alive.to(weight.device), 0)

    def remove(self, site: Site, kept: Sequence[int]) -> None:
        """Remove all channels of a site but `kept`."""
        gone = torch.ones(len(site.numbers), dtype=torch.bool)
        gone[list(kept)] = False
        self.remove_numbers(site.numbers[gone])

    def remove_numbers(self, numbers: Tensor, *, fold: bool = False) -> None:
        """Remove channels by their numbers, wherever they are.

        Args:
            numbers: of channels that are not pinned.
            fold: let consumers keep the constant that a channel carries once its BatchNorm's scale is 0. A consumer
                that pads with zeros takes it as if its maps had no border, or not at all where it cannot keep one.
        """
        self._silence(numbers, shift=not fold)
        for name in self._owning(numbers):
            gone = torch.isin(self.channels.owners[name], numbers)
            module = self.model.get_submodule(name)
            if not isinstance(module, _BatchNorm):
                self.mask(name, gone.reshape(-1, *[1] * (self.weight(name).ndim - 1)))
                if isinstance(module, nn.Conv2d):
                    self.removed[name] = self.removed.get(name, 0) + int(gone.sum())
        held = self._fold(numbers) if fold else {}
        for consumer in self.channels.consumers:
            gone = torch.isin(consumer.reads_I, numbers)
            if bool(gone.any()) and consumer.name not in held:
                self.mask(consumer.name, gone.reshape(1, -1, *[1] * (self.weight(consumer.name).ndim - 2)))
        still_read = torch.cat([*held.values(), numbers[:0]])
        self._silence(numbers[~torch.isin(numbers, still_read)], shift=True)

    @torch.no_grad()
    def set_weight(self, consumer: Consumer, channels: Sequence[int], weight_KCT: Tensor) -> None:
        """Replace a consumer's weights on some channels of a site, (K, len(channels) * T); what is dead stays zero."""
        weight, inputs_CP = self.weight(consumer.name), consumer.inputs_CP[list(channels)]
        each = weight_KCT.to(weight.device, weight.dtype).reshape(len(weight), inputs_CP.numel(), *weight.shape[2:])
        weight[:, inputs_CP.flatten().to(weight.device)] = each
        if (alive := self.masks.get(f"{consumer.name}.weight")) is not None:
            weight.masked_fill_(~alive.to(weight.device), 0)

    def alive(self, consumer: Consumer, channels: Sequence[int]) -> Tensor | None:
        """The mask of a consumer's weights on some channels of a site, (K, len(channels) * T); None if it has none."""
        mask = self.masks.get(f"{consumer.name}.weight")
        return None if mask is None else mask[:, consumer.inputs_CP[list(channels)].flatten()].flatten(1)

    @torch.no_grad()
    def add_constant(self, layer: str, node: fx.Node, gain_K: Tensor) -> None:
        """Add a constant to each output of a layer that `takes_constants`."""
        taker = constant_taker(self.traced, node)
        module = self.model.get_submodule(layer if taker == "bias" else taker)
        tensor = module.bias if taker == "bias" else module.running_mean
        assert isinstance(tensor, Tensor)
        gain_K = gain_K.to(tensor.device, torch.float64)
        tensor.copy_(tensor.double() + (gain_K if taker == "bias" else -gain_K))

    def takes_constants(self, node: fx.Node) -> bool:
        """Whether a layer has a bias, or a BatchNorm behind it, to take constants."""
        return constant_taker(self.traced, node) != "new bias"

    def _owning(self, numbers: Tensor) -> list[str]:
        """The layers whose outputs have one of the channel numbers."""
        found = {name: None for number in numbers.tolist() for name in self._owners_of[number]}
        return list(found)

    @torch.no_grad()
    def _silence(self, numbers: Tensor, *, shift: bool) -> None:
        """Set BatchNorm's scale of channels to 0, with `shift` also what it adds, and the biases of their layers."""
        for name in self._owning(numbers):
            module, owned = self.model.get_submodule(name), self.channels.owners[name]
            norm = isinstance(module, _BatchNorm)
            for tensor in (module.weight, module.bias if shift else None) if norm else (module.bias,):
                if isinstance(tensor, Tensor):
                    tensor[torch.isin(owned, numbers).to(tensor.device)] = 0

    @torch.no_grad()
    def _fold(self, numbers: Tensor) -> dict[str, Tensor]:
        """Add what silent channels carry to the consumers.

        Returns the consumers that still take it, and channel numbers: `shrink` folds it into a new bias of theirs.
        """
        constants = find_constants(self.traced, masks_everywhere(self.model, self.masks), self._image)
        held: dict[str, Tensor] = {}
        for consumer in self.channels.consumers:
            gone = torch.isin(consumer.reads_I, numbers)
            carried_I = constants.reads[consumer.node].nan_to_num(nan=0.0)[gone]
            if not bool(carried_I.any()):
                continue
            if self.takes_constants(consumer.node):
                sums_KI = self.weight(consumer.name)[:, gone]
                sums_KI = sums_KI.flatten(2).sum(2) if sums_KI.ndim == 4 else sums_KI
                self.add_constant(consumer.name, consumer.node, sums_KI @ carried_I)
            elif not isinstance(module := self.traced.module(consumer.node), nn.Conv2d) or keeps_constants(module):
                held[consumer.name] = consumer.reads_I[gone]
        return held
