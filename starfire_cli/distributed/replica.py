"""A rank's replica of the network: DistributedDataParallel, with what training needs of it."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from starfire_cli.distributed.sparse_allreduce import Sending, summed


class Replica:
    """A model whose gradients are the sums over all ranks.

    Args:
        model: the same on every rank but for its weights; rank 0's are taken.
        device: where it is.
        sending: goes on counting what an earlier replica of another size sent; None: begin anew.

    The masks are no part of it, and neither are BatchNorm's statistics: buffers are not broadcast at every step.
    """

    def __init__(self, model: nn.Module, device: torch.device, sending: Sending | None = None) -> None:
        self.sending = sending or Sending()
        self._model = model
        self._synced_norms = any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
        with warnings.catch_warnings():
            # Newer torch has another name for it, which would still overwrite a resumed rank's buffers at the start.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.module = DistributedDataParallel(
                model,
                device_ids=[device.index] if device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        self.module.register_comm_hook(self.sending, summed)

    def syncing(self, last: bool) -> AbstractContextManager[None]:
        """For the forward and backward pass of a part of a batch: gradients travel with the `last` one alone."""
        return nullcontext() if last else self.module.no_sync()

    def nothing(self, images: Tensor) -> Tensor:
        """The loss of a rank that has no image in this step, 0: its gradients are zero, and no statistic moves.

        Args:
            images: (0, C, H, W); the shape is what matters.
        """
        if self._synced_norms:  # these count an empty share right, and must take part
            logits = self.module(images)
        else:
            self._model.eval()
            logits = self.module(images.new_zeros((1, *images.shape[1:])))
            self._model.train()
        loss: Tensor = logits.float().sum() * 0
        return loss
