"""One update of the weights: forward, backward, the gradients' masks, the optimizer (paper, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from starfire_cli.workflows.train.micro_batches import MicroBatch, parts, places
from starfire_cli.workflows.train.session import Session


def update(session: Session, images: Tensor, labels: Tensor, look: Callable[[Tensor], None]) -> Tensor:
    """Forward, backward, the gradients' masks, the optimizer. Returns the summed loss and the hits, (2,).

    Nothing here waits for a GPU, and steps differ in nothing but tensors, so it may be captured (`cuda_graph.py`).
    `look` sees the sums before any weight changes.
    """
    request, optimizer = session.request, session.optimizer
    whole = session.whole_batch(len(labels))
    sums = torch.zeros(2, dtype=session.exact, device=labels.device)
    for part in parts(images, labels, request.accumulate, pairs=session.pairs):
        with session.syncing(part.last):
            pixels = _attacked(session, part, whole) if session.adversary is not None else part.images
            with session.autocast():
                logits = session.forward(pixels)
            logits = logits.float()
            # Summed and divided by the whole batch, so that uneven parts weigh as they would in one piece.
            smoothing = request.label_smoothing or 0.0
            loss = cross_entropy(logits, part.labels, label_smoothing=smoothing, reduction="sum") / whole
            hits = (logits.detach().argmax(1) == part.labels).sum()
            sums += torch.stack([(loss.detach() * whole).to(sums.dtype), hits.to(sums.dtype)])
            session.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    if session.replica is not None and not len(labels):
        with session.autocast():
            loss = session.replica.nothing(images)
        session.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    look(sums)
    session.pruner.after_backward()
    if session.compact is not None:
        session.compact.gather()
    if request.clip_grad is not None:
        session.scaler.unscale_(optimizer)
        clip_grad_norm_(
            session.net.parameters() if session.compact is None else session.compact.parameters, request.clip_grad
        )
    session.scaler.step(optimizer)
    session.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return sums


def _attacked(session: Session, part: MicroBatch, whole: int) -> Tensor:
    ranks, accumulate = session.ranks, session.request.accumulate
    who = places(part, accumulate=accumulate, whole=whole, rank=ranks.rank, ranks=ranks.count)
    step = session.at.step * accumulate
    assert session.adversary is not None
    return session.adversary.perturb(session.model, part.images, part.labels, step=step, places_N=who)
