"""One update of the weights: forward, backward, the gradients' masks, the optimizer (paper, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from starfire_cli.records.train import Notice
from starfire_cli.workflows.train.cuda_graph import StepGraph
from starfire_cli.workflows.train.micro_batches import MicroBatch, parts, places
from starfire_cli.workflows.train.optimizers import set_rate
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
    if session.graph is not None and session.pruner.plain_step:
        look()
        return session.graph.update(images, labels, rate, session.position.step)
    set_rate(session.optimisation.optimizer, rate)
    return update(session, images, labels, session.position.step, look=look)


def update(
    session: Session, images: Tensor, labels: Tensor, step: int | Tensor, *, look: Callable[[Tensor], None]
) -> Tensor:
    """Forward, backward, the gradients' masks, the optimizer. Returns the summed loss and the hits, (2,).

    Nothing here waits for a GPU, and steps differ in nothing but tensors, so it may be captured (`cuda_graph.py`).
    `step` is the number of steps before this one; `look` sees the sums before any weight changes.
    """
    sums = forward_backward(session, images, labels, step, session.precision.scaler.scale)
    look(sums)
    if session.pruner.adds_gradients:
        session.precision.scaler.unscale_(session.optimisation.optimizer)
    if session.pruner.after_backward():  # some methods evaluate masks in place of a step
        _optimize(session)
    session.optimisation.optimizer.zero_grad(set_to_none=True)
    return sums


def with_step_graph(session: Session) -> Session:
    """The session with its step to be captured as a CUDA graph, where that works."""
    if not session.captures:
        return session
    one = partial(update, session, look=lambda sums: None)
    graph = StepGraph(one, session.optimisation.optimizer, session.pruner, session.request.batch_size or 0)
    return replace(session, graph=graph)


def graph_notices(session: Session) -> Iterator[Notice]:
    """A line, once, where a step could not be captured."""
    graph = session.graph
    if graph is not None and graph.failure is not None and not graph.told:
        graph.told = True
        yield Notice(text=f"training goes on without CUDA graphs: a step could not be captured ({graph.failure})")


def begin_pruning(session: Session) -> None:
    """Before the first step: make the masks of a method that is sparse from the start (SNIP: by the first batch)."""
    session.pruner.begin(lambda: _first_gradients(session))
    session.optimisation.optimizer.zero_grad(set_to_none=True)


def _first_gradients(session: Session) -> float:
    """The gradients of the first batch, and its mean loss; nothing else of the run is changed by it."""
    device, model = session.network.device, session.network.model.train()
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        images, labels = next(iter(session.data.train.batches(0)))
        sums = forward_backward(session, images, labels, session.position.step, lambda loss: loss)
    for name, buffer in model.named_buffers():
        buffer.copy_(kept[name])
    loss, images_of_all = session.ranks.totals(float(sums[0]), len(labels))
    return loss / images_of_all


def forward_backward(
    session: Session, images: Tensor, labels: Tensor, step: int | Tensor, scaled: Callable[[Tensor], Tensor]
) -> Tensor:
    """Forward and backward over a batch, in its parts. Returns the summed loss and the hits, (2,).

    Args:
        session: the run.
        images: (N, C, H, W), this rank's share of a batch.
        labels: (N,).
        step: finished steps; with --adversarial the attack's random start depends on it.
        scaled: makes of the loss what is gone back from.
    """
    request, precision = session.request, session.precision
    whole = session.whole_batch(len(labels))
    sums = torch.zeros(2, dtype=precision.exact, device=labels.device)
    for part in parts(images, labels, request.accumulate, pairs=session.network.pairs):
        with session.syncing(part.last):
            pixels = _attacked(session, part, whole, step) if session.adversary is not None else part.images
            with precision.autocast():
                logits = session.forward(pixels)
            logits = logits.float()
            # Summed and divided by the whole batch, so that uneven parts weigh as they would in one piece.
            smoothing = request.label_smoothing or 0.0
            loss = cross_entropy(logits, part.labels, label_smoothing=smoothing, reduction="sum") / whole
            hits = (logits.detach().argmax(1) == part.labels).sum()
            sums += torch.stack([(loss.detach() * whole).to(sums.dtype), hits.to(sums.dtype)])
            scaled(loss).backward()  # type: ignore[no-untyped-call]
    if session.replica is not None and not len(labels):
        with precision.autocast():
            loss = session.replica.nothing(images)
        scaled(loss).backward()  # type: ignore[no-untyped-call]
    return sums


def _optimize(session: Session) -> None:
    optimizer, scaler = session.optimisation.optimizer, session.precision.scaler
    session.fixed.gather()
    if session.request.clip_grad is not None:
        if not session.pruner.adds_gradients:
            scaler.unscale_(optimizer)
        clip_grad_norm_(session.fixed.parameters or session.network.net.parameters(), session.request.clip_grad)
    session.fixed.step()
    scaler.step(optimizer)
    scaler.update()
    session.fixed.scatter()


def _attacked(session: Session, part: MicroBatch, whole: int, step: int | Tensor) -> Tensor:
    ranks, accumulate = session.ranks, session.request.accumulate
    who = places(part, accumulate=accumulate, whole=whole, rank=ranks.rank, ranks=ranks.count)
    assert session.adversary is not None
    number, model = step * accumulate, session.sparse.model(session.network.model)
    return session.adversary.perturb(model, part.images, part.labels, step=number, places_N=who)
