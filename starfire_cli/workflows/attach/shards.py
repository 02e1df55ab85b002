"""Pruning of weights whose rows lie on several processes (FSDP2): masks of gathered weights, written row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli.errors import BadOption, Mismatch
from starfire_cli.pruning import Layer, Method, NetworkMethod, Pruner
from starfire_cli.pruning._tensor_addresses import state_of
from starfire_cli.pruning.joint_optimizers import AnyOptimizer, keeps_zeros
from starfire_cli.pruning.kernels.torch import count_alive_again, write_dead
from starfire_cli.pruning.ties import parameters_of
from starfire_cli.workflows.train.settings import Pruning


def is_sharded(weight: Tensor) -> bool:
    """Whether a process holds a part of this tensor only."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(weight, DTensor) or isinstance(weight.data, DTensor)


def in_rows(weight: Any) -> bool:
    """Whether a sharded tensor is split along its first axis over one group of processes, as by `fully_shard`."""
    return len(weight.placements) == 1 and bool(weight.placements[0].is_shard(0))


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; every process has to call it."""
    whole: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return whole


def whole_network(network: nn.Module) -> nn.Module:
    """The modules of a network with gathered parameters: never run, but to look at. Every process has to call it."""
    found: dict[int, nn.Parameter] = {}
    copies: dict[int, nn.Module] = {}

    def parameter(given: nn.Parameter | None) -> nn.Parameter | None:
        if given is None:
            return None
        if id(given) not in found:
            whole = nn.Parameter(gathered(given.detach()).clone(), requires_grad=given.requires_grad)
            found[id(given)] = whole
        return found[id(given)]

    def copied(module: nn.Module) -> nn.Module:
        if id(module) not in copies:
            clone: nn.Module = object.__new__(type(module))
            copies[id(module)] = clone
            clone.__dict__.update(module.__dict__)
            clone.__dict__["_parameters"] = {name: parameter(given) for name, given in module._parameters.items()}
            clone.__dict__["_modules"] = {
                name: None if inner is None else copied(inner) for name, inner in module._modules.items()
            }
        return copies[id(module)]

    return copied(network)


class ShardedPruner(Pruner):
    """A pruner of sharded weights, for methods that look at weights alone, when masks are evaluated.

    Each process holds a whole copy of the weights that are pruned, gathered at every evaluation of the masks, and the
    whole masks, which are the same everywhere. Weights, gradients and optimizer state are masked where they lie.

    Args:
        network: whose weights are sharded.
        whole: what `whole_network` gave.
        layers: which of its weights.
        options: as for `Pruner`.
    """

    def __init__(self, network: nn.Module, whole: nn.Module, layers: Sequence[Layer], **options: Any) -> None:
        self._shards: dict[str, Any] = parameters_of(network)
        self._optimizer: AnyOptimizer | None = None
        super().__init__(whole, layers, **options)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The sharded parameters that are pruned, by key."""
        return {key: self._shards[key] for key in super().weights}

    def attach(self, optimizer: AnyOptimizer, ema: nn.Module | None = None) -> None:
        """From now on, clear the state of this optimizer where weights die. A moving average is refused before."""
        assert ema is None
        self._optimizer = optimizer
        self.enforce()

    @torch.no_grad()
    def after_backward(self) -> bool:
        """Mask the gradients of dead weights. Returns True: no method for these replaces the step."""
        self.mask_gradients()
        return True

    @torch.no_grad()
    def after_step(self, step: int) -> bool:
        """As `Pruner.after_step`; every process has to call it."""
        due = self.evaluates_at(step)
        if due:
            for key, whole in super().weights.items():
                whole.copy_(gathered(self._shards[key]))
        changed = super().after_step(step)
        if due or (self._optimizer is not None and not keeps_zeros(self._optimizer)):
            self.enforce()
        return changed

    @torch.no_grad()
    def mask_gradient(self, key: str) -> None:
        """Mask one layer's gradient where it has just been computed."""
        if key in self._tensors.touched and (gradient := self._shards[key].grad) is not None:
            write_dead(self._rows(key), (gradient.to_local(),))

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Mask all gradients of dead weights."""
        for key in self._tensors.touched:
            self.mask_gradient(key)

    @torch.no_grad()
    def enforce(self) -> None:
        """Write zeros where weights are dead: this process's rows of weights, gradients and optimizer state."""
        for key in self._tensors.touched:
            weight = self._shards[key]
            state = state_of(weight, self._optimizer).values()
            every = [weight, *state, *([] if weight.grad is None else [weight.grad])]
            write_dead(self._rows(key), tuple(tensor.to_local() for tensor in every))

    @torch.no_grad()
    def revived(self, *, kept: bool = True) -> dict[str, int]:
        """As `Pruner.revived`, of this process's rows."""
        found = {}
        for key in self._tensors.touched:
            state = state_of(self._shards[key], self._optimizer) if kept else {}
            every = [self._shards[key], *state.values()]
            found[key] = int(count_alive_again(self._rows(key), [tensor.to_local() for tensor in every]))
        return {key: count for key, count in found.items() if count}

    def follow_layout(self) -> None:
        """Nothing: the whole weights keep their layout."""

    def load(self, masks: Mapping[str, Tensor]) -> None:
        """As `Pruner.load`."""
        super().load(masks)
        self.enforce()

    @torch.no_grad()
    def verify(self) -> None:
        """Raises Mismatch naming the layer if a dead weight among this process's rows is not zero."""
        for key in self._tensors.touched:
            alive_again = int((self._shards[key].to_local().ne(0) & ~self._rows(key)).sum())
            if alive_again:
                raise Mismatch(f"{key}: {alive_again} pruned weights are not zero")

    def _rows(self, key: str) -> Tensor:
        """The mask of the rows that this process holds."""
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        weight = self._shards[key]
        shape, offset = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
        return self.masks[key][offset[0] : offset[0] + shape[0]] if shape[0] else self.masks[key][:0]


def refuse_demands_of_shards(method: str, pruning: Pruning, ema: object, weights: Mapping[str, Any]) -> None:
    """Raises BadOption for what cannot be done with sharded weights."""
    for key, weight in weights.items():
        if is_sharded(weight) and not in_rows(weight):
            raise BadOption(
                f"{key} is sharded otherwise than by its first axis over one group of processes ({weight.placements}): "
                "fully_shard over one group works, tensor parallelism does not; DistributedDataParallel does"
            )
    if not _looks_at_weights_only(pruning.conv):
        raise BadOption(
            f"method={method!r} looks at more than weights or revives some, and the weights are sharded (FSDP2); "
            "window, ck, intra, inter and gmp work with these, DistributedDataParallel with all methods"
        )
    if ema is not None:
        raise BadOption("ema is not followed where weights are sharded (FSDP2); DistributedDataParallel has it")


def _looks_at_weights_only(method: Method | NetworkMethod) -> bool:
    """Whether masks are made of weights alone, at evaluations alone, and only shrink."""
    if not isinstance(method, NetworkMethod):
        return not getattr(method, "free_outputs_only", False)  # which runs the network
    axes = method.axes()
    looks = any(stage.reads for stage in axes.stages)
    return axes.monotone and axes.start is None and axes.penalty is None and not looks and not axes.replaces_step
