"""Saves a run as a checkpoint from which nothing is lost: weights, masks, and all that training goes on from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli.distributed import batchnorm
from starfire_cli.distributed.ranks import Ranks
from starfire_cli.formats.checkpoint import file as files
from starfire_cli.pruning.ties import apply_once
from starfire_cli.workflows.train.describe import meta_of
from starfire_cli.workflows.train.session import Session


def save(session: Session, path: Path, metrics: dict[str, Any]) -> None:
    """Write a checkpoint that every command reads and `--resume` goes on from: rank 0 writes, all come here.

    Raises Mismatch if a dead weight is not zero, a mask changed after the era, or the ranks' masks differ.
    """
    session.agreement.masks()  # first: what all find alike, all say alike
    session.pruner.verify()
    session.fixed.check()
    nets, position = session.nets, session.position
    states = [_agreed_state(net, session.ranks) for net in nets]
    own = session.ranks.gathered(_own(session, nets)) if session.ranks.count > 1 else None
    if not session.ranks.first:
        return
    cuda = session.network.device.type == "cuda"
    training: dict[str, Any] = {
        "optimizer": session.optimisation.optimizer.state_dict(),
        "scheduler": {"step": position.step},
        "scaler": session.precision.scaler.state_dict(),
        "era": {"step": position.step, "digests": session.fixed.digests},
        "rng": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if cuda else []},
        "sampler": {"epoch": position.epoch, "batch": position.batch, "seed": session.request.seed},
        "position": dataclasses.asdict(position),
        "pruner": session.pruner.state_dict(),
    }
    if session.tickets is not None:
        training["tickets"] = {"round": session.tickets.round}
    if session.network.removed.parameters:
        training["removed"] = dataclasses.asdict(session.network.removed)
    if own is not None:
        training["ranks"] = own
    if (sparse := session.sparse.state_dict()) is not None:
        training["sparse_compute"] = sparse
    if session.fixed.values is not None:
        training["shared_values"] = session.fixed.values.state_dict()
    if session.fixed.compact is not None:
        training["compact"] = {"channels_last": session.network.channels_last}
    if session.optimisation.ema is not None:
        # `model` is what was measured, the average; what training goes on with lies beside it.
        training["raw"] = apply_once(lambda _, tensor: tensor.detach().cpu(), states[0])
        training["ema"] = {"decay": session.request.ema, "updates": int(session.optimisation.ema.n_averaged)}
    meta = meta_of(session, metrics)
    with session.ranks.undisturbed():
        files.save(path, state=states[-1], masks=session.pruner.masks, meta=meta, training=training)


def save_last(session: Session) -> None:
    """`save` as the run's last checkpoint, in the middle of an epoch. Raises as that."""
    prunable, total = session.sparsity()
    at = session.position
    metrics = {"epoch": at.epoch, "step": at.step, "sparsity_prunable": prunable, "sparsity_total": total}
    save(session, session.run.last, metrics)


def save_weights(session: Session, path: Path) -> dict[str, Tensor]:
    """Write the network that is trained, without what training goes on from, and return its state. All ranks come."""
    state, at = _agreed_state(session.network.net, session.ranks), session.position
    if session.ranks.first:
        with session.ranks.undisturbed():
            meta = meta_of(session, {"epoch": at.epoch, "step": at.step})
            files.save(path, state=state, masks=session.pruner.masks, meta=meta)
    return state


def _agreed_state(net: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """The state dict, with the BatchNorm statistics of all ranks."""
    state = dict(net.state_dict())
    if ranks.count > 1:
        state |= {name: value for name, value in batchnorm.agreed(net, ranks).items() if name in state}
    return state


def _own(session: Session, nets: list[nn.Module]) -> dict[str, Any]:
    """The state of this rank alone: its random generators, and in the middle of an epoch its BatchNorm statistics."""
    cuda = session.network.device.type == "cuda"
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(session.network.device) if cuda else None,
        "buffers": [batchnorm.own(net) for net in nets] if session.position.batch else [],
    }
