"""The session: everything that a training run holds while it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from starfire_cli.attacks import Adversary
from starfire_cli.data import Data
from starfire_cli.distributed.agreement import Agreement
from starfire_cli.distributed.ranks import Ranks
from starfire_cli.errors import StarfireError
from starfire_cli.formats.run import Run
from starfire_cli.pruning import Pruner
from starfire_cli.workflows.train.cuda_graph import StepGraph
from starfire_cli.workflows.train.fixed_masks import FixedMasks
from starfire_cli.workflows.train.network import TrainingNetwork
from starfire_cli.workflows.train.optimisation import Optimisation, Precision
from starfire_cli.workflows.train.position import Position
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.settings import Pruning
from starfire_cli.workflows.train.sparse_compute import SparseCompute
from starfire_cli.workflows.train.tickets import Tickets

if TYPE_CHECKING:
    from starfire_cli.distributed.replica import Replica


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """One run: what the user asked for, and the parts that were built for it.

    Args:
        request: filled from its recipe and checkpoint; with `--resume`, the resumed run's own.
        pruning: the methods it names, and the target.
        ranks: this process among those that train together.
        data: both splits.
        network: the network, its model and its device.
        optimisation: optimizer, learning rate, moving average, number of steps.
        precision: of the arithmetic.
        adversary: makes the images of `--adversarial`.
        sparse: steps over live weights only.
        forward: the model, of live weights, compiled or shared with the other ranks where that was asked for.
        pruner: keeps the masks; changes with every step of the era.
        position: where training stands; changes with every step.
        fixed: the masks after the era.
        agreement: compares the ranks' masks.
        replica: the exchange of gradients, with several ranks.
        captures: whether steps are captured as CUDA graphs.
        graph: the captured step, once there is a folder.
        tickets: the rounds of a method that has several; changes with each.
        folder: of the run; None before it is made.
        resumed: whether a checkpoint's training goes on.
        notes: lines for the user.
    """

    request: TrainRequest
    pruning: Pruning
    ranks: Ranks
    data: Data
    network: TrainingNetwork
    optimisation: Optimisation
    precision: Precision
    adversary: Adversary | None
    sparse: SparseCompute
    forward: Callable[[Tensor], Tensor]
    pruner: Pruner
    position: Position
    fixed: FixedMasks
    agreement: Agreement
    replica: Replica | None = None
    captures: bool = False
    graph: StepGraph | None = None
    tickets: Tickets | None = None
    folder: Run | None = None
    resumed: bool
    notes: tuple[str, ...]

    @property
    def trained_images(self) -> int:
        """The images of all epochs together, those of every round of a method that has several."""
        epochs = self.optimisation.epochs if self.tickets is None else self.tickets.trained_epochs
        return len(self.data.train) * epochs

    def noting(self, *notes: str) -> Session:
        """The session with further lines for the user."""
        return dataclasses.replace(self, notes=(*self.notes, *notes))

    def sharing(self, replica: Replica) -> Session:
        """The session whose gradients are summed over all ranks."""
        self.fixed.share(replica.sending)
        module = replica.module
        forward = torch.compile(module) if self.request.compile else module
        return dataclasses.replace(self, replica=replica, forward=forward)

    @property
    def run(self) -> Run:
        """The run's folder, once it is made."""
        assert self.folder is not None
        return self.folder

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """(name, reason) of the layers that are not pruned."""
        method, fc = self.pruning.method_spec, self.pruning.fc_spec
        reason = f"--method {method} leaves it alone" if method == fc else f"--method {method} --fc {fc} leave it alone"
        return [*self.network.start.left_out, *((layer.name, reason) for layer in self.pruner.left_alone)]

    @property
    def nets(self) -> list[nn.Module]:
        """The network, and the one of averaged weights if `--ema` asked for it."""
        averaged = self.optimisation.averaged
        return [self.network.net] if averaged is None else [self.network.net, averaged]

    @property
    def evaluated(self) -> nn.Module:
        """The model whose accuracy is measured and whose weights are saved as `model`: the average, if there is one."""
        ema = self.optimisation.ema
        return self.network.model if ema is None else ema.module

    @property
    def shrinks(self) -> bool:
        """Whether channels are removed from the network while it trains."""
        return self.pruning.shrinking is not None

    def sparsity(self) -> tuple[float, float]:
        """True sparsity over prunable weights and over all parameters, counted from the masks; what was removed in this
        run counts as dead.
        """
        cut = self.network.removed
        dead = sum(self.pruner.zeros.values())
        prunable = sum(layer.weights for layer in self.pruner.layers) + cut.prunable
        parameters = sum(p.numel() for p in self.network.net.parameters()) + cut.parameters
        return (dead + cut.prunable) / max(1, prunable), (dead + cut.parameters) / parameters

    def warmup_notices(self) -> Iterator[str]:
        """Notices of what will be compiled on the way, as lines for the user."""
        if notice := self.pruner.warmup_notice:
            yield notice
        if self.request.compact_state and self.pruner.kernels == "numba":
            from starfire_cli.pruning.live_step import loops  # which imports numba

            if notice := loops.warmup_notice(self.request.optimizer or ""):
                yield notice
        if self.request.compile:
            yield "the first step waits for torch.compile, half a minute or more if nothing is cached"

    def syncing(self, last: bool) -> AbstractContextManager[None]:
        """For the passes of a part of a batch: with several ranks, gradients are exchanged in the `last` alone."""
        return nullcontext() if self.replica is None else self.replica.syncing(last)

    def whole_batch(self, share: int) -> int:
        """Images of the batch under way, of all ranks together; this one has `share` of them."""
        if self.ranks.count == 1:
            return share
        if self.request.skip_corrupt:  # nobody knows how many the others have lost
            whole = int(self.ranks.totals(share)[0])
            if not whole:
                raise StarfireError(f"all images of step {self.position.step + 1} are corrupt")
            return whole
        size = self.request.batch_size or 0
        return min(size, len(self.data.train) - self.position.batch * size)
