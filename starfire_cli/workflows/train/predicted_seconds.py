"""Predicts the seconds of a training from a few dense passes that are timed on this machine."""

from __future__ import annotations

from time import perf_counter

import torch

from starfire_cli.workflows.train.session import Session
from starfire_cli.workflows.train.step import forward_backward

_IMAGES = 32  # that are timed on a CPU; a GPU is given a whole batch
_ENOUGH = 1.0  # seconds of a first pass that is measure enough


def dense_seconds(session: Session) -> float | None:
    """The seconds of all forward and backward passes of a training, did all weights stay alive.

    Attacks of --adversarial are among them; reading images, validation, masks and the optimizer come on top. The
    session is of no use afterwards. Returns None with several processes, and with --compile, which would compile.
    """
    if session.ranks.count > 1 or session.request.compile:
        return None
    device, info, batch = session.network.device, session.data.info, session.request.batch_size or 1
    count = min(batch, _IMAGES) if device.type == "cpu" else batch
    images = torch.rand(count, len(info.mean), info.image_size, info.image_size, device=device)
    labels = torch.arange(count, device=device) % len(info.classes)
    session.network.model.train()
    taken = _seconds(session, images, labels)  # the first sets things up
    if taken < _ENOUGH:
        taken = min(_seconds(session, images, labels) for _ in range(2))
    return taken / count * session.trained_images


def _seconds(session: Session, images: torch.Tensor, labels: torch.Tensor) -> float:
    started = perf_counter()
    sums = forward_backward(session, images, labels, 0, lambda loss: loss)
    sums.tolist()  # waits for a GPU
    return perf_counter() - started
