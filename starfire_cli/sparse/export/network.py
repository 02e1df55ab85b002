"""A network exported: from a module of torch to an object file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from starfire_cli.errors import StarfireError
from starfire_cli.sparse import compiler
from starfire_cli.sparse.choosing import fastest_loop
from starfire_cli.sparse.export.all_operators import OPERATORS
from starfire_cli.sparse.export.lowering import INSTEAD, Lowered, lower
from starfire_cli.sparse.export.module import Description, ObjectFile, compiled
from starfire_cli.sparse.export.program import LevelProgram, program
from starfire_cli.sparse.export.targets import NATIVE, ExportTarget
from starfire_cli.sparse.pool import LoopWeightsCache
from starfire_cli.sparse.tracing import TracedNetwork

SHARED = 4  # threads for which the work on one image is cut


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A network as machine code.

    Args:
        identity: what it says about itself.
        file: the object file.
        programs: its steps, for each level of the target.
        live: weights that are not zero, biases apart.
        weights: of the dense network.
    """

    identity: Description
    file: ObjectFile
    programs: tuple[LevelProgram, ...]
    live: int
    weights: int


def export_network(
    model: nn.Module,
    target: ExportTarget,
    *,
    name: str,
    image: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    digest: str,
    threads: bool,
) -> Exported:
    """Compile a network for a target.

    Args:
        model: from pixels to logits, in eval mode; not changed.
        target: where it is going to run.
        name: an identifier of C.
        image: (C, H, W).
        mean: with which the model normalises; for information.
        std: likewise.
        digest: of its masks; likewise.
        threads: whether several threads may run it.

    Raises:
        StarfireError: it cannot be traced, an operation has no loop, a weight is no number, or llvmlite is missing.
    """
    if reason := compiler.missing():
        raise StarfireError(f"starfire export: {reason}")
    with torch.inference_mode():
        try:
            network = TracedNetwork(model)
        except StarfireError as error:
            raise StarfireError(f"{error}; {INSTEAD}") from None
        _check_weights(network)
        cache = LoopWeightsCache()
        programs, lowered = [], dict[int, Lowered]()
        for level in target.levels:
            if level.lanes not in lowered:
                lowered[level.lanes] = lower(network, image, level.lanes, OPERATORS)
            way = fastest_loop if target.name == NATIVE else None
            found = lowered[level.lanes]
            programs.append(program(found, level, threads=SHARED if threads else 1, cache=cache, way=way))
    outputs = next(iter(lowered.values())).outputs
    means, stds = ((float(v[0]), float(v[1]), float(v[2])) for v in (mean, std))
    identity = Description(name=name, image=image, outputs=outputs, mean=means, std=stds, digest=digest)
    layers = [layer.live for layer in network.folded.values()]
    rest = [layer.weight for layer in network.root.modules() if isinstance(layer, nn.Conv2d)]
    return Exported(
        identity=identity,
        file=compiled(identity, target, programs, threads=threads),
        programs=tuple(programs),
        live=sum(len(live.values) for live in layers) + sum(int(weight.count_nonzero()) for weight in rest),
        weights=sum(math.prod(live.shape) for live in layers) + sum(weight.numel() for weight in rest),
    )


def _check_weights(network: TracedNetwork) -> None:
    if not network.folded:
        raise StarfireError("the network has no convolution or linear layer, so no weights to export")
    for layer in network.folded.values():
        for array in (layer.live.values, layer.live.bias):
            bad = int(np.count_nonzero(~np.isfinite(array)))
            if bad:
                raise StarfireError(
                    f"{layer.name}: {bad} of its weights are NaN or infinite, BatchNorm folded in; nothing was exported"
                )
    for name, tensor in (*network.root.named_parameters(), *network.root.named_buffers()):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise StarfireError(f"{name}: it holds NaN or infinity; nothing was exported")
