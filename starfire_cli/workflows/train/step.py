"""One update of the weights: forward, backward, the gradients' masks, the optimizer (paper, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from starfire_cli.workflows.train.micro_batches import MicroBatch, parts, places
from starfire_cli.workflows.train.optim import set_rate
from starfire_cli.workflows.train.session import Session


def train_step(session: Session, images: Tensor, labels: Tensor, look: Callable[..., None]) -> Tensor:
    """One step of the weights at the learning rate that is due, replayed from a CUDA graph where there is one.

    Args:
        session: the run.
        images: (N, C, H, W), this rank's share of a batch.
        labels: (N,).
        look: raises where the loss is no number; sees the sums before any weight changes.

    Returns the summed loss and the hits, (2,).
    """
    rate = session.optimisation.rate.at(session.position.step)
    if session.graph is not None:
        look()
        return session.graph.update(images, labels, rate)
    set_rate(session.optimisation.optimizer, rate)
    sums = update(session, images, labels, look)
    session.fixed.scatter()
    return sums


def update(session: Session, images: Tensor, labels: Tensor, look: Callable[[Tensor], None]) -> Tensor:
    """Forward, backward, the gradients' masks, the optimizer. Returns the summed loss and the hits, (2,).

    Nothing here waits for a GPU, and steps differ in nothing but tensors, so it may be captured (`cuda_graph.py`).
    `look` sees the sums before any weight changes.
    """
    request, optimizer, precision = session.request, session.optimisation.optimizer, session.precision
    whole = session.whole_batch(len(labels))
    sums = torch.zeros(2, dtype=precision.exact, device=labels.device)
    for part in parts(images, labels, request.accumulate, pairs=session.network.pairs):
        with session.syncing(part.last):
            pixels = _attacked(session, part, whole) if session.adversary is not None else part.images
            with precision.autocast():
                logits = session.forward(pixels)
            logits = logits.float()
            # Summed and divided by the whole batch, so that uneven parts weigh as they would in one piece.
            smoothing = request.label_smoothing or 0.0
            loss = cross_entropy(logits, part.labels, label_smoothing=smoothing, reduction="sum") / whole
            hits = (logits.detach().argmax(1) == part.labels).sum()
            sums += torch.stack([(loss.detach() * whole).to(sums.dtype), hits.to(sums.dtype)])
            precision.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    if session.replica is not None and not len(labels):
        with precision.autocast():
            loss = session.replica.nothing(images)
        precision.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    look(sums)
    session.pruner.after_backward()
    session.fixed.gather()
    if request.clip_grad is not None:
        precision.scaler.unscale_(optimizer)
        clip_grad_norm_(session.fixed.parameters or session.network.net.parameters(), request.clip_grad)
    precision.scaler.step(optimizer)
    precision.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return sums


def _attacked(session: Session, part: MicroBatch, whole: int) -> Tensor:
    ranks, accumulate = session.ranks, session.request.accumulate
    who = places(part, accumulate=accumulate, whole=whole, rank=ranks.rank, ranks=ranks.count)
    step = session.position.step * accumulate
    assert session.adversary is not None
    return session.adversary.perturb(session.network.model, part.images, part.labels, step=step, places_N=who)
