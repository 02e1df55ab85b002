"""Sparse compute of a run: from when on its steps go over live weights only, and by which ways.

Whatever is decided by the clock is kept in the run's checkpoints, so that a resumed run computes the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from starfire_cli.distributed.ranks import Ranks
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.pruning import Pruner
from starfire_cli.sparse.compiler import missing
from starfire_cli.sparse.training import SparseTraining
from starfire_cli.workflows.train.layer_macs import live_macs_by_layer
from starfire_cli.workflows.train.micro_batches import part_sizes
from starfire_cli.workflows.train.network import TrainingNetwork

_LARGE = 10**9  # multiply-accumulates of a step, dense: below, `auto` has nothing to gain
_SHARES = (0.75, 0.6, 0.45, 0.3, 0.2)  # of the multiply-accumulates by live weights at which `auto` measures
_PAYS = 0.95  # of a dense step's time that a sparse one may take
_COSTS = 60.0  # seconds of dense training that must be left: compiling the loops takes some of them
_STALE = 0.9  # of the weights that the loops go over: the masks are taken anew where fewer live


@dataclass(kw_only=True)
class SparseCompute:
    """The state of `--sparse-compute`.

    Args:
        asked: auto, on or off.
        module: computes with live weights; None where that is off or impossible.
        capacity: images that go through the network together.
        net: the network that is trained.
        macs: multiply-accumulates of one image by its layers, dense.
        covered: live weights that the loops go over; None while they are not used.
        tried: measurements that `auto` has made.
    """

    asked: str
    module: SparseTraining | None
    capacity: int
    net: nn.Module
    macs: dict[str, int] = field(default_factory=dict)
    covered: int | None = None
    tried: int = 0
    fixed: bool = False

    def model(self, dense: nn.Module) -> nn.Module:
        """The module that a step runs in place of the `dense` model."""
        return dense if self.module is None else self.module

    def before_step(
        self, pruner: Pruner, ranks: Ranks, images: Tensor, labels: Tensor, *, step: int, steps: int
    ) -> Iterator[str]:
        """Decide, before a step, whether it goes over live weights only; yields lines for the user.

        Args:
            pruner: whose masks.
            ranks: that train together; all come here and decide alike.
            images: (N, C, H, W) of the step.
            labels: (N,).
            step: finished steps.
            steps: of the whole run.
        """
        if self.module is None:
            return
        live = sum(layer.weights - pruner.zeros[layer.key] for layer in pruner.layers)
        fixed = step >= pruner.era.last_step
        if self.covered is None:
            yield from self._maybe_begin(pruner, ranks, images, labels, steps - step, fixed)
        elif fixed and not self.fixed and self._has_torch_passes():
            yield "sparse compute: the mask is fixed; what torch computed so far is timed anew"
            self._begin(pruner, ranks, images)
        elif live < _STALE * self.covered or (fixed and not self.fixed) or not pruner.monotone:
            self._engage(pruner)
        if self.covered is not None:
            self.fixed = fixed
            self.module.engaged = not pruner.reads_gradients

    def release_memory(self) -> None:
        """Give back the memory of maps that no step uses, before the network is validated."""
        if self.module is not None:
            self.module.release_memory()

    def computed_share(self, pruner: Pruner) -> float:
        """Of the multiply-accumulates by live weights, those that loops over these computed in the last step."""
        if self.module is None or not self.module.engaged:
            return 0.0
        live, looped = live_macs_by_layer(self.macs, pruner), self.module.looped()
        computed = sum(live.get(name, 0) * looped.get(layer, 0.0) for name, layer in self.net.named_modules())
        return computed / max(1, sum(live.values()))

    def state_dict(self) -> dict[str, Any] | None:
        """The state that a resumed run needs; None while steps are dense and nothing was measured."""
        if self.module is None or (self.covered is None and not self.tried):
            return None
        ways = self.module.ways() if self.covered is not None else {}
        return {"covered": self.covered, "tried": self.tried, "fixed": self.fixed, "ways": ways}

    def load_state_dict(self, state: dict[str, Any], pruner: Pruner) -> None:
        """Go on as the run did. Raises ValueError, TypeError or KeyError for what is damaged."""
        if self.module is None:
            return
        self.tried, self.fixed = int(state["tried"]), bool(state["fixed"])
        self.module.take_ways(state["ways"])
        if state["covered"] is not None:
            self._engage(pruner)
            self.covered = int(state["covered"])

    def _has_torch_passes(self) -> bool:
        """Whether torch computes a pass of a layer, which fewer live weights may have made the slower way."""
        assert self.module is not None
        return any(share < 1 for share in self.module.looped().values())

    def _engage(self, pruner: Pruner) -> None:
        assert self.module is not None
        self.module.engage({pruner.weights[key]: mask for key, mask in pruner.masks.items()}, self.capacity)
        self.covered = sum(layer.weights - pruner.zeros[layer.key] for layer in pruner.layers)

    def _maybe_begin(
        self, pruner: Pruner, ranks: Ranks, images: Tensor, labels: Tensor, left: int, fixed: bool
    ) -> Iterator[str]:
        if not any(pruner.zeros.values()) or len(images) < self.capacity:
            return
        if self.asked == "on":
            yield "sparse compute: from now on steps go over live weights only; its loops are compiled first"
            self._begin(pruner, ranks, images)
            return
        share = self._share(pruner)
        due = sum(share <= bound for bound in _SHARES) + fixed
        if due <= self.tried or share > _SHARES[0] or sum(self.macs.values()) * self.capacity < _LARGE:
            return
        self.tried = due
        yield from self._measured(pruner, ranks, images, labels, left, share)

    def _share(self, pruner: Pruner) -> float:
        """Of the multiply-accumulates, those by live weights."""
        return sum(live_macs_by_layer(self.macs, pruner).values()) / max(1, sum(self.macs.values()))

    def _begin(self, pruner: Pruner, ranks: Ranks, images: Tensor) -> None:
        """Engage the loops, with the ways that rank 0 finds the fastest."""
        assert self.module is not None
        module = self.module
        self._engage(pruner)

        def found() -> dict[str, dict[str, Any]]:
            module.choose(images.shape[1:])
            return module.ways()

        ways = ranks.only_first(found)
        if not ranks.first:
            module.take_ways(ways)

    def _measured(
        self, pruner: Pruner, ranks: Ranks, images: Tensor, labels: Tensor, left: int, share: float
    ) -> Iterator[str]:
        """Time a step both ways, and go on in the faster; nothing of the run is changed by it."""
        assert self.module is not None
        module = self.module
        module.engaged = False
        with _undisturbed(module):
            dense = ranks.totals(_seconds(module, images, labels))[0] / ranks.count
            if dense * left < _COSTS:
                return
            try:
                self._begin(pruner, ranks, images)
                sparse = _seconds(module, images, labels)
            except StarfireError as error:
                self.module, self.covered = None, None
                module.engaged = False
                yield f"sparse compute stays off: {error}"
                return
            sparse = ranks.totals(sparse)[0] / ranks.count
        times = f"{1000 * sparse:.0f} ms forward and backward over live weights, {1000 * dense:.0f} ms over all"
        if sparse < _PAYS * dense:
            yield f"sparse compute: on from here, at {share:.0%} of the multiply-accumulates ({times})"
        else:
            module.engaged, self.covered = False, None
            yield f"sparse compute: not yet, at {share:.0%} of the multiply-accumulates ({times})"


def build_sparse_compute(
    asked: str,
    network: TrainingNetwork,
    *,
    batch: int,
    accumulate: int,
    compiled: bool,
    mixed: bool,
    deterministic: bool,
) -> SparseCompute:
    """The sparse compute of a run.

    Args:
        asked: auto, on or off.
        network: that is trained.
        batch: images of a step that one process has.
        accumulate: parts that they are worked through in.
        compiled: whether the network is compiled.
        mixed: whether precision is mixed.
        deterministic: whether each run must give the same bits.

    Raises BadOption where it was asked for and cannot be.
    """
    reasons = (
        (network.device.type != "cpu", f"is for a CPU, and this runs on {network.device}"),
        (compiled, "does not go with --compile, which compiles the dense network"),
        (mixed, "computes in float32, and --amp does not"),
        (missing() is not None, f"needs a compiler of loops: {missing()}"),
        (asked == "auto" and deterministic, "is decided by the clock"),
    )
    why = next((reason for holds, reason in reasons if holds), None)
    if asked == "on" and why is not None:
        raise BadOption(f"--sparse-compute on {why}; auto leaves it off then")
    module = None if asked == "off" or why is not None else SparseTraining(network.model)
    if asked == "on" and module is not None:
        try:
            module.check()
        except StarfireError as error:
            raise BadOption(f"--sparse-compute on: {error}; auto leaves it off then") from None
    capacity = max(part_sizes(batch, accumulate, pairs=network.pairs))
    return SparseCompute(asked=asked, module=module, capacity=capacity, net=network.net, macs=network.macs)


def _seconds(module: SparseTraining, images: Tensor, labels: Tensor, repeats: int = 2) -> float:
    """Of a pass forward and backward over a batch, the best of some."""
    best = float("inf")
    for number in range(repeats + 1):
        started = perf_counter()
        cross_entropy(module(images).float(), labels).backward()  # type: ignore[no-untyped-call]
        if number:
            best = min(best, perf_counter() - started)
        for parameter in module.parameters():
            parameter.grad = None
    return best


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Set back buffers and the random generator at the end."""
    kept, state = [buffer.clone() for buffer in module.buffers()], torch.get_rng_state()
    yield
    torch.set_rng_state(state)
    for buffer, before in zip(module.buffers(), kept, strict=True):
        buffer.copy_(before)
