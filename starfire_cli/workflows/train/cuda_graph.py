"""Captures a whole training step as one CUDA graph, so that each further step is a single launch.

What is captured is forward, backward, the gradients' masks and the optimizer; masks are evaluated outside of it, since
every step of an era has another budget. Batches of another size than the usual (an epoch's last) run as ever.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from starfire_cli.errors import BadOption
from starfire_cli.pruning import Pruner
from starfire_cli.workflows.train.optim import set_rate
from starfire_cli.workflows.train.request import TrainRequest

OPTIMIZERS = ("sgd", "adam", "adamw")  # fused, with a learning rate that may be a tensor on the device
_WARM_UP = 3  # ordinary steps first: libraries are set up, optimizer state and masked layers come into being

Update = Callable[[Tensor, Tensor], Tensor]


def refuse(request: TrainRequest, device: torch.device, ranks: int) -> None:
    """Raises BadOption where `--cuda-graphs` cannot be had with what else was asked for."""
    name = request.optimizer
    reasons = (
        (device.type != "cuda", f"is for CUDA, and this runs on {device}; --compile works there"),
        (ranks > 1, f"is for one process, and these are {ranks}; --compile works"),
        (name not in OPTIMIZERS, f"works with the optimizers {', '.join(OPTIMIZERS)}, not with {name}"),
        (request.amp_dtype == "fp16" and request.amp is not False, "computes in bf16 or float32, not in fp16"),
        (request.adversarial is not None, f"does not go with --adversarial {request.adversarial}"),
        (request.compact_state, "does not go with --compact-state"),
        (request.values is not None, f"does not go with --values {request.values}"),
    )
    for holds, why in reasons:
        if holds:
            raise BadOption(f"--cuda-graphs {why}")


class StepGraph:
    """Training steps of one run, captured as soon as that can be, and again when pruning masks further gradients.

    Args:
        update: one step on (images, labels), without a host's say in between; returns sums, (2,).
        optimizer: whose steps these are; on CUDA.
        pruner: whose gradients' masks are captured.
        batch: images of the batches that are captured.
    """

    def __init__(self, update: Update, optimizer: torch.optim.Optimizer, pruner: Pruner, batch: int) -> None:
        self._update, self._optimizer, self._pruner, self._batch = update, optimizer, pruner, batch
        device = optimizer.param_groups[0]["params"][0].device
        self._rate = torch.zeros((), device=device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._key = (-1, False)  # of the steps that the graph stands for
        self._warm = 0
        self._images, self._labels, self._sums = (torch.empty(0, device=device) for _ in range(3))

    def update(self, images: Tensor, labels: Tensor, rate: float) -> Tensor:
        """One step at this learning rate: summed loss and hits, (2,), which the next step writes over."""
        set_rate(self._optimizer, rate)
        self._rate.fill_(rate)
        if self._warm < _WARM_UP or len(labels) != self._batch:
            self._warm += 1
            return self._on_the_side(lambda: self._update(images, labels))
        if self._graph is None or self._key != self._pruner.capture_key:
            self._capture(images, labels)
        assert self._graph is not None
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._sums

    def reset(self) -> None:
        """Forget what was captured: the optimizer's state is another one."""
        self._graph, self._warm = None, 0

    def _capture(self, images: Tensor, labels: Tensor) -> None:
        self._graph = None  # gives its memory back first
        self._images, self._labels = images.clone(memory_format=torch.preserve_format), labels.clone()
        self._key = self._pruner.capture_key
        graph = torch.cuda.CUDAGraph()
        # Only this thread is held to the rules of capturing: loaders go on in theirs.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._sums = self._with_rate(lambda: self._update(self._images, self._labels), capturable=True)
        self._graph = graph

    def _on_the_side(self, step: Callable[[], Tensor]) -> Tensor:
        """On the stream that is captured later, so that autograd need not go from one to another."""
        here = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            sums = self._with_rate(step, capturable=False)
        here.wait_stream(self._stream)
        return sums

    def _with_rate(self, step: Callable[[], Tensor], *, capturable: bool) -> Tensor:
        """The learning rate is read from the device, where it changes without the graph's being captured anew.

        After it the optimizer's settings are what they were, as checkpoints have them.
        """
        groups = self._optimizer.param_groups
        before = [dict(group) for group in groups]
        for group in groups:
            group["lr"] = self._rate
            if "capturable" in group:
                group["capturable"] = capturable
        try:
            return step()
        finally:
            for group, settings in zip(groups, before, strict=True):
                group.update(settings)
