"""Running sums of an epoch's loss and hits, kept on the device so that no step waits for them."""

from __future__ import annotations

import math
from time import perf_counter

import torch
from torch import Tensor

from starfire_cli.errors import StarfireError
from starfire_cli.records.train import StepRecord
from starfire_cli.workflows.train.failures import last_good
from starfire_cli.workflows.train.live_macs import cost_so_far, count_live_macs
from starfire_cli.workflows.train.session import Session

_LOOK_EVERY = 50  # steps between looks at the loss where looking makes a GPU wait


class Meter:
    """The sums of one epoch over this rank's images, taken up where the session's position says.

    What is written back there are the sums over all ranks.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        device, at = session.network.device, session.position
        # The epoch so far is rank 0's; the others' sums are added to it when things are settled.
        so_far = [at.loss_sum, at.correct] if session.ranks.first else [0.0, 0.0]
        self._sums = torch.tensor(so_far, dtype=session.precision.exact, device=device)
        self._images = 0
        self._started, self._mask_seconds = perf_counter(), session.pruner.seconds
        self._last = self._started  # step ended
        self._looks = 1 if device.type == "cpu" else _LOOK_EVERY

    def add(self, sums: Tensor, images: int) -> None:
        """One step's summed loss and hits, (2,), over so many images."""
        self._sums += sums
        self._images += images
        session, past, last = self._session, self._session.position.past, self._last
        self._last = perf_counter()
        if share := session.sparse.computed_share(session.pruner):
            past.sparse_macs += round(share * count_live_macs(session) * images * session.ranks.count)
            past.sparse_seconds += self._last - last

    def check(self, sums: Tensor | None = None) -> None:
        """Stop if the loss is no number, with `sums` of a step that has not changed a weight yet.

        On a GPU, look only now and then.
        """
        if self._session.position.step % self._looks == 0:
            self._finite(self._sums if sums is None else self._sums + sums)

    def settle(self) -> None:
        """Bring the session's position up to date, after a last look at the loss: nothing bad is ever saved.

        All ranks come here, and find the same.
        """
        session = self._session
        at = session.position
        at.loss_sum, at.correct, images = session.ranks.totals(*self._sums.tolist(), self._images)
        if not math.isfinite(at.loss_sum):
            raise self._bad(agreed=True)
        at.images += int(images)
        if session.ranks.count > 1:
            self._sums.copy_(self._sums.new_tensor([at.loss_sum, at.correct]) * session.ranks.first)
        at.seconds += perf_counter() - self._started
        spent = session.pruner.seconds
        at.mask_seconds += spent - self._mask_seconds
        self._mask_seconds = spent
        self._images, self._started = 0, perf_counter()

    def record(self) -> StepRecord:
        session = self._session
        at = session.position
        loss_sum, correct = self._sums.tolist()
        images = max(1, at.images + self._images)
        seconds = at.seconds + perf_counter() - self._started
        cost = cost_so_far(session, at.images + self._images * session.ranks.count)
        return StepRecord(
            epoch=at.epoch + 1,
            batch=at.batch,
            step=at.step,
            loss=loss_sum / images,
            top1=correct / images,
            threshold=session.pruner.threshold(at.step),
            sparsity=session.sparsity()[0],
            images_per_second=(at.images + self._images * session.ranks.count) / seconds if seconds else 0.0,
            training_flops=cost.training_flops,
            dense_flops=cost.dense_flops,
        )

    def _finite(self, sums: Tensor) -> None:
        if not math.isfinite(float(sums[0])):
            raise self._bad()

    def _bad(self, *, agreed: bool = False) -> StarfireError:
        session = self._session
        error = StarfireError(
            f"the loss became NaN or inf by step {session.position.step + 1} (epoch {session.position.epoch + 1}); "
            f"a lower --lr (now {session.request.lr:g}), --clip-grad 1 or a longer --warmup may help. "
            f"{last_good(session.run)}"
        )
        error.agreed = agreed
        return error
