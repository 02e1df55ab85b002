"""Captures a whole training step as one CUDA graph, so that each further step is a single launch.

What is captured is forward, backward, the gradients' masks, the optimizer, and the attack of `--adversarial`; masks are
evaluated outside of it, since every step of an era has another budget. Batches of another size than the usual (an
epoch's last) run as ever.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from starfire_cli.attacks import Adversary
from starfire_cli.pruning import Pruner
from starfire_cli.text import printable
from starfire_cli.workflows.train.optimizers import set_rate

OPTIMIZERS = ("sgd", "adam", "adamw")  # fused, with a learning rate that may be a tensor on the device
_WARM_UP = 3  # ordinary steps first: libraries are set up, optimizer state and masked layers come into being

Update = Callable[[Tensor, Tensor, Tensor], Tensor]


def unsupported_reason(
    device: torch.device,
    ranks: int,
    *,
    optimizer: str | None,
    fp16: bool = False,
    adversary: Adversary | None = None,
    values: str | None = None,
) -> str | None:
    """The reason for which the steps of a run cannot be captured, to stand behind the option; None where they can.

    Args:
        device: of the network.
        ranks: processes that train together.
        optimizer: its name.
        fp16: whether the loss is scaled for half precision.
        adversary: that attacks the images.
        values: the spec of values that weights share.
    """
    reasons = (
        (device.type != "cuda", f"is for CUDA, and this runs on {device}; --compile works there"),
        (ranks > 1, f"is for one process, and these are {ranks}; --compile works"),
        (optimizer not in OPTIMIZERS, f"works with the optimizers {', '.join(OPTIMIZERS)}, not with {optimizer}"),
        (fp16, "computes in bf16 or float32, not in fp16"),
        (
            adversary is not None and not adversary.captured,
            "goes with --adversarial fgsm, and with pgd of one start, not with attacks that look at what they found",
        ),
        (values is not None, f"does not go with --values {values}"),
    )
    return next((why for holds, why in reasons if holds), None)


class StepGraph:
    """Training steps of one run, captured as soon as that can be, and again when pruning masks further gradients.

    Where a capture fails, steps are made without from then on.

    Args:
        update: one step on (images, labels, its number as an int64 tensor), without a host's say in between; returns
            sums, (2,).
        optimizer: whose steps these are; on CUDA.
        pruner: whose gradients' masks are captured.
        batch: images of the batches that are captured.

    Attributes:
        failure: why a capture failed; None as long as none has.
        told: whether the user knows.
    """

    def __init__(self, update: Update, optimizer: torch.optim.Optimizer, pruner: Pruner, batch: int) -> None:
        self._update, self._optimizer, self._pruner, self._batch = update, optimizer, pruner, batch
        device = self._device = optimizer.param_groups[0]["params"][0].device
        self.failure: str | None = None
        self.told = False
        self._rate = torch.zeros((), device=device)
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._key = (-1, False)  # of the steps that the graph stands for
        self._warm = 0
        self._images, self._labels, self._sums = (torch.empty(0, device=device) for _ in range(3))

    def update(self, images: Tensor, labels: Tensor, rate: float, step: int) -> Tensor:
        """The step after `step` finished ones, at this learning rate: summed loss and hits, (2,), which the next step
        writes over.
        """
        set_rate(self._optimizer, rate)
        self._rate.fill_(rate)
        self._step.fill_(step)
        if self.failure is not None or self._warm < _WARM_UP or len(labels) != self._batch:
            self._warm += 1
            return self._on_the_side(lambda: self._update(images, labels, self._step))
        if self._graph is None or self._key != self._pruner.capture_key:
            self._try_capture(images, labels)
        if self._graph is None:
            return self._on_the_side(lambda: self._update(images, labels, self._step))
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._sums

    def reset(self) -> None:
        """Forget what was captured: the optimizer's state is another one."""
        self._graph, self._warm = None, 0

    def _try_capture(self, images: Tensor, labels: Tensor) -> None:
        """Capture; where that fails, note why, and leave all as it was before."""
        generator = torch.cuda.default_generators[self._device.index or 0] if self._device.type == "cuda" else None
        before = generator.clone_state() if generator is not None else None
        try:
            self._capture(images, labels)
        except RuntimeError as error:  # out of memory, and what a capture does not allow, are such
            first, *_ = str(error).splitlines() or [type(error).__name__]
            self._graph, self.failure = None, printable(first, 160)
            self._images, self._labels, self._sums = (torch.empty(0, device=self._device) for _ in range(3))
            self._optimizer.zero_grad(set_to_none=True)  # gradients that were never computed
            for weight in self._pruner.weights.values():  # of which a compact optimizer holds vectors in their place
                weight.grad = None
            if generator is not None and before is not None:  # else it would go on waiting for the capture's end
                generator.graphsafe_set_state(before)

    def _capture(self, images: Tensor, labels: Tensor) -> None:
        self._graph = None  # gives its memory back first
        self._images, self._labels = images.clone(memory_format=torch.preserve_format), labels.clone()
        self._key = self._pruner.capture_key
        graph = torch.cuda.CUDAGraph()
        # Only this thread is held to the rules of capturing: loaders go on in theirs.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._sums = self._with_rate(lambda: self._update(self._images, self._labels, self._step), capturable=True)
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
