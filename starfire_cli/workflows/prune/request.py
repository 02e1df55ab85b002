"""What `prune-mask` was asked for, and of which checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.checkpoint import file as files
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.run import find_checkpoint
from starfire_cli.networks.dead_weights import DeadWeights, find_dead_weights
from starfire_cli.networks.prunable import Prunable, prunable
from starfire_cli.networks.rebuild import Rebuilt, revive, said_of_model
from starfire_cli.pruning import Layer, Masks, select
from starfire_cli.text import some
from starfire_cli.workflows.prune.oneshot import recalibrate
from starfire_cli.workflows.prune.trial import Trial, TrialRequest
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.settings import Pruning, pruning_of


@dataclass(frozen=True, kw_only=True)
class PruneRequest:
    """One call of `starfire prune-mask`; the fields are the command's options.

    Args:
        target: the share of weights to prune, to write a checkpoint; None with `sweep`, the targets to measure.
        out: the file to write, a folder for it, or None for a name beside the checkpoint.
        weights: of a file with several networks which; see `formats.checkpoint.load`.
        evaluate: measure accuracy before and after.
        recalibrate: so many training batches refresh BatchNorm's statistics.
        trial: the data, where there are any.
    """

    checkpoint: Path | None
    method: str = "window"
    fc: str = "fine"
    target: float | None = None
    max_nonzero: int | None = None
    keep_dense: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    out: Path | None = None
    model: str | None = None
    weights: str | None = None
    eliminate: bool = False
    shrink: bool = False
    recalibrate: int | None = None
    sweep: tuple[float, ...] | None = None
    per_layer: bool = False
    evaluate: bool = False
    trial: TrialRequest
    command: str = "starfire prune-mask"

    @property
    def wants_data(self) -> bool:
        """Whether images are needed."""
        wanted = self.evaluate, self.trial.data is not None, self.recalibrate, self.sweep is not None
        return any(wanted)

    @property
    def network_options(self) -> list[str]:
        """The options given that cannot be fulfilled without the network."""
        wishes = {
            "--sweep": self.sweep is not None,
            "--eliminate": self.eliminate,
            "--shrink": self.shrink,
            "--recalibrate": self.recalibrate,
            "--evaluate": self.evaluate,
            "--data": self.trial.data,
        }
        return [option for option, given in wishes.items() if given]

    def check(self) -> None:
        """Raises BadOption for options that cannot mean anything together."""
        if (self.target is None) == (self.sweep is None):
            raise BadOption("give either --target T, to prune and write, or --sweep START:STOP:STEP, to measure only")
        for target in (self.target, *(self.sweep or ())):
            if target is not None and not 0 <= target < 1:
                raise BadOption(f"{target:g} is no target; the share of weights to prune lies in 0 to below 1")
        if self.sweep is not None and (self.out or self.eliminate or self.shrink):
            raise BadOption("--sweep only measures; --out, --eliminate and --shrink go with --target")
        if self.per_layer and self.sweep is None:
            raise BadOption("--per-layer belongs to --sweep START:STOP:STEP")
        if self.out is not None and self.out.suffix in (".safetensors", ".onnx"):
            raise BadOption(f"--out {self.out}: prune-mask writes a .pt; starfire compress turns it into other formats")


@dataclass
class Job:
    """What is known once the checkpoint is open.

    Args:
        found: everything that could be pruned; `layers` is what the options leave of it.
        left_out: (layer, why it is not pruned).
        dead: what is dead already, in all layers that were found.
    """

    request: PruneRequest
    checkpoint: Checkpoint
    found: Prunable
    layers: list[Layer]
    left_out: list[tuple[str, str]]
    dead: DeadWeights

    def pruning(self, target: float) -> Pruning:
        """The methods at one target. Raises BadOption."""
        r = self.request
        return pruning_of(TrainRequest(method=r.method, fc=r.fc, target=target, max_nonzero=r.max_nonzero))

    def network(self, state: dict[str, Tensor]) -> Rebuilt:
        """The network with `state` in it. Raises BadOption where nothing says which network it is."""
        if self.found.network is None:
            named = said_of_model(self.checkpoint).get("spec")
            what = f"{named}, which runs that code" if named else "resnet20, timm:NAME or package.module:callable"
            wish = self.request.network_options[0]
            raise BadOption(f"{wish} needs the network of {self.checkpoint.path}: --model {what}")
        return revive(replace(self.checkpoint, state=state), self.found.network.spec, self.request.trial.image_size)

    def recalibrated(self, net: nn.Module, trial: Trial) -> str:
        """Refresh BatchNorm as was asked, and say so."""
        assert self.request.recalibrate is not None
        seen = recalibrate(net, trial.model(net), trial.training_batches(), self.request.recalibrate)
        return f"BatchNorm statistics measured anew on {seen} training batches"


def open_job(request: PruneRequest) -> Job:
    """Open the checkpoint and choose its layers. Raises BadOption, StarfireError where that cannot be done."""
    request.check()
    checkpoint = files.load(find_checkpoint(request.checkpoint), weights=request.weights)
    found = prunable(checkpoint, request.model, request.trial.image_size)
    checkpoint = found.checkpoint
    if not found.layers:
        why = f"; --model SPEC says what these are: {some(found.unclear)}" if found.unclear else ""
        if not why and found.left_out:
            name, reason = found.left_out[0]
            why = f"; {name}: {reason}"
        raise StarfireError(
            f"{checkpoint.path} has no prunable layer: no convolution (4 axes) or linear weight (2 axes){why}"
        )
    layers, exempt = select(found.layers, only=request.only, keep_dense=request.keep_dense)
    dead = find_dead_weights(found.checkpoint.state, found.checkpoint.masks, found.layers)
    return Job(request, found.checkpoint, found, layers, [*found.left_out, *exempt], dead)


def sparsity_of(checkpoint: Checkpoint, layers: Sequence[Layer]) -> float:
    """Dead over all weights of `layers`."""
    masks: Masks = checkpoint.masks or {}
    alive = sum(int(torch.count_nonzero(masks.get(x.key, checkpoint.state[x.key]))) for x in layers)
    return 1 - alive / max(1, sum(x.weights for x in layers))
